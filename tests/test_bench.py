"""The benchmark: what it counts, what it measures, and that a list of cases is made, left out, or gone on with."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from clip import clip
from clip.model import CLIP

from benchmarks import __main__ as program
from benchmarks import measure
from benchmarks.cases import BACKBONES, FIRST, SETTINGS, Backbone, Case, plan_cases
from benchmarks.counts import Costs, adaptation, count, count_operations
from benchmarks.memory import Tracker, peak_of
from benchmarks.pictures import draw
from benchmarks.results import Results, case_of
from trainers.shared.prompts import fill_template
from trainers.shared.tokens import tokenize

MIB = 2**20
COOP = Case("train", "CoOp", FIRST, 50, 4, "fp32")
COSTS = {"reference": Costs(720.5, 720.5, 30), "ours": Costs(55, 55, 3)}


def test_the_peak_of_a_step_counted_by_hand():
    """y = relu(x W1) W2 with x, W1, W2 of 1 MiB each, and the loss its sum."""
    x, w_1, w_2 = (torch.ones(512, 512, requires_grad=k > 0) for k in range(3))

    def forward():
        h = (x @ w_1).relu()  # x W1 is freed, relu keeps its result
        return (h @ w_2).sum()

    # three inputs, h, and x W1 or h W2
    assert abs(peak_of(lambda: forward().detach(), [x, w_1, w_2], x.device) - 5) < 0.01
    with Tracker([x, w_1, w_2]) as tracker:
        forward().backward()
        left = tracker.current
    assert left == 5 * MIB  # inputs and two gradients
    assert 6 * MIB < tracker.peak <= 8 * MIB


def test_a_view_costs_nothing_and_what_was_there_before_is_given_back():
    kept = torch.ones(256, 1024)
    with Tracker([kept]) as tracker:
        view = kept.view(1024, 256).mT[3:]
        assert tracker.current == tracker.peak == MIB
        copies = [view.clone() for _ in range(3)]
        more = sum(t.nbytes for t in copies)
        assert tracker.current == MIB + more
        del copies, view, kept
        assert tracker.current == 0
    assert tracker.peak == MIB + more


def test_what_only_the_graph_keeps_is_counted():
    x = torch.zeros(512, 512, requires_grad=True)

    def chain():
        y = x
        for _ in range(4):
            y = y.exp()  # whose backward wants its result
        return y

    with Tracker([x]) as tracker:
        y = chain()
        assert tracker.current == 5 * MIB
        y.sum().backward()
        del y
        assert tracker.current == 2 * MIB  # x and its gradient
    with torch.no_grad(), Tracker([x]) as tracker:
        chain()
    assert tracker.peak == 3 * MIB


# -------------------------------------------------------------------- operations


def test_the_operations_of_an_image_by_hand():
    d, n, blocks = 768, 197, 12
    products = 196 * 3 * 16**2 * d + blocks * (12 * n * d**2 + 2 * n**2 * d) + d * 512
    adapter = 2 * 512 * 128
    costs = count(Case("eval", "CLIP_Adapter", FIRST, 3, 5, "fp32"))
    logits = 5 * 512 * 3
    assert costs["ours"].gflop == costs["reference"].gflop == 2 * (5 * (products + adapter) + logits) / 1e9


def test_the_prediction_of_a_step():
    """CoOp with 1,000 classes: a token of text takes 2 x 12 blocks x 12 x 512^2 operations forward, and for dx."""
    costs = count(COOP._replace(classes=1000))
    token, image = 2 * 12 * 12 * 512**2 / 1e9, 35.1
    assert costs["ours"].gflop == pytest.approx(4 * image + 2 * (17 + 5 * 1000) * token, rel=0.02)
    assert costs["reference"].gflop == pytest.approx(4 * image + 2 * 77 * 1000 * token, rel=0.05)
    assert costs["reference"].gib == pytest.approx(28, rel=0.05)  # twice the measured 14.2 of 500 classes


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(size, file of a CLIP of it)."""
    size = Backbone(32, (128, 2), (128, 2), 32)
    path = tmp_path_factory.mktemp("small") / "clip.pt"
    torch.save(CLIP(32, 224, 2, 128, 32, 77, 49408, 128, 2, 2).state_dict(), path)
    return size, str(path)


