"""benchmark.py: what it plans, what it refuses, and that killing it changes nothing."""

import html
import json
import random
import shutil
import signal
from pathlib import Path

import pytest

import benchmark
from datasets import catalogue
from orthcr.compare import plans
from orthcr.compare.benchmark_datasets import datasets_of
from orthcr.compare.command_line import PROTOCOLS, parse_arguments
from orthcr.compare.display import Display, stage
from orthcr.compare.methods import is_trained, options_by_trainer, registered_trainers
from orthcr.compare.plans import Job, PlannedRun
from orthcr.compare.schedule import make_plan
from orthcr.compare.stages import Method, published_file
from orthcr.run.config import setup_cfg
from orthcr.run.spec import RunSpec
from scripts.robustness import kill_benchmark
from trainers.base import ClipTrainer


def planned(words, protocols=PROTOCOLS, trainers=("CoOp",)):
    args = parse_arguments(words)
    return make_plan(
        [Method(name, args.cfg, args.opts) for name in registered_trainers(trainers)], list(protocols), args
    )


def inline(work, jobs, slots):
    """An engine that does everything in this process."""
    for job in jobs:
        yield job, work(job)


def folders(jobs):
    return {str(run.folder): run for job in jobs for run in job.runs}


def test_the_command_line():
    args = parse_arguments(["--trainers", "VPT", "CoOp", "--seeds", "1", "2", "OPTIM.LR", "0.1", "VERBOSE", "False"])
    assert args.trainers == ["VPT", "CoOp"] and args.seeds == [1, 2]
    assert args.opts == ("OPTIM.LR", "0.1", "VERBOSE", "False")
    assert parse_arguments(["--protocol", "few_shot"]).protocol == ["few_shot"] and parse_arguments([]).trainers == [
        "all"
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--protocol", "xd"], "invalid choice"),
        (["SEED.X", "1", "DATASET.NUM_SHOTS", "2"], "DATASET.NUM_SHOTS is set by a flag"),
        (["optim.lr", "0.1"], "no config key"),
        (["--workers", "0"], "1 or more"),
        (["--cutout", "with", "INPUT.TRANSFORMS", "['normalize']"], "INPUT.TRANSFORMS is set by --cutout"),
        (["--cutout", "with", "--sweep", "OPTIM.LR", "1", "2"], "--cutout has no effect with --sweep"),
    ],
)
def test_a_wrong_command_line_is_one_line(words, said, capsys):
    with pytest.raises(SystemExit):
        parse_arguments(words)
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_all_trainers():
    from dassl.engine import TRAINER_REGISTRY

    every = registered_trainers(["all"])
    assert {"ZeroshotCLIP", "ZeroshotCLIP2", "CoOp", "OrthCR"} <= set(every)
    assert all(issubclass(TRAINER_REGISTRY.get(name), ClipTrainer) for name in every)
    assert [is_trained(name) for name in every] == sorted(map(is_trained, every)), "zero-shot first"
    assert registered_trainers(["OrthCR", "ZeroshotCLIP", "OrthCR"]) == ["ZeroshotCLIP", "OrthCR"]
    with pytest.raises(ValueError, match="OrthCR"):
        registered_trainers(["OrthCr"])


def test_cupl_without_sentences_is_left_out_or_refused(capsys):
    words = ["--protocol", "base2new", "--datasets", "dtd", "shapes", "--seeds", "1"]
    assert [run.spec.classes for run in planned(words, ["base2new"], ("CuPL",))[0].runs] == ["base", "new"]
    assert (
        "CuPL needs descriptions of the classes, which 1 of 2 jobs lack. These jobs are left out"
        in capsys.readouterr().out
    )
    with pytest.raises(ValueError, match="give TRAINER.CUPL.DESCRIPTIONS FILE, or leave CuPL out"):
        planned([*words, "--trainers", "CuPL"], ["base2new"], ("CuPL",))
    file = ["TRAINER.CUPL.DESCRIPTIONS", "configs/descriptions/embedded.json"]
    assert len(planned([*words, "--trainers", "CuPL", *file], ["base2new"], ("CuPL",))) == 2


