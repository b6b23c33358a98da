"""CLIPs of open_clip and transformers in the one forward pass here: the same features, trained by every method."""

import json
import shutil

import pytest
import safetensors.torch
import torch
from foreign_clips import (
    MEAN,
    OPEN_CLIP,
    STD,
    TRANSFORMERS,
    open_clip_folder,
    open_clip_model,
    transformers_folder,
    transformers_model,
)

import trainers
from dassl.engine import TRAINER_REGISTRY
from orthcr.run.declarations import discover
from trainers.base import ClipTrainer
from trainers.shared import backbones, layouts
from trainers.shared.backbones import load_clip
from trainers.shared.encoders import ImageEncoder, TextEncoder
from trainers.shared.siglip import CLIP_FAMILY
from trainers.shared.tokens import tokenize

discover(trainers)
METHODS = [name for name in TRAINER_REGISTRY.registered_names() if issubclass(TRAINER_REGISTRY.get(name), ClipTrainer)]
TEXTS = ["a photo of a cat.", "dogs", "a red square on the left, and something else on the right"]


def close(mine, theirs):
    torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert theirs.abs().max() > 0.1


@pytest.mark.parametrize("case", OPEN_CLIP)
def test_features_are_those_of_open_clip(case, tmp_path, noise):
    theirs = open_clip_folder(case, tmp_path)
    mine = load_clip(str(tmp_path))
    side, length = OPEN_CLIP[case]["vision_cfg"]["image_size"], OPEN_CLIP[case]["text_cfg"]["context_length"]
    assert mine.visual.input_resolution == side and mine.context_length == length
    assert not any(p.requires_grad for p in mine.parameters())
    image, tokens = noise(3, 3, side, side), tokenize(TEXTS, length)
    padded = torch.nn.functional.pad(tokens, (0, length - tokens.shape[1]))
    close(ImageEncoder(mine.visual)(image), theirs.encode_image(image))
    close(TextEncoder(mine)(None, tokens), theirs.encode_text(padded))
    close(mine.encode_text(padded), theirs.encode_text(padded))
    close(mine.logit_scale, theirs.logit_scale)


@pytest.mark.parametrize("case", TRANSFORMERS)
def test_features_are_those_of_transformers(case, tmp_path, noise):
    theirs = transformers_folder(case, tmp_path)
    mine, side = load_clip(str(tmp_path)), theirs.config.vision_config.image_size
    image, tokens = noise(3, 3, side, side), tokenize(TEXTS)
    close(ImageEncoder(mine.visual)(image), theirs.get_image_features(image).pooler_output)
    close(TextEncoder(mine)(None, tokens), theirs.get_text_features(tokens).pooler_output)
    assert mine.context_length == theirs.config.text_config.max_position_embeddings


@pytest.mark.parametrize("case", TRANSFORMERS)
def test_names_there_and_back(case):
    state = transformers_model(case).state_dict()
    ours = layouts.from_transformers(state)
    again = layouts.to_transformers(ours)
    assert again.keys() == state.keys() and all(torch.equal(again[name], state[name]) for name in state)
    blocks = [layouts.depth(ours, prefix) for prefix in ("visual.", "")]
    assert len({name for name, _ in layouts.names(*blocks)}) == len(ours)


@pytest.mark.parametrize("case", ["quick", "gelu, 30 tokens"])
def test_configs_there_and_back(case, tmp_path):
    open_clip_folder(case, tmp_path)
    clip = load_clip(str(tmp_path))
    architecture = layouts.architecture_of(clip)
    assert architecture == layouts.open_clip_architecture(OPEN_CLIP[case])
    assert layouts.open_clip_architecture(layouts.open_clip_config(clip)) == architecture
    assert layouts.transformers_architecture(layouts.transformers_config(clip)) == architecture


