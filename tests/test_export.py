"""Exported models in the libraries that they are for: the same logits, by the code that their README.md shows."""

import json
import re

import numpy as np
import pytest
import torch
from clip import clip
from foreign_clips import open_clip_folder, transformers_folder
from PIL import Image

import export as entry
from dassl.infrastructure.files import read_json, write_json
from dassl.utils import set_random_seed
from orthcr.deploy.card import table
from orthcr.deploy.exporter import export, load_on_cpu, plain_clip
from orthcr.deploy.predictor import Predictor
from trainers.shared.backbones import HUB_NAMES, input_keys, load_clip
from trainers.shared.classifier import ClipClassifier
from trainers.shared.tokens import tokenize

NAMES = ["zero", "a photo, of it", "Über_house's 7th", "seven", "eight"]
FORMATS = {
    "openai": "clip",
    "open_clip": "open_clip",
    "transformers": "transformers",
    "onnx": "onnxscript",
    "peft": "peft",
}


@pytest.fixture
def small(random_clip, tmp_path):
    """A random CLIP in OpenAI's layout: every tensor away from its neutral start."""
    torch.save(random_clip().state_dict(), tmp_path / "small.pt")
    return str(tmp_path / "small.pt")


@pytest.fixture
def make_run(make_cfg, make_trainer, tmp_path, small):
    """make_run(trainer, KEY, VALUE...): the directory of a training whose learner is random, and the trainer."""

    def make(name, *opts, backbone=None, classes=NAMES):
        opts = ["MODEL.BACKBONE.NAME", backbone or small, *opts]
        folder, trainer = (
            tmp_path / f"run-{name}",
            make_trainer(*opts, trainer=name, dataset="Digits", out=f"run-{name}"),
        )
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(trainer.cfg.dump())
        write_json(classes, folder / "classes.json")
        if trainer.learner:
            set_random_seed(2)
            trainer.fit()
            for parameter in trainer.model.get_submodule(trainer.learner).parameters():
                parameter.data += 0.1 * torch.randn_like(parameter)
            trainer.save_model(0, str(folder))
        return str(folder)

    return make


def logits_of(run, images):
    """Of the trained model, before any export."""
    trainer = load_on_cpu(run, None, None)
    with torch.no_grad():
        return trainer.model_inference(images)


def pictures(n, side=50):
    noise = np.random.default_rng(0).integers(0, 256, (n, 3 * side // 10, side // 10, 3), dtype=np.uint8)
    return [Image.fromarray(array).resize((side, 3 * side), Image.Resampling.BICUBIC) for array in noise]


def close(mine, theirs):
    assert theirs.std() > 0.05, "the classes differ"
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-5)


def with_libraries(to, folder, images):
    """Logits [n, n_cls] by the library itself; images float [n, 3, H, W]."""
    prompts = [f"a photo of a digit {name.replace('_', ' ')}." for name in read_json(folder / "export.json")["classes"]]
    if to == "openai":
        model, _ = clip.load(str(folder / "model.pt"), device="cpu")
        model.load_state_dict(torch.load(folder / "model.pt"))
        return model(images, clip.tokenize(prompts))[0]
    if to == "open_clip":
        open_clip = pytest.importorskip("open_clip")
        model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        return model.eval().get_logits(images, open_clip.get_tokenizer(f"local-dir:{folder}")(prompts))[0]
    if to == "transformers":
        transformers = pytest.importorskip("transformers")
        model = transformers.CLIPModel.from_pretrained(folder)
        text = transformers.CLIPProcessor.from_pretrained(folder)(text=prompts, padding=True, return_tensors="pt")
        return model(pixel_values=images, **text).logits_per_image
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"image": images.numpy()})[0])


CASES = [("OrthCR", to) for to in ("openai", "open_clip", "transformers")]
CASES += [("OrthSR", "openai"), ("FullFT", "open_clip"), ("CLIPLoRA", "transformers"), ("ZeroshotCLIP", "openai")]