def test_the_plan_of_the_embedded_data():
    """What make protocols always made: 115 runs of three methods."""
    jobs = planned([], trainers=("ZeroshotCLIP", "CoOp", "OrthCR"))
    found = folders(jobs)
    assert len(found) == sum(len(job.runs) for job in jobs) == 115
    few = [path for path in found if "/fewshot/digits/CoOp/" in path]
    assert len(few) == 15 and len([path for path in found if "/fewshot/digits/ZeroshotCLIP/" in path]) == 1
    for trainer, file, epochs in (("CoOp", "tiny", 25), ("OrthCR", "tiny_cross_datasets", 20)):
        source = found[f"output/bench/xd/shapes/shots16/{trainer}/{file}/seed2"]
        assert setup_cfg(source.spec).OPTIM.MAX_EPOCH == epochs
        (job,) = [job for job in jobs if source in job.runs]
        assert len(job.runs) == 10 and all(run.model == source.folder for run in job.runs[1:])


def test_the_transfers_have_their_own_file_unless_one_is_named():
    weights = ("OrthCR", "OrthSR", "FullFT", "BlockFT", "CLIPLoRA")
    for cfg, source in (("", "tiny_cross_datasets"), ("tiny", "tiny")):
        words = ["--seeds", "1", "--shots", "1", *(["--cfg", cfg] if cfg else [])]
        for job in planned(words, trainers=weights):
            training = job.runs[0]
            in_transfer = "xd" in training.folder.parts
            assert (source if in_transfer else "tiny") in training.folder.parts
            node = setup_cfg(training.spec).TRAINER[job.kind.upper()]
            assert node.STRENGTH == (0.5 if in_transfer and not cfg else 1.0)
    real = planned(["--datasets", "imagenet", "--seeds", "1"], ["xd", "dg"], weights)
    for job in real:
        node = setup_cfg(job.runs[0].spec).TRAINER[job.kind.upper()]
        assert job.runs[0].folder.parts[-2] == "vit_b16_cross_datasets" and node.STRENGTH == 0.5


def test_the_strength_of_the_settings_is_not_tested_twice():
    for strengths, n in (([], 0), (["0.5"], 0), (["0.50", "1"], 1), (["auto", "0.25"], 2)):
        words = ["--seeds", "1", *(["--strength", *strengths] if strengths else [])]
        (job,) = planned(words, ["dg"], ("OrthCR",))
        assert len(job.runs) == 5 * (1 + n)


@pytest.mark.parametrize(
    "trainer, cfg, holes, none",
    [
        ("CoOp", "", ("random_resized_crop", "normalize", "cutout"), {}),
        ("OrthCR", "", ("random_resized_crop", "cutout", "normalize"), {}),
        ("OrthSR", "", ("random_resized_crop", "normalize"), {"ATTENTIVE": False}),
        (
            "OrthSR",
            "tiny_published",
            ("random_resized_crop", "normalize"),
            {"ATTENTIVE": False, "VIEWS": "cut", "LAMBDA_CUT": None, "CUTOUT_BY": "attention"},
        ),
        ("TipAdapterF", "", ("random_resized_crop", "normalize", "cutout"), {}),
    ],
)
def test_every_method_with_cutout_and_without(trainer, cfg, holes, none):
    words = ["--seeds", "1", "--cutout", "with", "without", *(["--cfg", cfg] if cfg else [])]
    plain = planned([word for word in words if word not in ("--cutout", "with", "without")], ["base2new"], (trainer,))
    jobs = planned(words, ["base2new"], (trainer,))
    cfgs = [setup_cfg(job.runs[0].spec) for job in (*jobs, *plain)]
    with_holes, without, default = cfgs
    assert with_holes.INPUT.TRANSFORMS == holes and with_holes.INPUT.CUTOUT_LEN == 8
    assert without.INPUT.TRANSFORMS == tuple(name for name in holes if name != "cutout")
    node, others = without.TRAINER[trainer.upper()], default.TRAINER[trainer.upper()]
    assert {key: node[key] for key in none} == none
    assert {key: node[key] for key in node if key not in none} == {k: others[k] for k in others if k not in none}
    assert with_holes.TRAINER == default.TRAINER
    assert [job.runs[0].folder.parts[2] for job in jobs] == ["with_cutout", "without_cutout"]
    for job in jobs:
        assert job.runs[1].model == job.runs[0].folder