@pytest.mark.parametrize("form", ["file", "bin", "module", "pickled checkpoint", "shards", "relative"])
def test_in_every_form(form, tmp_path, monkeypatch):
    folder = tmp_path / "clip"
    if form == "shards":
        model = transformers_folder("quick", folder)
        state = safetensors.torch.load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names, where = sorted(state), {}
        for k, part in enumerate((names[:30], names[30:])):
            safetensors.torch.save_file({name: state[name] for name in part}, folder / f"part{k}.safetensors")
            where |= dict.fromkeys(part, f"part{k}.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
        wanted = model.visual_projection.weight.T
    else:
        file = (
            "open_clip_pytorch_model.bin" if form in ("bin", "module", "pickled checkpoint") else "weights.safetensors"
        )
        model = open_clip_folder("quick", folder, file)
        wanted = model.visual.proj
        state = model.state_dict()
        if form == "module":
            state = {f"module.{name}": tensor for name, tensor in state.items()}
        if form in ("module", "pickled checkpoint"):
            torch.save({"epoch": 3, "name": "run", "state_dict": state}, folder / file)
    name = str(folder)
    if form in ("file", "relative"):
        monkeypatch.chdir(folder)
        name = "weights.safetensors" if form == "relative" else str(folder / "weights.safetensors")
    assert torch.equal(load_clip(name).visual.proj, wanted)


@pytest.mark.parametrize("known", [True, False], ids=["tag", "file"])
def test_by_the_name_of_open_clip(known, tmp_path, monkeypatch):
    """Their own download, in whose place stands a file here; over the activation the tag decides."""
    open_clip = pytest.importorskip("open_clip")
    model = open_clip_model("quick")
    torch.save(model.state_dict(), tmp_path / "weights.bin")
    config = json.loads(json.dumps(OPEN_CLIP["quick"] | {"quick_gelu": not known}))
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "Small", config)
    tag = {"url": "https://nowhere/weights.bin", "quick_gelu": True, "mean": tuple(MEAN)}
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_: tag if known else {})
    monkeypatch.setattr(open_clip, "download_pretrained", lambda cfg: str(tmp_path / "weights.bin"))
    name = "open_clip:Small/tag" if known else f"open_clip:Small/{tmp_path / 'weights.bin'}"
    clip = load_clip(name)
    assert torch.equal(clip.visual.proj, model.visual.proj)
    assert layouts.architecture_of(clip).image.activation == "quick_gelu"
    assert backbones.input_keys(name)["PIXEL_MEAN"] == (MEAN if known else list(CLIP_FAMILY.mean))


