"""Descriptions of classes: their reader, the trainer CuPL, the frozen side of the methods that take them, the runs."""

import json
import random

import pytest
import torch

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import read_json
from datasets.shared import drawing
from orthcr.deploy.exporter import plain_clip
from orthcr.deploy.predictor import Predictor
from orthcr.run.checks import check_same_run
from orthcr.run.config import setup_cfg
from orthcr.run.declarations import default_cfg
from orthcr.run.flags import parse
from orthcr.run.runner import main
from tests.prompt_tools import LABEL, NAMES, bare, close, in_float64, plain_logits, plain_text, spoken, unit
from trainers.base import node_of
from trainers.shared import templates
from trainers.shared.descriptions import read_descriptions, read_file
from trainers.shared.tokens import tokenize

WORDS = "red striped heart with many small dots on a hollow arrow seen from the side of one old photo".split()
SMALL = {"CoPrompt": ["TRAINER.CoPrompt.PROMPT_DEPTH", 2], "PromptSRC": ["TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION", 2]}
SMALL["PromptSRC"] += ["TRAINER.PROMPTSRC.PROMPT_DEPTH_TEXT", 2]
SMALL |= {name: [f"TRAINER.{name.upper()}.BLOCK_SIZE", 16] for name in ("OrthCR", "OrthSR")}
METHODS = ["KgCoOp", "PromptSRC", "OrthCR", "OrthSR"]


def some_sentences(counts):
    """A different random text for each of `counts` sentences of the classes."""
    return [[" ".join(random.sample(WORDS, random.randint(2, 9))) for _ in range(n)] for n in counts]


def write(path, sentences, names=NAMES):
    path.write_text(json.dumps(dict(zip(names, sentences, strict=True))))
    return str(path)


def key(name):
    return f"TRAINER.{node_of(TRAINER_REGISTRY.get(name))}.DESCRIPTIONS"


# ------------------------------------------------------------------ the reader


def test_names_are_matched_as_clip_reads_them(tmp_path, capsys):
    sentences = some_sentences([1, 3, 2, 1])
    names = ["CAT", "Dark Blue_striped  heart", "unhyphenatedword", "X-ray"]
    file = write(tmp_path / "d.json", sentences, names)
    order = random.sample(range(4), 4)
    assert read_descriptions(file, [NAMES[k] for k in order]) == [sentences[k] for k in order]
    assert not capsys.readouterr().out
    assert read_descriptions(file, NAMES[1:2]) == sentences[1:2]
    assert '3 classes that are not here: "CAT", "unhyphenatedword", "X-ray"\n' in capsys.readouterr().out