def test_cutout_is_for_what_trains_and_keeps_a_size_that_is_given():
    words = ["--seeds", "1", "--cutout", "with", "without"]
    assert len(planned(["--seeds", "1", "--cutout", "with", "with"], ["base2new"])) == 1
    (job,) = planned(words, ["base2new"], ("ZeroshotCLIP",))
    assert "INPUT.TRANSFORMS" not in job.runs[0].spec.opts and "with_cutout" not in job.runs[0].folder.parts
    job, _ = planned([*words, "INPUT.CUTOUT_LEN", "4"], ["base2new"], ("CoOp",))
    assert setup_cfg(job.runs[0].spec).INPUT.CUTOUT_LEN == 4
    real, _ = planned([*words, "--datasets", "dtd"], ["base2new"], ("CoOp",))
    assert setup_cfg(real.runs[0].spec).INPUT.CUTOUT_LEN == 56


def test_the_plan_of_the_real_data():
    found = folders(planned(["--datasets", "all", "--seeds", "1"], ["base2new", "xd", "dg"]))
    assert len(found) == 11 * 2 + 1 + 10 + 4
    assert "output/bench/base2new/dtd/shots16/CoOp/vit_b16_ctxv1/seed1/new" in found
    words = ["--datasets", "caltech101", "dtd", "--seeds", "1", "--shots", "2", "OPTIM.LR", "0.1"]
    few = planned(words, ["fewshot"])
    assert [job.runs[0].spec.opts[-2:] for job in few] == [("OPTIM.LR", "0.1")] * 2
    assert str(few[0].runs[0].folder) == "output/bench/fewshot/caltech101/CoOp/vit_b16_ep100/shots2/seed1"


def test_which_data_sets_a_protocol_takes():
    assert datasets_of("base2new", ["shapes", "shapes_fog", "dtd"]) == ["shapes", "dtd"]
    assert datasets_of("xd", ["dtd", "shapes_fog", "colours"]) == ["dtd", "colours"]
    assert len(datasets_of("xd", ["imagenet"])) == 10
    assert datasets_of("dg", ["shapes_fog", "dtd"]) == ["shapes_fog"] and len(datasets_of("dg", ["shapes"])) == 4
    with pytest.raises(ValueError, match="imagenet_a has no part in --protocol base2new"):
        planned(["--protocol", "base2new", "--datasets", "dtd", "imagenet_a"], ["base2new"])
    with pytest.raises(ValueError, match="dtd"):
        planned(["--datasets", "dtdd"])


def test_published_settings_by_the_names_of_the_originals(tmp_path, monkeypatch):
    monkeypatch.setattr("orthcr.compare.stages.CONFIGS", tmp_path)
    folder = tmp_path / "trainers" / "New"
    folder.mkdir(parents=True)
    assert published_file("New", "dtd", "base2new", None) == "vit_b16"
    for name in ("vit_b16_c2_few_shot", "vit_b16_c2", "vit_b16_c2_cross_datasets", "vit_b16_imagenet", "rn50"):
        (folder / f"{name}.yaml").touch()
    found = [published_file("New", "dtd", protocol, 1) for protocol in ("base2new", "fewshot", "xd")]
    assert found == ["vit_b16_c2", "vit_b16_c2_few_shot", "vit_b16_c2_cross_datasets"]
    assert published_file("New", "imagenet", "base2new", None) == "vit_b16_imagenet"
    (folder / "vit_b16_c4_ctxv1.yaml").touch()
    assert published_file("New", "dtd", "base2new", None) == "vit_b16_c4_ctxv1"
    (folder / "vit_b16.yaml").touch()
    assert published_file("New", "dtd", "base2new", None) == "vit_b16"


def test_what_fails_is_told_and_the_rest_is_compared(tmp_path, monkeypatch, capsys, data_root):
    """And the exit status says so; a second benchmark in the same directory is refused."""
    words = ["--protocol", "few_shot", "--datasets", "patterns", "dtd", "--shots", "1", "--seeds", "1"]
    words += ["--trainers", "ZeroshotCLIP", "CoOp", "--root", str(data_root), "--output-dir", str(tmp_path)]

    monkeypatch.setattr("orthcr.compare.engines.run_locally", inline)
    monkeypatch.setattr("orthcr.compare.benchmark_run.fetch", str)  # as if the weights were there
    assert benchmark.main([*words, "OPTIM.MAX_EPOCH", "1", "USE_CUDA", "False"]) == 1
    done = capsys.readouterr()
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2 and all("fewshot dtd 1 1: " in line and "--root" in line for line in errors)
    assert "[4 of 4 runs, 2 failed] " in done.out and "Few-shot, all classes" in done.out
    assert (tmp_path / "report.html").exists()

    monkeypatch.setattr(plans, "run", lambda args: pytest.fail("it was run again"))
    assert benchmark.main([*words[:4], *words[5:], "OPTIM.MAX_EPOCH", "1", "USE_CUDA", "False"]) == 0

    from dassl.utils import locked

    with locked(str(tmp_path), ""):
        assert benchmark.main([*words, "OPTIM.MAX_EPOCH", "1"]) == 1
    assert "another benchmark is at work" in capsys.readouterr().err