@pytest.mark.parametrize("kind", ["open_clip", "transformers"])
def test_by_the_name_of_a_repository(kind, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    there, here = tmp_path / "there", tmp_path / "here"
    (open_clip_folder if kind == "open_clip" else transformers_folder)("quick", there)
    (there / "pytorch_model.bin").write_text("as large as the other, and not needed")

    def snapshot_download(repository, allow_patterns="*", local_files_only=False):
        assert repository == "org/name"
        if local_files_only:
            if not here.exists():
                raise hub.errors.LocalEntryNotFoundError("not in the cache")
            return str(here)
        here.mkdir(exist_ok=True)
        for pattern in [allow_patterns] if isinstance(allow_patterns, str) else allow_patterns:
            for path in there.glob(pattern):
                shutil.copy(path, here)
        return str(here)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(hub, "list_repo_files", lambda _: [path.name for path in there.iterdir()])
    assert backbones.input_keys("hf-hub:org/name")["PIXEL_STD"] == STD
    assert not [*here.glob("*.safetensors")], "the config needs no weights"
    same = load_clip("hf-hub:org/name").state_dict(), load_clip(str(there)).state_dict()
    assert all(torch.equal(a, b) for a, b in zip(*(state.values() for state in same), strict=True))
    assert not (here / "pytorch_model.bin").exists()
    monkeypatch.setattr(hub, "list_repo_files", None)  # all is in the cache now: the hub is not asked again
    assert torch.equal(load_clip("hf-hub:org/name").state_dict()["logit_scale"], same[0]["logit_scale"])


def test_a_download_that_fails_says_so(monkeypatch, one_line):
    hub = pytest.importorskip("huggingface_hub")

    def fails(*_, **__):
        raise RuntimeError("no\nnetwork")

    monkeypatch.setattr(hub, "snapshot_download", fails)
    with pytest.raises(OSError, match="org/name cannot be downloaded") as error:
        load_clip("hf-hub:org/name")
    assert "no network" in one_line(error)


# ------------------------------------------------------------------ what does not fit

VISION, TEXT = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 8}, {"width": 64, "heads": 1, "layers": 1}
REFUSED = {
    "SigLIP of CLIP's encoders": ("open_clip", {"init_logit_bias": -10.0}, "SigLIP"),
    "CoCa": ("open_clip", {"multimodal_cfg": {"width": 64}}, "CoCa"),
    "ResNet": ("open_clip", {"vision_cfg": {"layers": [3, 4, 6, 3], "width": 64}}, "ResNet"),
    "timm": ("open_clip", {"vision_cfg": {"timm_model_name": "convnext_base"}}, "convnext_base"),
    "text of HF": ("open_clip", {"text_cfg": {"hf_model_name": "roberta-base"}}, "roberta-base"),
    "tokenizer": ("open_clip", {"text_cfg": {"vocab_size": 32000}}, "tokenizer"),
    "pooled by attention": ("open_clip", {"vision_cfg": VISION | {"attentional_pool": True}}, "attentional_pool"),
    "not causal": ("open_clip", {"text_cfg": TEXT | {"no_causal_mask": True}}, "no_causal_mask"),
    "layer scale": ("open_clip", {"vision_cfg": VISION | {"ls_init_value": 1e-4}}, "ls_init_value"),
    "naflex": ("transformers", {"model_type": "siglip2"}, '"siglip2"'),
    "image alone": ("transformers", {"model_type": "clip_vision_model"}, '"clip_vision_model"'),
    "activation": ("transformers", {"text_config": {"hidden_act": "relu"}}, '"relu"'),
    "not square": ("transformers", {"vision_config": {"image_size": [32, 64]}}, "square"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused_with_the_reason(case, tmp_path, one_line, make_cfg):
    kind, config, reason = REFUSED[case]
    if kind == "open_clip":
        config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT} | config
        (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    else:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"} | config))
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="does not fit") as error:
        load_clip(str(tmp_path))
    assert reason in one_line(error) and str(tmp_path) in one_line(error)
    with pytest.raises(ValueError, match="does not fit"):  # before anything is loaded or drawn
        make_cfg("MODEL.BACKBONE.NAME", tmp_path)


@pytest.mark.parametrize(
    "name", ["coca_ViT-B-32", "RN50", "convnext_base", "xlm-roberta-base-ViT-B-32", "ViT-L-14-CLIPA"]
)
def test_models_of_open_clip_that_do_not_fit(name, tmp_path):
    open_clip = pytest.importorskip("open_clip")
    with pytest.raises(ValueError):
        layouts.open_clip_architecture(open_clip.get_model_config(name))


def test_models_of_open_clip_that_fit():
    open_clip = pytest.importorskip("open_clip")
    sizes = {"ViT-B-16": 224, "ViT-L-14-336": 336, "ViT-H-14-quickgelu": 224, "ViT-bigG-14": 224, "ViT-g-14": 224}
    for name, side in sizes.items():
        architecture = layouts.open_clip_architecture(open_clip.get_model_config(name))
        assert architecture.side == side
        assert (architecture.text.activation == "quick_gelu") == ("quickgelu" in name)


@pytest.mark.parametrize("damage", ["no json", "no object", "no vision_cfg", "lacks a tensor", "no weights"])
def test_damaged_folders_give_one_line(damage, tmp_path, one_line):
    open_clip_folder("quick", tmp_path)
    config, weights = tmp_path / "open_clip_config.json", tmp_path / "open_clip_model.safetensors"
    if damage == "no json":
        config.write_text("{")
    elif damage == "no object":
        config.write_text("[]")
    elif damage == "no vision_cfg":
        config.write_text('{"model_cfg": {"embed_dim": 3}}')
    elif damage == "no weights":
        weights.unlink()
    else:
        state = safetensors.torch.load_file(weights)
        del state["visual.ln_post.weight"]
        safetensors.torch.save_file(state, weights)
    with pytest.raises(ValueError) as error:
        load_clip(str(tmp_path))
    assert str(tmp_path) in one_line(error)


# ------------------------------------------------------------------ in the config, and in training


@pytest.mark.parametrize("kind", ["open_clip", "transformers"])
def test_its_preprocessing_goes_into_the_config(kind, tmp_path, make_cfg, monkeypatch):
    folder = tmp_path / "clip"
    side = 40
    if kind == "open_clip":
        open_clip_folder("gelu, 30 tokens", folder)
    else:
        transformers_folder("gelu, 33 tokens", folder)
    monkeypatch.chdir(tmp_path)
    cfg = make_cfg("MODEL.BACKBONE.NAME", "clip")
    assert cfg.MODEL.BACKBONE.NAME == str(folder)
    assert tuple(cfg.INPUT.SIZE) == (side, side) and cfg.INPUT.INTERPOLATION == "bilinear"
    assert list(cfg.INPUT.PIXEL_MEAN) == MEAN and list(cfg.INPUT.PIXEL_STD) == STD
    own = make_cfg("MODEL.BACKBONE.NAME", "clip", "INPUT.PIXEL_MEAN", [0.1, 0.2, 0.3])
    assert list(own.INPUT.PIXEL_MEAN) == [0.1, 0.2, 0.3] and list(own.INPUT.PIXEL_STD) == STD


def test_other_backbones_change_nothing(make_cfg, random_clip, tmp_path):
    torch.save(random_clip().state_dict(), tmp_path / "clip.pt")
    plain, other = make_cfg(), make_cfg("MODEL.BACKBONE.NAME", tmp_path / "clip.pt")
    assert plain.INPUT == other.INPUT


@pytest.mark.parametrize("name", METHODS)
def test_every_trainer_trains_on_one(make_trainer, take_steps, tmp_path, name):
    open_clip_folder("gelu, 30 tokens", tmp_path / "clip")
    opts = ["MODEL.BACKBONE.NAME", tmp_path / "clip", "DATALOADER.TRAIN_X.BATCH_SIZE", 8]
    trainer = make_trainer(*opts, trainer=name, dataset="Digits")
    if trainer.optim is not None:
        learner = trainer.model.get_submodule(trainer.learner)
        if name == "LPpp":  # encodes the images before each training, also a resumed one
            trainer.encode_once()
        trainer.fit()
        before = {key: value.clone() for key, value in learner.state_dict().items()}
        losses = [step["loss"] for step in take_steps(trainer, 2)]
        assert all(loss == loss for loss in losses)
        assert any(not torch.equal(before[key], value) for key, value in learner.state_dict().items())
    batch = next(iter(trainer.test_loader))["img"][:4]
    trainer.set_model_mode("eval")
    with torch.no_grad():
        assert trainer.model_inference(batch).isfinite().all()


def test_a_prompt_that_is_too_long_for_it(make_trainer, tmp_path, one_line):
    open_clip_folder("gelu, 30 tokens", tmp_path / "clip")
    own = ["TRAINER.COOP.CTX_INIT", "", "TRAINER.COOP.N_CTX", 28]
    with pytest.raises(ValueError, match="of at most 30") as error:
        make_trainer("MODEL.BACKBONE.NAME", tmp_path / "clip", *own, trainer="CoOp", dataset="Digits")
    one_line(error)


WRONG = [
    ("open_clip", "quick_gelu", "false"),
    ("open_clip", "vision_cfg.head_width", 0),
    ("open_clip", "vision_cfg.head_width", "64"),
    ("open_clip", "vision_cfg.norm_kwargs", {"eps": 1e999}),
    ("open_clip", "text_cfg.norm_kwargs", {"eps": -1}),
    ("open_clip", "text_cfg.heads", True),
    ("open_clip", "vision_cfg.image_size", 10**9),
    ("transformers", "vision_config.layer_norm_eps", 1e999),
    ("transformers", "text_config.num_attention_heads", 0),
    ("transformers", "text_config.num_attention_heads", "8"),
    ("transformers", "vision_config.image_size", 0),
    ("transformers", "vision_config", "abc"),
]


@pytest.mark.parametrize("kind, key, value", WRONG)
def test_numbers_that_no_clip_has(kind, key, value, tmp_path, one_line):
    """In the config files of others: one line that says where, before the weights are read."""
    (open_clip_folder if kind == "open_clip" else transformers_folder)("quick", tmp_path)
    file = tmp_path / ("open_clip_config.json" if kind == "open_clip" else "config.json")
    config = json.loads(file.read_text())
    node = config.get("model_cfg", config)
    *sections, leaf = key.split(".")
    for section in sections:
        node = node[section]
    node[leaf] = value
    file.write_text(json.dumps(config).replace("Infinity", "1e999"))
    with pytest.raises(ValueError, match=str(tmp_path)) as error:
        backbones.input_keys(str(tmp_path))
    assert one_line(error)


@pytest.mark.parametrize("mean", [[1], [1, 2, 3], "abc", [0.5, 0.5, None], 5])
def test_pixels_that_no_clip_has(mean, tmp_path, one_line):
    transformers_folder("quick", tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"image_mean": mean}))
    with pytest.raises(ValueError, match=str(tmp_path)) as error:
        backbones.input_keys(str(tmp_path))
    assert one_line(error)
