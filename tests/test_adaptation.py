"""Methods that adapt at test time, in predict.py and export.py."""

from pathlib import Path

import pytest

from orthcr.compare.command_line import parse_arguments, protocols_of
from orthcr.compare.methods import methods_of
from orthcr.compare.schedule import make_plan
from orthcr.compare.stages import Method
from orthcr.deploy.exporter import export
from orthcr.deploy.predictor import Predictor
from orthcr.reports.tables import tables
from orthcr.reports.tree import collect
from orthcr.run.flags import parse
from orthcr.run.runner import main, run
from trainers.shared.views import Views

SMALL = ["VERBOSE", "False", "USE_CUDA", "False", "DATASET.SUBSAMPLE_CLASSES", "base", "TEST.NO_TEST", "True"]


@pytest.fixture
def model(pictures, tmp_path):
    def make(trainer, *pairs):
        out = tmp_path / trainer
        assert main(["--root", str(pictures), "--output-dir", str(out), "--trainer", trainer, *SMALL, *pairs]) == 0
        return out

    return make


def answers(predictor, images):
    return {p.image: p.every for p in predictor(images, every=True)}


def test_tpt_tunes_each_image_by_the_same_views(model, pictures, capsys):
    images = sorted(map(str, pictures.rglob("*.png")))[:5]
    out = model("TPT", "TRAINER.TPT.VIEWS", "8", "TRAINER.TPT.SELECTION_P", "0.5")
    predictor = Predictor(out, device="cpu")
    assert "TPT adapts to each image by itself, from random views of it" in capsys.readouterr().err
    assert isinstance(predictor.transform, Views) and predictor.transform.n == 8
    first = answers(predictor, images)
    for image, probabilities in answers(Predictor(out, device="cpu"), images[::-1]).items():
        assert probabilities == pytest.approx(first[image], abs=1e-5)
    predictor.trainer.model.steps = 0
    untuned = answers(predictor, images)
    assert all(max(abs(p - q) for p, q in zip(first[k], untuned[k], strict=True)) > 1e-4 for k in images)


def test_the_caches_of_tda_live_in_the_predictor(model, pictures, capsys):
    images = sorted(map(str, pictures.rglob("*.png")))[:5]
    predictor = Predictor(model("TDA"), device="cpu")
    assert "TDA adapts to the images so far, in their order" in capsys.readouterr().err
    first, again = answers(predictor, images), answers(predictor, images)
    assert any(first[k] != pytest.approx(again[k], abs=1e-6) for k in images), "they were in the caches before"


@pytest.mark.parametrize("trainer", ["TPT", "TDA"])
@pytest.mark.parametrize("to", ["openai", "onnx"])
def test_no_file_adapts(trainer, to, model, tmp_path):
    with pytest.raises(ValueError, match=f"{trainer} adapts to .*, but an exported file cannot adapt: use predict.py"):
        export(str(model(trainer)), to, str(tmp_path / "made"))
    assert not (tmp_path / "made").exists()


# ------------------------------------------------------------------ the protocol


def test_the_plan_of_tta():
    """Both transfers, every seed of what adapts, one of zero-shot CLIP, nothing trained."""
    args = parse_arguments(["--protocol", "tta", "--seeds", "1", "2"])
    names = methods_of(args.protocol, args.trainers)
    assert {"TPT", "TDA", "ZeroshotCLIP"} <= set(names) and not {"OrthCR", "GDA", "TipAdapter"} & set(names)
    jobs = make_plan([Method(name) for name in ("ZeroshotCLIP", "TDA")], protocols_of(args.protocol), args)
    assert [(job.kind, job.runs[0].spec.seed) for job in jobs] == [("ZeroshotCLIP", 1), ("TDA", 1), ("TDA", 2)]
    tested = {Path(each.spec.dataset_config_file).stem for each in jobs[-1].runs}
    assert {"shapes", "digits", "shapes_fog"} <= tested and len(tested) == 10
    with pytest.raises(ValueError, match="tta trains nothing, but CoOp is trained"):
        methods_of(["tta"], ["TPT", "CoOp"])
    with pytest.raises(SystemExit):
        parse_arguments(["--protocol", "tta", "base2new"])


def test_results_of_two_seeds_are_a_mean(pictures, tmp_path):
    results = []
    for seed in (1, 2):
        words = ["--root", str(pictures), "--output-dir", str(tmp_path / f"seed{seed}"), "--seed", str(seed)]
        results.append(run(parse([*words, "--trainer", "TDA", *SMALL[:-2]])))
    assert all(r["adapts"] and not r["trained"] for r in results)
    wanted = {seed: r["accuracy"] for seed, r in enumerate(results, 1)}
    cells = [cell for table in tables(collect([tmp_path])[0]) for cell in table.cells if cell.metric == "accuracy"]
    assert wanted in [cell.values for cell in cells]