@pytest.mark.parametrize("name, to", CASES)
def test_the_libraries_give_the_same_logits(make_run, tmp_path, noise, name, to):
    pytest.importorskip(FORMATS[to])
    run, folder, images = make_run(name), tmp_path / "exported", noise(4, 3, 32, 32)
    export(run, to, str(folder))
    wanted = logits_of(run, images)
    with torch.no_grad():
        close(with_libraries(to, folder, images), wanted)
    trained = load_on_cpu(run, None, None).model
    if name != "ZeroshotCLIP":  # it is another model than the one that it started from
        assert (wanted - ClipClassifier(trained_from(run), NAMES, trained.templates).eval()(images)).abs().max() > 0.1


def trained_from(run):
    return load_clip(load_on_cpu(run, None, None).cfg.MODEL.BACKBONE.NAME)


@pytest.mark.parametrize("name", ["OrthCR", "MaPLe"])
def test_onnxruntime_gives_the_same_logits(make_run, tmp_path, noise, name):
    """The classifier of a method that changes weights or prompts, of any batch size; and by the Predictor."""
    pytest.importorskip("onnxscript")
    run, folder = make_run(name, *["TRAINER.MAPLE.PROMPT_DEPTH", 2] * (name == "MaPLe")), tmp_path / "exported"
    export(run, "onnx", str(folder))
    for n in (1, 5):
        images = noise(n, 3, 32, 32, seed=n)
        close(with_libraries("onnx", folder, images), logits_of(run, images))
    session = pytest.importorskip("onnxruntime").InferenceSession(str(folder / "model.onnx"))
    meta, facts = session.get_modelmeta().custom_metadata_map, read_json(folder / "export.json")
    assert json.loads(meta["classes"]) == facts["classes"] == NAMES and meta["trainer"] == name
    assert json.loads(meta["input"]) == facts["input"]
    assert [p.name for p in folder.iterdir() if p.suffix == ".onnx"] == ["model.onnx"]
    a, b = (list(Predictor(where, device="cpu")(pictures(3))) for where in (run, folder))
    assert [p.probability for p in a] == pytest.approx([p.probability for p in b], abs=1e-4)
    with pytest.raises(ValueError, match="fixed class features"):
        Predictor(folder, ["a cat", "a dog"])


DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.mark.parametrize("to", FORMATS)
def test_the_card(make_run, tmp_path, monkeypatch, to):
    """All of its programs run; what the first one answers is held against predict.py in test_parity.py."""
    pytest.importorskip(FORMATS[to])
    run, folder = make_run("OrthCR", classes=NAMES[:3]), tmp_path / "exported"
    export(run, to, str(folder))
    (photo,) = pictures(1)
    photo.save(folder / "image.jpg")
    monkeypatch.chdir(folder)
    card = (folder / "README.md").read_text()
    programs = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(programs) == (2 if to == "open_clip" else 1)
    for program in programs:
        exec(program, {})
    assert "MIT" in card and "OrthCR on Digits" in card and all(f"`{name}`" in card for name in NAMES[:3])
    assert "emperature" not in card


@pytest.mark.parametrize("to", ["openai", "open_clip", "transformers"])
def test_a_round_trip_as_a_backbone(make_run, make_cfg, tmp_path, noise, to):
    """Every tensor comes back, and the preprocessing, which is not OpenAI's."""
    run, folder = (
        make_run("OrthCR", "INPUT.PIXEL_STD", [0.1, 0.2, 0.3], "INPUT.INTERPOLATION", "bilinear"),
        tmp_path / "x",
    )
    export(run, to, str(folder))
    merged, back = plain_clip(load_on_cpu(run, None, None)).state_dict(), load_clip(str(folder)).state_dict()
    assert merged.keys() == back.keys() and all(torch.equal(merged[name], back[name]) for name in merged)
    assert input_keys(str(folder))["PIXEL_STD"] == [0.1, 0.2, 0.3]
    cfg = make_cfg("MODEL.BACKBONE.NAME", folder, trainer="ZeroshotCLIP", dataset="Digits")
    assert list(cfg.INPUT.PIXEL_STD) == [0.1, 0.2, 0.3] and cfg.INPUT.INTERPOLATION == "bilinear"