@pytest.fixture
def task(small, monkeypatch):
    """task(kind, trainer, classes, batch, **more): of `measure`, on the small CLIP."""
    monkeypatch.setitem(BACKBONES, "small", small[0])
    monkeypatch.setattr(measure, "JPEGS", 2)

    def make(kind="train", trainer="CoOp", classes=6, batch=2, **more):
        rest = {"weights": small[1], "steps": 2, "seconds": 60, "skip": ""}
        return {**Case(kind, trainer, "small", classes, batch, "fp32")._asdict(), **rest, **more}

    return make


@pytest.mark.parametrize("form", measure.FORMS)
@pytest.mark.parametrize("trainer", ["CoOp", "OrthCR"])
def test_the_counts_are_those_of_a_real_step(trainer, form, task, tmp_path):
    case = Case("train", trainer, "small", 3, 2, "fp32")
    built = measure.build(case, task()["weights"], tmp_path)
    image, label = built.parse_batch_train(next(iter(built.train_loader_x)))
    built.set_model_mode("train")
    _ = built.model.frozen_text if built.model.templates else None  # once a run
    with measure.FORMS[form](built.model):
        gflop, gib = count_operations(built, lambda: built.backward(built.losses(image, label)[0]))
    costs = count(case)[form]
    assert costs.gflop == costs.round == gflop and costs.gib == pytest.approx(gib, rel=0.01)


def test_the_counts_are_those_of_a_real_adaptation(task, tmp_path):
    case = Case("adapt", "TPT", "small", 3, 2, "fp32")
    built = measure.build(case, task()["weights"], tmp_path)
    image, costs = torch.randn(2, 3, 224, 224), count(case)
    for name, form in measure.FORMS.items():
        with form(built.model):
            real = adaptation(built, image)
        assert costs[name].gflop == costs[name].round == real.gflop
        assert costs[name].gib == pytest.approx(real.gib, rel=0.01)


def test_an_evaluation_has_the_text_in_its_first_batch(task):
    case = Case(**{name: task("eval")[name] for name in Case._fields})
    more = count(case._replace(classes=12))
    for form, costs in count(case).items():
        assert costs.round > costs.gflop if form == "ours" else costs.round == costs.gflop
        text = (more[form].gflop - costs.gflop) / 6
        wanted = 4 * text if form == "ours" else text
        assert text > 0 and (more[form].round - costs.round) / 6 == pytest.approx(wanted, rel=1e-3)


# -------------------------------------------------------------------- a case


def test_class_names_have_five_tokens_behind_the_shared_ones():
    names = measure.class_names(1000)
    tokens = tokenize(fill_template("a photo of a {}.", names))
    assert tokens.shape == (1000, 5 + 5)
    assert len({name.split()[0] for name in names}) == len(set(tokens[:, 5].tolist())) == 1000
    assert (tokens[:, -1] == clip._tokenizer.encoder["<|endoftext|>"]).all()


def test_a_training_case_is_measured(task):
    result = measure.measure(task())
    for form in ("reference", "ours"):
        step = result[form]
        parts = sum(step[part]["seconds"] for part in ("forward", "backward", "optimizer"))
        assert 0 < parts <= step["step"]["seconds"] * 1.5  # medians, each for itself
        assert all(step[part]["seconds"] > 0 for part in ("forward", "backward", "optimizer"))
        assert step["rounds"] == 2
    assert result["reference"]["peak_mib"] > result["ours"]["peak_mib"] > 24  # of the embeddings
    assert result["data"]["first"]["seconds"] > 0 and "skipped" not in result
    json.dumps(result)


def test_a_case_without_its_reference_and_with_little_time(task):
    result = measure.measure(task(skip="needs about 99 GiB", seconds=0, steps=5))
    assert "reference" not in result and result["skipped"] == "needs about 99 GiB"
    assert result["ours"]["rounds"] == 1