@pytest.mark.parametrize(
    "content, message",
    [
        (["cat"], "is no object of class names"),
        ({}, "is no object of class names"),
        ({"cat": "a cat"}, 'class "cat" must have a list'),
        ({"cat": []}, "must have a list of 1 to 1,000"),
        ({"cat": ["a"] * 1001}, "must have a list of 1 to 1,000"),
        ({"cat": ["a", 5]}, "has '5', but needs texts"),
        ({"cat": [" "]}, "has ' ', but needs texts"),
        ({"cat": ["a" * 2001]}, "texts of 1 to 2,000 characters"),
        ({"cat": ["a \ud800"]}, "characters that are no text"),
        ({"hot dog": ["a"], "Hot_dog": ["b"]}, '"hot dog" and "Hot_dog", which are the same to CLIP'),
        ({"cta": ["a"], "dog": ["b"]}, 'for 4 of 4 classes: "cat", .*; the nearest to the first is "cta"'),
    ],
)
def test_files_of_another_form_are_refused(tmp_path, content, message, one_line):
    (tmp_path / "d.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as caught:
        read_descriptions(str(tmp_path / "d.json"), NAMES)
    assert len(one_line(caught)) < 400


def test_the_embedded_file_has_every_embedded_class(root):
    content = read_file(str(root / "configs" / "descriptions" / "embedded.json"))
    classes = [
        *map(drawing.name, drawing.UNSEEN),
        *drawing.PATTERNS,
        *drawing.COLOURS,
        *drawing.SHAPES,
        *drawing.DIGITS,
    ]
    assert sorted(content) == sorted(classes) and max(map(len, content.values())) == 3


# ------------------------------------------------------------------ the features


@pytest.mark.parametrize("ensemble", ["none", "one", "select"])
def test_cupl_is_the_mean_over_the_sentences(random_clip, noise, monkeypatch, tmp_path, ensemble):
    plain, image = in_float64(random_clip(), monkeypatch), noise(5, 3, 32, 32).double()
    sentences = some_sentences([1, 4, 2, 3])
    sentences[2][0] = "heart " * 90  # cut, as by clip.tokenize(truncate=True)
    file = write(tmp_path / "d.json", sentences)
    model = bare("CuPL", plain, "TRAINER.CUPL.DESCRIPTIONS", file, "TRAINER.CUPL.TEMPLATES", ensemble).model.eval()
    forms = {"none": [], "one": ["a photo of a {}."], "select": templates.IMAGENET_TEMPLATES_SELECT}[ensemble]
    sentences[2][0] = "heart " * 75
    means = []
    for k, texts in enumerate(sentences):
        prompts = [spoken(form)[k] for form in forms]
        means.append(plain_text(plain, prompts + texts).mean(dim=0))
    with torch.no_grad():
        close(model(image), plain_logits(plain, image, unit(torch.stack(means))))
    with pytest.raises(ValueError, match="give --descriptions FILE"):
        bare("CuPL", plain)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_changes_through_g0_alone(random_clip, noise, tmp_path, name):
    """Beside the same method without the file, whose frozen text is exchanged by hand: the same to the bit."""
    image, sentences = noise(5, 3, 32, 32), some_sentences([2, 1, 3, 3])
    file = write(tmp_path / "d.json", sentences)
    torch.manual_seed(0)
    given = bare(name, random_clip(), *SMALL.get(name, []), key(name), file)
    torch.manual_seed(0)
    other = bare(name, random_clip(), *SMALL.get(name, []))
    gen = torch.Generator().manual_seed(random.randrange(10**6))
    for p, q in zip(*(t.model.get_submodule(t.learner).parameters() for t in (given, other)), strict=True):
        p.data.add_(0.1 * torch.randn(p.shape, generator=gen))
        q.data.copy_(p)

    def losses(trainer):
        torch.manual_seed(1)  # of OrthSR's holes
        terms, z = trainer.losses(image, LABEL)
        parameters = list(trainer.model.get_submodule(trainer.learner).parameters())
        return terms, z, torch.autograd.grad(sum(terms.values()), parameters)

    (terms, z, gradients), (before, z_before, _) = losses(given), losses(other)
    assert torch.equal(z, z_before) and torch.equal(terms["ce"], before["ce"])
    assert any(not torch.equal(terms[term], before[term]) for term in terms)

    plain = random_clip()
    lengths = 1 if name != "PromptSRC" else 0  # its mean is of features of any length
    g_0 = []
    for texts in sentences:
        encoded = given.model.text_encoder(None, tokenize(texts))
        g_0.append((unit(encoded) if lengths else encoded).mean(dim=0))
        torch.testing.assert_close(unit(encoded), plain_text(plain, texts), atol=2e-5, rtol=0)
    torch.testing.assert_close(given.model.frozen_text, unit(torch.stack(g_0)), atol=1e-6, rtol=0)
    other.model._frozen_cache["templates"] = given.model.frozen_text
    after, z_after, wanted = losses(other)
    assert torch.equal(z_after, z) and all(torch.equal(after[term], terms[term]) for term in terms)
    assert all(torch.equal(a, b) for a, b in zip(gradients, wanted, strict=True))


@pytest.mark.parametrize("name", [*METHODS, "CuPL"])
def test_the_prompts_of_the_templates_as_sentences_change_nothing(random_clip, noise, tmp_path, name):
    """One for each template: features, losses and gradients to the bit."""
    image, forms = noise(5, 3, 32, 32), ["a photo of a {}."]
    if name == "PromptSRC":
        forms = templates.PROMPTSRC_TEMPLATES
    file = write(tmp_path / "d.json", [[spoken(form)[k] for form in forms] for k in range(len(NAMES))])
    trainers = []
    for words in ([key(name), file], []):
        torch.manual_seed(0)
        trainers.append(
            bare(name if words or name != "CuPL" else "ZeroshotCLIP", random_clip(), *SMALL.get(name, []), *words)
        )
    with torch.no_grad():
        a, b = (trainer.model.frozen_text for trainer in trainers)
    assert torch.equal(a, b)
    if name == "CuPL":
        return
    outcomes = []
    for trainer in trainers:
        torch.manual_seed(1)
        terms, z = trainer.losses(image, LABEL)
        parameters = list(trainer.model.get_submodule(trainer.learner).parameters())
        outcomes.append([*terms.values(), z, *torch.autograd.grad(sum(terms.values()), parameters)])
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


def test_an_untuned_text_encoder_keeps_its_template(random_clip, noise, tmp_path):
    """With ENCODERS image, g is the template's feature, and g0 that of the sentences."""
    file = write(tmp_path / "d.json", some_sentences([2, 2, 2, 2]))
    opts = ["TRAINER.ORTHCR.ENCODERS", "['image']", "TRAINER.ORTHCR.BLOCK_SIZE", 16]
    given, other = (bare("OrthCR", random_clip(), *opts, *words) for words in ([key("OrthCR"), file], []))
    assert torch.equal(given.model.encode_text(), other.model.frozen_text)
    assert not torch.allclose(given.model.frozen_text, other.model.frozen_text, atol=1e-3)
    with torch.no_grad():
        image = noise(5, 3, 32, 32)
        assert torch.equal(given.model.eval()(image), other.model.eval()(image))


def test_an_evaluation_reads_no_file(random_clip, noise, tmp_path):
    for name in METHODS:
        model = bare(name, random_clip(), *SMALL.get(name, []), key(name), str(tmp_path / "gone.json")).model.eval()
        with torch.no_grad():
            model(noise(2, 3, 32, 32))
        with pytest.raises(OSError, match="gone.json"):
            model.frozen_text  # noqa: B018


# ------------------------------------------------------------------ runs


def test_flags_that_have_no_effect_are_refused(tmp_path, one_line):
    file = write(tmp_path / "d.json", some_sentences([1, 1, 1, 1]))
    cases = {
        "CoOp takes no --descriptions": ["--trainer", "CoOp", "--descriptions", file],
        "TCP takes no --descriptions": ["--trainer", "TCP", "--descriptions", file],
        "--descriptions is empty": ["--trainer", "KgCoOp", "--descriptions", ""],
        "in an evaluation of KgCoOp": ["--trainer", "KgCoOp", "--eval-only", "--descriptions", file],
        "there are no descriptions": ["--trainer", "OrthCR", "--descriptions", str(tmp_path / "gone.json")],
        "does not have the checksum": ["--trainer", "CuPL", key("CuPL"), file, f"{key('CuPL')}_SHA256", "abc"],
        "has no effect without descriptions": ["--trainer", "OrthCR", f"{key('OrthCR')}_SHA256", "abc"],
    }
    for message, words in cases.items():
        with pytest.raises((ValueError, OSError), match=message) as caught:
            setup_cfg(parse([*words, "USE_CUDA", "False"]))
        one_line(caught)
    with pytest.raises(ValueError, match="has no effect with TRAINER.ORTHCR.REG none"):
        bare("OrthCR", None, key("OrthCR"), file, "TRAINER.ORTHCR.REG", "none")
    assert "DESCRIPTIONS" not in default_cfg("DePT").TRAINER.COOP


def test_a_run_of_cupl_keeps_its_sentences(pictures, tmp_path, one_line, capsys):
    """They are in its directory, where predict.py and evaluations of other classes find them."""
    names = read_json(pictures / "shapes" / "split.json")["test"]
    names = list(dict.fromkeys(name for _, _, name in names))
    file = tmp_path / "mine.json"
    write(file, [[f"a photo of a {name}."] for name in names], names)
    common = ["--root", str(pictures), "--output-dir", str(tmp_path / "OUT"), "--trainer"]
    small = ["VERBOSE", "False", "USE_CUDA", "False", "DATASET.SUBSAMPLE_CLASSES", "base"]
    assert main([*common, "CuPL", "--descriptions", str(file), *small]) == 0
    assert main([common[0], common[1], "--output-dir", str(tmp_path / "ZS"), "--trainer", "ZeroshotCLIP", *small]) == 0
    results, zero_shot = (read_json(tmp_path / run / "results.json") for run in ("OUT", "ZS"))
    assert results["accuracy"] == zero_shot["accuracy"] and results["trained"] is False
    assert results["config"]["TRAINER.CUPL.DESCRIPTIONS"] == str(file)
    assert (tmp_path / "OUT" / "descriptions.json").read_bytes() == file.read_bytes()

    file.write_text(file.read_text().replace("a photo", "a bad photo"))
    with pytest.raises(ValueError, match="OUT holds a run with TRAINER.CUPL.DESCRIPTIONS_SHA256") as caught:
        check_same_run(setup_cfg(parse([*common, "CuPL", "--descriptions", str(file), *small])))
    one_line(caught)
    file.unlink()
    evaluate = ["--eval-only", "--model-dir", str(tmp_path / "OUT"), "--output-dir", str(tmp_path / "E")]
    assert main([*evaluate, "DATASET.SUBSAMPLE_CLASSES", "new"]) == 0
    assert read_json(tmp_path / "E" / "results.json")["classes"] == "new"
    image = next((pictures / "shapes" / "images").rglob("test*.png"))
    predictor = Predictor(tmp_path / "OUT", device="cpu")
    (answer,) = predictor(image)
    assert answer.classname in names[:20] and predictor.classnames == names[:20]
    with pytest.raises(
        ValueError, match="CuPL does not change CLIP's weights, but has its own class features from sentences"
    ):
        plain_clip(predictor.trainer)
    assert predictor.trainer.model.prompts()[3] == [f"a photo of a {names[3]}."]
    with pytest.raises(ValueError, match='no sentences for 1 of 2 classes: "a dog"'):
        Predictor(tmp_path / "OUT", classes=[names[30], "a dog"], device="cpu")
    capsys.readouterr()


def test_wrong_descriptions_end_a_training_before_it_begins(pictures, tmp_path, capsys):
    """The output directory holds no settings then: the same command with a mended file is no conflict."""
    file = tmp_path / "d.json"
    argv = ["--root", str(pictures), "--output-dir", str(tmp_path / "OUT"), "--trainer", "KgCoOp"]
    argv += ["--descriptions", str(file), "VERBOSE", "False", "USE_CUDA", "False", "OPTIM.MAX_EPOCH", "1"]
    argv += ["DATASET.SUBSAMPLE_CLASSES", "base", "DATASET.NUM_SHOTS", "1"]
    write(file, [["a heart"]], ["heart"])
    assert main(argv) == 1
    assert "no sentences for 20 of 20 classes" in capsys.readouterr().err
    names = read_json(tmp_path / "OUT" / "classes.json") if (tmp_path / "OUT" / "classes.json").exists() else []
    assert not names
    names = list(dict.fromkeys(row[2] for row in read_json(pictures / "shapes" / "split.json")["train"]))[:20]
    write(file, [[f"one {name}"] for name in names], names)
    assert main(argv) == 0
    assert not (tmp_path / "OUT" / "descriptions.json").exists()
    file.unlink()
    evaluate = ["--eval-only", "--model-dir", str(tmp_path / "OUT"), "DATASET.SUBSAMPLE_CLASSES", "new"]
    assert main(evaluate) == 0