@pytest.mark.parametrize("start, to", [("open_clip", "transformers"), ("transformers", "open_clip")])
def test_a_foreign_clip_goes_out_again(make_run, tmp_path, noise, start, to):
    """GELU, other heads, text length and MLP: tuned here, and run there."""
    pytest.importorskip(to)
    made, case = (open_clip_folder, "gelu, 30 tokens") if start == "open_clip" else (transformers_folder, "quick")
    made(case, tmp_path / "clip")
    run, folder = make_run("FullFT", backbone=str(tmp_path / "clip")), tmp_path / "exported"
    images = noise(3, 3, *load_on_cpu(run, None, None).cfg.INPUT.SIZE)
    export(run, to, str(folder))
    with torch.no_grad():
        close(with_libraries(to, folder, images), logits_of(run, images))
    if start == "open_clip":
        with pytest.raises(ValueError, match="clip.load cannot build"):
            export(run, "openai", str(tmp_path / "other"))
        assert not (tmp_path / "other").exists()


def test_the_tokenizer_of_transformers_is_clips(make_run, tmp_path):
    transformers = pytest.importorskip("transformers")
    export(make_run("ZeroshotCLIP"), "transformers", str(tmp_path / "x"))
    tokenizer = transformers.CLIPTokenizer.from_pretrained(tmp_path / "x")
    texts = ["A photo of a  cat.", "don't, it's 42%!", "naïve Übergröße", "日本 – emoji 🙂", "x" * 60, "a_b/c-d (e)"]
    mine = tokenize(texts)
    theirs = tokenizer(texts).input_ids
    assert [row[: len(ids)].tolist() for row, ids in zip(mine, theirs, strict=True)] == theirs
    assert tokenizer.model_max_length == 77 and len(tokenizer) == 49408


@pytest.mark.parametrize("name", ["CoOp", "CLIP_Adapter", "TipAdapter"])
def test_what_a_plain_clip_cannot_hold_is_refused(make_run, tmp_path, one_line, name):
    run = make_run(name, classes=DIGITS)
    for to in ("openai", "open_clip", "transformers"):
        with pytest.raises(ValueError, match=name) as error:
            export(run, to, str(tmp_path / "x"))
        assert "--to onnx" in one_line(error) and not (tmp_path / "x").exists()


def test_class_features_that_depend_on_the_image_are_refused(make_run, tmp_path, one_line):
    pytest.importorskip("onnxscript")
    with pytest.raises(ValueError, match="CoCoOp cannot be exported to ONNX") as error:
        export(make_run("CoCoOp"), "onnx", str(tmp_path / "x"))
    assert one_line(error) and not (tmp_path / "x").exists()


def test_refusals(make_run, tmp_path, capsys, one_line):
    run = make_run("ZeroshotCLIP")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    words = ["--model-dir", run, "--to", "openai", "--output"]
    assert entry.main([*words, str(tmp_path / "full")]) == 1
    assert "not empty" in capsys.readouterr().err and len([*(tmp_path / "full").iterdir()]) == 1
    assert entry.main([*words, str(tmp_path / "new"), "--strength", "0.5"]) == 1
    assert "no --strength" in capsys.readouterr().err and not (tmp_path / "new").exists()
    with pytest.raises(FileNotFoundError, match="no config.yaml"):
        export(str(tmp_path / "full"), "openai", str(tmp_path / "new"))
    assert entry.main([*words, str(tmp_path / "new")]) == 0
    assert "float32" in capsys.readouterr().out
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")], "nothing is left beside it"


def test_predicting_with_a_plain_clip(make_run, tmp_path):
    """Other classes and prompts go with it, too."""
    run, photos = make_run("OrthCR"), pictures(3)
    export(run, "openai", str(tmp_path / "clip"))
    for opts in ({}, {"classes": ["a cat", "a dog"]}, {"template": "a drawing of a {}."}):
        a, b = (list(Predictor(where, device="cpu", **opts)(photos)) for where in (run, tmp_path / "clip"))
        assert [p.classname for p in a] == [p.classname for p in b]
        assert [p.probability for p in a] == pytest.approx([p.probability for p in b], abs=1e-5)