def test_missing_weights_are_told_once_before_any_run(tmp_path, monkeypatch, capsys, root, data_root):
    """Also which backbone a data set of somebody's own is tested with."""
    for part in ("datasets", "trainers", "backbones"):
        shutil.copytree(root / "configs" / part, tmp_path / "configs" / part)
    (tmp_path / "configs/datasets/mine.yaml").write_text("DATASET:\n  NAME: Patterns\n")
    stems = {**catalogue.stems(), "mine": "Mine"}
    monkeypatch.setattr("datasets.catalogue.stems", lambda: stems)
    for module in ("run.config_files", "run.pairs", "compare.stages"):
        monkeypatch.setattr(f"orthcr.{module}.CONFIGS", tmp_path / "configs")
    monkeypatch.setattr("orthcr.compare.engines.run_locally", lambda *args, **kwargs: pytest.fail("a run began"))
    monkeypatch.setattr("trainers.shared.backbones.CACHE", str(tmp_path / "cache"))
    asked = []

    def refuse(url, folder):
        asked.append(url)
        raise OSError("no network")

    monkeypatch.setattr("trainers.shared.backbones.clip._download", refuse)
    words = ["--datasets", "mine", "--protocol", "few_shot", "--trainers", "CoOp", "VPT", "ZeroshotCLIP"]
    words += ["--seeds", "1", "--root", str(data_root), "--output-dir", str(tmp_path / "out")]
    assert benchmark.main(words) == 1
    done = capsys.readouterr()
    assert "mine: each method has its published settings for ViT-B/16" in done.out and "--cfg tiny" in done.out
    (error,) = done.err.splitlines()
    assert "ViT-B/16 cannot be downloaded" in error and len(asked) == 1 and not (tmp_path / "out").exists()


def test_results_of_other_settings_are_in_no_table(tmp_path, monkeypatch, capsys, data_root):
    monkeypatch.setattr("orthcr.compare.engines.run_locally", inline)
    words = ["--protocol", "base2new", "--datasets", "shapes", "--seeds", "1", "--root", str(data_root)]
    words += ["--output-dir", str(tmp_path), "--trainers", "CoOp", "ZeroshotCLIP"]
    quick = ["OPTIM.MAX_EPOCH", "1", "USE_CUDA", "False", "TRAINER.COOP.CTX_INIT", "a"]
    assert benchmark.main([*words, *quick, "TRAINER.COOP.N_CTX", "1"]) == 0
    before = (tmp_path / "report.csv").read_text()
    assert capsys.readouterr().out.count("CoOp") and "CoOp" in before

    other = ["TRAINER.COOP.CTX_INIT", "", "TRAINER.COOP.N_CTX", "2"]
    assert benchmark.main([*words, *quick[:4], *other]) == 1
    done = capsys.readouterr()
    told = 'TRAINER.COOP.CTX_INIT a, not "", TRAINER.COOP.N_CTX 1, not 2'
    assert told in done.err and told in done.out
    csv, page, markdown = ((tmp_path / f"report.{end}").read_text() for end in ("csv", "html", "md"))
    assert "CoOp" not in csv and "ZeroshotCLIP" in csv
    for text in (page, markdown):
        table, left_out = text.split("Left out")
        assert "CoOp" not in table and "ZeroshotCLIP" in table
        assert str(tmp_path / "base2new/shapes/shots16/CoOp/tiny/seed1") in left_out and told in html.unescape(left_out)
        assert "its model was trained with other settings" in left_out, "its test on new classes"

    words.remove("ZeroshotCLIP")  # nothing is left, and the report of before does not stay
    (tmp_path / "base2new/shapes/shots16/ZeroshotCLIP").rename(tmp_path.parent / "elsewhere")
    assert benchmark.main([*words, *quick[:4], *other]) == 1
    assert "ZeroshotCLIP" not in (tmp_path / "report.html").read_text() + (tmp_path / "report.csv").read_text()
    assert benchmark.main([*words, *quick, "TRAINER.COOP.N_CTX", "1"]) == 0
    assert [line for line in before.splitlines() if ",CoOp," in line] == [
        line for line in (tmp_path / "report.csv").read_text().splitlines() if ",CoOp," in line
    ]


