"""Every method against figures that its authors' code gave, and the command that checks such figures."""

import json

import numpy as np
import pytest
import torch

import trainers
from orthcr.run.declarations import discover
from tests.golden import coop, recipe
from tests.golden.__main__ import FIGURES, check, main

METHODS = sorted(path.stem for path in FIGURES.glob("*.npz"))


@pytest.fixture(autouse=True)
def float64():
    discover(trainers)
    before, threads = torch.get_default_dtype(), torch.get_num_threads()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("method", METHODS)
def test_the_golden_figures_of_the_originals(method):
    results = list(check(FIGURES, [method]))
    assert results and all(agrees for _, agrees in results), "\n".join(line for line, _ in results)


def test_there_are_figures_of_every_case():
    """One file for each module of this package that computes some."""
    modules = {path.stem for path in FIGURES.parent.glob("*.py")} - {"__init__", "__main__", "case", "recipe"}
    assert set(METHODS) == modules and len(METHODS) == 24


def test_the_tiny_clip_is_the_recipes():
    assert recipe.weight(0, "ln_final.bias", [128])[:2].tolist() == [0.01763916015625, 0.004001617431640625]
    state = recipe.tiny_clip(sha256="b65563ed0f148f919e67a77d860bdb66cfead414305b78ae4888a6e8ba238748").state_dict()
    assert state["logit_scale"].item() == np.float16(np.log(20))
    with pytest.raises(ValueError, match="checksum"):
        recipe.tiny_clip(sha256="0" * 64)


@pytest.fixture
def made(tmp_path):
    """A folder with two figures of CoOp, of other classes, another template and another start than the originals'."""
    variant = {
        "settings": {"OPTIM": {"NAME": "sgd", "LR": 0.1, "MOMENTUM": 0.0}, "TRAINER.COOP": {"N_CTX": 2}},
        "trained": {"prompt_learner.ctx": {"shape": [2, 128], "initial": "0.03 * RandomState(7)"}},
    }
    inputs = {"classnames": ["a dog", "cat"], "labels": [1, 0], "template": "one {}."}
    inputs |= {name: f"RandomState({k})" for k, name in enumerate(("images", "more_images", "test_images"))}
    spec = {"method": "coop", "inputs": inputs, "variants": {"mine": variant}}
    (tmp_path / "coop.json").write_text(json.dumps(spec))
    figures = coop.Golden("mine", spec, recipe.SIZES, "", {}).figures()
    arrays = {name: figures[name] for name in ("logits", "after/prompt_learner.ctx")}

    def save(**changes):
        np.savez(tmp_path / "coop.npz", **{f"mine/{name}": value for name, value in {**arrays, **changes}.items()})
        return tmp_path

    return save, arrays


def test_a_folder_of_other_figures_is_checked_by_its_json_alone(made, capsys):
    save, arrays = made
    assert main([str(save())]) == 0
    assert "1 of 1 cases agree" in capsys.readouterr().out
    off = arrays["logits"].copy()
    off[0, 0] += 1e-7
    assert main([str(save(logits=off))]) == 1
    assert "FAILED" in capsys.readouterr().out
    assert main([str(save(unheard=np.zeros(3)))]) == 1
    assert "not computed" in capsys.readouterr().out


def test_a_folder_without_figures(tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "no golden figures" in capsys.readouterr().err