def test_at_a_strength(make_run, tmp_path, noise, small, one_line):
    """At 0 it is the plain CLIP, in between the model of that strength; what is exported has one strength."""
    run, images = make_run("OrthCR"), noise(3, 3, 32, 32)
    for s in (0.0, 0.5):
        export(run, "openai", str(tmp_path / f"s{s}"), strength=s)
        tuned = load_on_cpu(run, None, s)
        with torch.no_grad():
            given = load_clip(str(tmp_path / f"s{s}")).encode_image(images)
            wanted = load_clip(small).encode_image(images) if s == 0 else tuned.model.encode_image(images)
        torch.testing.assert_close(given / given.norm(dim=1, keepdim=True), wanted / wanted.norm(dim=1, keepdim=True))
    with pytest.raises(ValueError, match="is an export, which has one strength") as error:
        Predictor(tmp_path / "s0.5", strength=1.0)
    one_line(error)


def test_figures_are_those_of_the_run(make_run, tmp_path):
    run = make_run("OrthCR")
    row = {"dataset": "Digits", "classes": "base", "shots": 16, "seed": 1, "split": "test", "accuracy": 87.5}
    write_json(row | {"config": {}}, tmp_path / "run-OrthCR" / "results.json")
    export(run, "openai", str(tmp_path / "x"))
    assert read_json(tmp_path / "x" / "export.json")["figures"] == [row]
    assert "| Digits | base | 16 | 1 | test | 87.5 % |" in (tmp_path / "x" / "README.md").read_text()


def test_the_card_says_all_where_nothing_limits_the_shots():
    row = {"dataset": "Images", "classes": "all", "shots": -1, "seed": 1, "split": "test", "accuracy": 87.5}
    assert table([row]).splitlines()[-1] == "| Images | all | all | 1 | test | 87.5 % |"


# ------------------------------------------------------------------ PEFT

ADAPTERS = [  # method, settings, strength
    ("OrthCR", [], None),
    ("OrthCR", ["TRAINER.ORTHCR.BLOCK_SIZE", 8, "TRAINER.ORTHCR.LAYERS", [-1]], 0.4),
    ("OrthSR", ["TRAINER.ORTHSR.N_BLOCKS", 4, "TRAINER.ORTHSR.ENCODERS", ["image"]], None),
    ("CLIPLoRA", ["TRAINER.CLIPLORA.R", 3, "TRAINER.CLIPLORA.LOGIT_SCALE", 60.0], 0.7),
    ("CLIPLoRA", ["TRAINER.CLIPLORA.WEIGHTS", ["v", "out", "c_fc", "c_proj"], "TRAINER.CLIPLORA.ALPHA", 2.0], None),
]