def test_an_unknown_key_is_told_before_anything_runs(tmp_path, capsys):
    assert benchmark.main(["--trainers", "CoOp", "--output-dir", str(tmp_path / "out"), "OPTIM.LRR", "1"]) == 1
    assert "OPTIM.LR" in capsys.readouterr().err and not (tmp_path / "out").exists()


# ------------------------------------------------------------------ the display


class Terminal:
    def __init__(self):
        self.text = ""

    def isatty(self):
        return True

    def write(self, text):
        self.text += text

    def flush(self):
        pass


def test_the_display_on_a_terminal(tmp_path, capsys):
    jobs = [
        Job((PlannedRun(name, RunSpec(output_dir=str(tmp_path / name))),), 10.0, "CoOp")
        for name in ("one", "two", "three")
    ]
    display = Display(jobs, "bench", Terminal())
    display.start_time -= 100
    (tmp_path / "one").mkdir()
    log = tmp_path / "one" / "log.txt"
    log.write_text("epoch [3/20] batch [1/9] loss 1\nepoch [4/20] batch [2/9] loss 1\n")
    display.refresh()
    assert display.out.text == "bench 0 of 3 runs\n  one   epoch 4/20\n"
    log.write_text(log.read_text() + "Evaluate on the *test* set\n")
    assert stage(log) == "is tested"
    display.job_start_times[jobs[0]] -= 50  # as long ago as it was begun
    display.end_job(jobs[0], is_failure=True)
    display.print_line("failed: one")
    assert display.out.text.endswith("\x1b[2A\x1b[J") and capsys.readouterr().out == "failed: one\n"
    display.refresh()
    assert display.out.text.endswith("\x1b[Jbench 1 of 3 runs, 1 failed, about 2 min left\n")


def test_what_was_finished_before_does_not_shorten_what_is_left(tmp_path):
    jobs = [Job((PlannedRun(str(k), RunSpec(output_dir=str(tmp_path / str(k)))),), 10.0) for k in range(4)]
    display = Display(jobs)
    display.end_job(jobs[0], is_failure=False)
    assert display.format_counts() == "1 of 4 runs"
    display.start_time -= 30
    display.job_start_times[jobs[1]] = display.start_time
    display.end_job(jobs[1], is_failure=False)
    assert display.format_counts() == "2 of 4 runs, about 60 s left"


# ------------------------------------------------------------------ killed


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="it looks for processes in /proc")
def test_killed_and_started_again(tmp_path, pictures, monkeypatch, clips_with_random_weights):
    """`python -m scripts.robustness.kill_benchmark` does it twenty times, with more methods."""
    words = ["--protocol", "base2new", "--datasets", "shapes", "--seeds", "1", "--trainers", "ZeroshotCLIP", "CoOp"]
    words += ["--root", str(pictures), "--workers", "1"]
    with monkeypatch.context() as patch:
        patch.setattr("orthcr.compare.engines.run_locally", inline)
        assert benchmark.main([*words, "--output-dir", str(tmp_path / "runs"), *kill_benchmark.QUICK]) == 0
    rng, signals = random.Random(), [signal.SIGKILL, random.choice([signal.SIGTERM, signal.SIGINT])]
    kill_benchmark.prove(words, tmp_path, signals, rng, expected=(kill_benchmark.tables(tmp_path), 10.0))
    results = json.loads(next((tmp_path / "killed").rglob("CoOp/tiny/seed1/results.json")).read_text())
    assert results["config"]["OPTIM.MAX_EPOCH"] == 3


def test_pairs_of_one_method_are_for_it_alone():
    pairs = ("OPTIM.LR", "0.1", "TRAINER.ORTHCR.TAU", "2.0")
    registered_trainers(["OrthCR"])
    assert options_by_trainer(pairs, ["CoOp", "OrthCR"]) == {"CoOp": pairs[:2], "OrthCR": pairs}
    with pytest.raises(ValueError, match="TRAINER.ORTHCR.TAU is no key of CoOp: leave it out"):
        options_by_trainer(pairs, ["CoOp"])