def test_an_evaluation_encodes_the_text_once(task, monkeypatch):
    result = measure.measure(task("eval"))
    assert set(result["ours"]) == {"first", "later", "rounds"} and set(result["reference"]) == {"batch", "rounds"}
    results = SimpleNamespace(cases={case_of(result): result})
    (case,) = results.cases
    first, later = (result["ours"][name]["seconds"] for name in ("first", "later"))
    assert Results.seconds(results, case, "ours") == pytest.approx((first + 3 * later) / 4)


def test_an_adaptation_is_measured_in_images_a_second(task, tmp_path):
    result = measure.measure(task("adapt", "TPT", batch=2))
    # of the embeddings; ours has the views of both images at once
    assert 24 < result["reference"]["peak_mib"] < result["ours"]["peak_mib"]
    assert result["ours"]["rounds"] == result["reference"]["rounds"] == 2
    results, case = Results(tmp_path, IDENTITY), case_of(result)
    results.cases[case] = result | {"counted": {form: asdict(costs) for form, costs in COSTS.items()}}
    row = results.adaptation(case)
    for form in ("ours", "reference"):
        assert float(row[f"{form} images/s"]) == pytest.approx(2 / result[form]["batch"]["seconds"], rel=1e-2)
    assert "**small, a batch of an evaluation that adapts to each image**" in results.text()


# -------------------------------------------------------------------- many cases


def everything():
    backbones = ["ViT-B/16", "ViT-B/32", "ViT-L/14"]
    return plan_cases(list(SETTINGS), [10, 50, 100, 500, 1000], [1, 4, 32], ["fp32"], backbones)


def test_the_most_telling_cases_come_first():
    cases = everything()
    assert len(cases) == len(set(cases)) == 16 * 5 * (3 + 2) + 5 * 2 + 2 * 4
    assert {(c.trainer, c.batch) for c in cases if c.kind == "adapt"} == {("TPT", 1), ("TPT", 4)}
    assert [(c.kind, c.trainer, c.classes, c.batch) for c in cases[:8]] == [
        *(("train", name, n, 4) for n in (50, 500, 1000) for name in ("CoOp", "OrthCR")),
        ("eval", "CoOp", 1000, 100),
        ("eval", "CoOp", 1000, 32),
    ]
    assert {c.backbone for c in cases[-8:]} == {"ViT-B/32", "ViT-L/14"}
    few = plan_cases(["VPT"], [10, 50], [4], ["fp32"], [FIRST])
    assert [(c.kind, c.classes, c.batch) for c in few if c.kind == "train"] == [("train", 10, 4), ("train", 50, 4)]


def told(case: Case, reference: float | None, ours: float) -> dict:
    """A result of `measure` that never was."""
    part = {"seconds": ours, "wall": ours}
    result = {**case._asdict(), "ours": {"step": part, "peak_mib": 512.0}, "data": {"first": part, "later": part}}
    result["ours"] |= dict.fromkeys(("forward", "backward", "optimizer"), part)
    result["counted"] = {form: asdict(costs) for form, costs in COSTS.items()}
    if reference is None:
        return {**result, "skipped": "needs about 36 GiB"}
    return {**result, "reference": {"step": {"seconds": reference, "wall": reference}, "peak_mib": 2048.0}}


IDENTITY = {"device": "a CPU", "torch": "torch 9", "commit": "commit abc"}


@pytest.fixture
def results(tmp_path):
    made = Results(tmp_path, IDENTITY)
    for case, *times in ((COOP, 8, 2), (COOP._replace(classes=500), 80, 8), (COOP._replace(classes=1000), None, 12)):
        made.cases[case] = told(case, *times)
    return made


def test_a_reference_that_does_not_fit_is_on_a_line(results):
    large = COOP._replace(classes=1000)
    assert results.reference(COOP) == (8, True)
    assert results.reference(large) == (pytest.approx(80 + 72 / 450 * 500), False)
    assert results.ratio(large) == pytest.approx(160 / 12)
    assert results.reference(large._replace(batch=1)) == (None, False)
    row = next(line for line in results.text().splitlines() if "1,000" in line)
    assert "~160.000" in row and "~13.33" in row and "13.10" in row  # predicted
    assert f"- {large}: the reference needs about 36 GiB" in results.text()