@pytest.mark.parametrize("name, opts, strength", ADAPTERS)
def test_peft_gives_the_probabilities_of_predict(make_run, tmp_path, monkeypatch, name, opts, strength):
    """transformers and PEFT alone, beside the adapter and after its merging; and the way back in here."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    run, folder = make_run(name, *opts), tmp_path / "adapter"
    trained = Predictor(run, device="cpu", strength=strength)
    monkeypatch.setattr("orthcr.deploy.exporter.temperature_of", lambda *words: 1.7)
    export(run, "peft", str(folder), strength=strength)
    facts = read_json(folder / "export.json")
    photos = pictures(4, side=32)
    pixels = torch.stack([trained.transform(photo) for photo in photos])
    trained.temperature = 1.7
    wanted = torch.tensor([p.every for p in trained(photos, every=True)])
    assert wanted.std(dim=0).max() > 0.003, "the images differ"

    base = transformers.CLIPModel.from_pretrained(folder / "base")
    prompts = [prompts[0] for prompts in facts["prompts"]]
    text = transformers.CLIPTokenizer.from_pretrained(folder)(prompts, padding=True, return_tensors="pt")

    def probabilities(model):
        with torch.no_grad():
            output = model(pixel_values=pixels, **text)
        return (facts["logit_scale"] * output.image_embeds @ output.text_embeds.T).softmax(dim=1)

    assert (probabilities(base) - wanted).abs().max() > 0.01, "the adapter changes the CLIP"
    model = peft.PeftModel.from_pretrained(base, folder)
    torch.testing.assert_close(probabilities(model), wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(probabilities(model.merge_and_unload()), wanted, atol=1e-5, rtol=0)

    back = torch.tensor([p.every for p in Predictor(folder, device="cpu")(photos, every=True)])
    torch.testing.assert_close(back, wanted, atol=1e-5, rtol=0)
    size = (folder / "adapter_model.safetensors").stat().st_size
    assert size < 0.5 * (folder / "base" / "model.safetensors").stat().st_size


def test_a_base_of_the_hub_is_named_and_not_written(make_run, small, tmp_path, monkeypatch):
    pytest.importorskip("peft")
    run = make_run("OrthCR")
    monkeypatch.setitem(HUB_NAMES, small, "openai/clip-small")
    export(run, "peft", str(tmp_path / "x"))
    assert read_json(tmp_path / "x" / "adapter_config.json")["base_model_name_or_path"] == "openai/clip-small"
    card = (tmp_path / "x" / "README.md").read_text()
    assert 'CLIPModel.from_pretrained("openai/clip-small")' in card and "base_model: openai/clip-small" in card
    assert not (tmp_path / "x" / "base").exists()


@pytest.mark.parametrize("name", ["FullFT", "CLIP_SVD", "BlockFT", "CoOp", "ZeroshotCLIP"])
def test_other_forms_are_refused_by_peft(make_run, tmp_path, one_line, name):
    pytest.importorskip("peft")
    run = make_run(name, classes=DIGITS)
    with pytest.raises(ValueError, match=f"--to peft takes OrthCR, OrthSR and CLIPLoRA only .got {name}") as error:
        export(run, "peft", str(tmp_path / "x"))
    assert one_line(error) and not (tmp_path / "x").exists()


@pytest.mark.parametrize("kind", ["LORA", "LORA alpha / r", "OFT"])
def test_an_adapter_of_peft_comes_in(tmp_path, noise, kind):
    """Made by PEFT itself, with random tensors, on a CLIPModel in a folder."""
    peft, transformers = pytest.importorskip("peft"), pytest.importorskip("transformers")
    transformers_folder("quick", tmp_path / "clip")
    base = transformers.CLIPModel.from_pretrained(tmp_path / "clip").eval()
    targets = ["q_proj", "out_proj", "fc2"]
    if kind == "OFT":
        config = peft.OFTConfig(r=2, oft_block_size=0, target_modules=targets, use_cayley_neumann=False)
    else:
        config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=targets, use_rslora=kind == "LORA")
    model = peft.get_peft_model(base, config).eval()
    set_random_seed(5)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "adapter")
    images = noise(3, 3, *[base.config.vision_config.image_size] * 2)
    with torch.no_grad():
        wanted = model.get_base_model().get_image_features(images)
        wanted = getattr(wanted, "pooler_output", wanted)
        given = load_clip(str(tmp_path / "adapter")).encode_image(images)
        before = load_clip(str(tmp_path / "clip")).encode_image(images)
    torch.testing.assert_close(given, wanted, atol=1e-5, rtol=1e-5)
    assert (before - given).abs().max() > 0.01


def test_adapters_of_other_forms(tmp_path, one_line):
    good = {"peft_type": "LORA", "base_model_name_or_path": "tiny", "lora_alpha": 2}
    for wrong in (
        {"peft_type": "IA3"},
        {"use_dora": True},
        {"rank_pattern": {"a": 3}},
        {"peft_type": "OFT"},
        {"peft_type": "OFT", "use_cayley_neumann": True},
        {"base_model_name_or_path": str(tmp_path)},
        {"base_model_name_or_path": "nobody/nothing"},
    ):
        write_json(good | wrong, tmp_path / "adapter_config.json")
        with pytest.raises(ValueError, match="adapter_config.json does not fit") as error:
            load_clip(str(tmp_path))
        one_line(error)