def test_what_is_left_out_is_said(results):
    results.left_out = {COOP._replace(batch=b): "no time was left" for b in (1, 32)}
    assert "- train CoOp, ViT-B/16, fp32, no time was left: 50 x 1, 50 x 32" in results.text()
    results.write()
    kept = json.loads((results.folder / "results.json").read_text())
    assert [entry["batch"] for entry in kept["left_out"]] == [1, 32] and kept["device"] == "a CPU"
    assert "no time was left" in (results.folder / "table.md").read_text()


def test_results_are_gone_on_with_or_refused(results, one_line):
    results.write()
    assert Results(results.folder, IDENTITY).cases == results.cases
    with pytest.raises(ValueError) as caught:
        Results(results.folder, IDENTITY | {"commit": "commit def"})
    assert "commit abc" in one_line(caught) and "--output-dir" in one_line(caught)


def test_pictures_of_more_than_one_number_of_classes(results):
    assert [path.name for path in draw(results, results.folder)] == ["time_batch4.png", "memory_batch4.png"]
    results.cases = {COOP: results.cases[COOP]}
    assert draw(results, results.folder) == []


def test_the_reference_is_not_begun_where_it_does_not_fit():
    assert "needs about 30 GiB, 20 GiB were free" in program.too_large(COOP, COSTS, 20)
    assert not program.too_large(COOP, COSTS, 40)
    assert not program.too_large(COOP._replace(kind="eval"), COSTS, 20)
    assert 0 < program.free_memory(False) < 1e5


def test_the_pace_is_learned():
    pace = program.Pace(steps=3, rate=100, share=120)
    before = pace.expected(COOP, COSTS, "")
    assert before == pytest.approx(program.START + 4 * (720.5 + 55) / 100)
    assert pace.expected(COOP, COSTS, "too large") == pytest.approx(program.START + 4 * 55 / 100)
    pace.learn(COOP, COSTS, "", 1 + 2 * (before + 1))
    assert pace.expected(COOP, COSTS, "") == pytest.approx(before * 2, rel=0.05)


def test_the_command_leaves_out_says_so_and_goes_on(tmp_path, small, task, monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.cases.TEST_BATCHES", [3])
    monkeypatch.setattr(measure, "random_clip", lambda backbone, folder: small[1])
    words = ["--trainers", "CoOp", "--classes", "10", "--batch", "1", "2", "--backbones", FIRST, "--steps", "1"]
    words += ["--output-dir", str(tmp_path)]
    done = []

    def run(given):
        done.append(given["batch"])
        if len(done) == 2:
            return {}, "ended by signal 9"
        return measure.measure(given), ""

    monkeypatch.setattr(program, "run", run)
    assert program.main([*words, "--minutes", "0"]) == [] and not done
    assert "no time was left: 10 x 1, 10 x 2" in capsys.readouterr().out
    (failure,) = program.main(words)
    assert failure.endswith("ended by signal 9") and len(done) == 3
    assert program.main(words) == [] and len(done) == 4  # the one that failed
    assert program.main(words) == [] and len(done) == 4
    assert len(json.loads((tmp_path / "results.json").read_text())["cases"]) == 3
    assert "| CoOp" in capsys.readouterr().out


def test_a_case_has_a_process_of_its_own(small, task):
    """Here with an end that is told in a line; that of a case that goes well is what the command shows."""
    measured, wrong = program.run({**task(), "backbone": FIRST, "weights": "nowhere.pt"})
    assert not measured and wrong.startswith("ValueError: unknown backbone")


@pytest.mark.parametrize(
    "status, out, err, wanted",
    [
        (0, 'noise\n{"a": 1}', "", ({"a": 1}, "")),
        (-9, "", "", ({}, "ended by signal 9, which is most often for want of memory")),
        (1, "", "Traceback\nRuntimeError: no\n", ({}, "RuntimeError: no")),
        (1, "", "", ({}, "without a word")),
    ],
)
def test_how_a_case_ends(status, out, err, wanted, monkeypatch):
    done = SimpleNamespace(returncode=status, stdout=out, stderr=err)
    monkeypatch.setattr(program.subprocess, "run", lambda *_, **__: done)
    assert program.run({}) == wanted
