"""Families of CLIPs beside OpenAI's: their features against their own libraries, and every trainer on them."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from clip.model import CLIP
from PIL import Image
from torch.nn import functional as F

from dassl.config import get_cfg_default, merge_config
from dassl.data.data_manager import first_resize
from dassl.data.transforms import build_transform
from dassl.engine import TRAINER_REGISTRY
from orthcr import Predictor
from orthcr.deploy.exporter import export
from orthcr.deploy.picture_reader import PictureReader
from orthcr.run.runner import run
from orthcr.run.spec import RunSpec
from orthcr.run.trained import load_trained
from tests.foreign_clips import SIGLIP_KINDS, SIGLIP_WORDS, siglip_folder
from tests.test_trainers import METHODS
from trainers.shared.backbones import input_keys, load_clip
from trainers.shared.classifier import ClipClassifier
from trainers.shared.cutout import class_attention
from trainers.shared.layouts import merge_long_positions
from trainers.shared.tokens import canonical

NAMES = ["plain red circle", "star", "blue square"]
# methods that SigLIP cannot have, and the reason
CAUSAL, CLASS_TOKEN = "a start token and causal attention", "the class token"
REFUSED = {
    **dict.fromkeys(["CoOp", "CoCoOp", "KgCoOp", "ProGrad", "DePT", "TPT"], CAUSAL),
    **dict.fromkeys(["MaPLe", "CoPrompt", "IVLP", "PromptSRC", "TCP"], CAUSAL),
    **dict.fromkeys(["MMRL", "MMRLpp"], CLASS_TOKEN),
}


@pytest.fixture(scope="module", params=SIGLIP_KINDS)
def siglip(request, tmp_path_factory):
    """(the folder, the library's model in fp64) of a small SigLIP."""
    folder = tmp_path_factory.mktemp("siglip")
    return folder, siglip_folder(request.param, folder).double()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("siglip")
    siglip_folder("transformers", path)
    return path


def features_of(model, image, ids):
    """The features that the library itself gives."""
    if hasattr(model, "get_image_features"):
        pooled = model.get_image_features(image), model.get_text_features(input_ids=ids)
        return tuple(getattr(f, "pooler_output", f) for f in pooled)
    return model.encode_image(image), model.encode_text(ids)


def test_features_are_those_of_the_library(siglip):
    path, library = siglip
    model = ClipClassifier(load_clip(str(path)), NAMES, ["a photo of a {}."]).double()
    image = torch.randn(5, 3, 32, 32, dtype=torch.float64)
    ids = model.text_encoder.tokenize([f"a photo of a {name}." for name in NAMES])
    assert ids.shape == (3, 16)
    with torch.no_grad():
        f, g = features_of(library, image, ids)
        torch.testing.assert_close(model.image_encoder(image), f, atol=1e-9, rtol=0)
        torch.testing.assert_close(model.text_encoder(None, ids), g, atol=1e-9, rtol=0)
        logits = model.logit_scale * F.normalize(f, dim=1) @ F.normalize(g, dim=1).T
        torch.testing.assert_close(model.eval()(image), logits, atol=1e-9, rtol=0)
        model.text_encoder.at_once = 2
        torch.testing.assert_close(model.text_encoder(None, ids), g, atol=1e-9, rtol=0)


def test_gradients_in_parts_are_those_of_the_whole(siglip):
    path, _ = siglip
    model = ClipClassifier(load_clip(str(path)), NAMES, ["a {}"]).double()
    weight, ids = model.text_encoder.text_projection, model.text_encoder.tokenize(NAMES)
    grads = []
    for at_once in (0, 1):
        model.text_encoder.at_once = at_once
        weight.requires_grad_()
        (model.text_encoder(None, ids) ** 3).sum().backward()
        grads.append(weight.grad.clone())
        weight.grad = None
    torch.testing.assert_close(*grads, atol=1e-10, rtol=1e-10)


TEXTS = ["A Photo, of a star!", "plain-red_circle &amp; square ", "blue", "Star " * 20]


@pytest.mark.parametrize("kind", SIGLIP_KINDS)
def test_tokens_are_those_of_the_library(kind, tmp_path):
    siglip_folder(kind, tmp_path)
    encoder = ClipClassifier(load_clip(str(tmp_path)), NAMES, ["a {}"]).text_encoder
    if kind == "transformers":  # whose tokenizers of SigLIP put the text into lower case
        tokenizer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path)
        room = {"padding": "max_length", "truncation": True, "max_length": 16}
        expected = tokenizer([text.lower() for text in TEXTS], return_tensors="pt", **room).input_ids
    else:
        expected = pytest.importorskip("open_clip").get_tokenizer(f"local-dir:{tmp_path}")(TEXTS)
    assert torch.equal(encoder.tokenize(TEXTS, cut=True), expected)
    assert torch.equal(encoder.tokenize(TEXTS[:3]), expected[:3])


def test_padding_is_on_the_side_of_the_tokenizer(tmp_path):
    siglip_folder("transformers", tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"padding_side": "left"}))
    encoder = ClipClassifier(load_clip(str(tmp_path)), NAMES, ["a {}"]).text_encoder
    row = encoder.tokenize(["blue star"])[0].tolist()
    assert [SIGLIP_WORDS[i] for i in row] == ["</s>"] * 13 + ["blue", "star", "</s>"]


def test_the_tokenizer_of_open_clip_is_canonical_and_pads(tmp_path):
    assert canonical("A_photo,  of: a Plain-Red circle. ") == "a photo of a plainred circle"
    siglip_folder("open_clip", tmp_path)
    encoder = ClipClassifier(load_clip(str(tmp_path)), NAMES, ["a {}"]).text_encoder
    row = encoder.tokenize(["A PHOTO, of a star!"])[0].tolist()
    assert [SIGLIP_WORDS[i] for i in row] == ["a", "photo", "of", "a", "star"] + ["</s>"] * 11
    with pytest.raises(ValueError, match="too long, 18 tokens of at most 16"):
        encoder.tokenize(["star " * 17])
    assert encoder.tokenize(["star " * 17], cut=True)[0].tolist()[-2:] == [SIGLIP_WORDS.index("star"), 0]


def test_a_folder_without_tokenizer_is_one_line(tmp_path, one_line):
    siglip_folder("transformers", tmp_path)
    for file in tmp_path.glob("*token*"):
        file.unlink()
    with pytest.raises(ValueError, match="has no tokenizer") as error:
        load_clip(str(tmp_path))
    assert "tokenizer.json" in one_line(error)


def test_a_tokenizer_that_needs_a_library_is_one_line(tmp_path, one_line):
    if importlib.util.find_spec("sentencepiece"):
        pytest.skip("sentencepiece is installed")
    siglip_folder("transformers", tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "SiglipTokenizer"}))
    with pytest.raises(ValueError, match="needs a further library") as error:
        load_clip(str(tmp_path))
    assert "SentencePiece" in one_line(error)


def test_its_images_are_squashed_to_halves(siglip, make_cfg):
    path, _ = siglip
    keys = input_keys(str(path))
    assert keys["PIXEL_MEAN"] == keys["PIXEL_STD"] == [0.5] * 3
    assert keys["RESIZE"] == "squash" and keys["SIZE"] == (32, 32)


@pytest.mark.parametrize("kind", SIGLIP_KINDS)
def test_its_images_are_so_where_its_files_do_not_say_it(kind, tmp_path):
    siglip_folder(kind, tmp_path)
    if kind == "transformers":
        (tmp_path / "preprocessor_config.json").unlink()
    else:
        file = tmp_path / "open_clip_config.json"
        file.write_text(json.dumps({"model_cfg": json.loads(file.read_text())["model_cfg"]}))
    keys = input_keys(str(tmp_path))
    assert keys["PIXEL_MEAN"] == keys["PIXEL_STD"] == [0.5] * 3 and keys["RESIZE"] == "squash"


def test_a_way_of_resizing_that_is_not_here_is_refused(tmp_path, one_line):
    siglip_folder("open_clip", tmp_path)
    file = tmp_path / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["preprocess_cfg"]["resize_mode"] = "longest"
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="resize_mode 'longest'") as error:
        input_keys(str(tmp_path))
    assert str(tmp_path) in one_line(error)


def test_prompts_are_refused_not_ignored(folder):
    encoder = ClipClassifier(load_clip(str(folder)), NAMES, ["a {}"]).text_encoder
    ids = encoder.tokenize(NAMES)
    with pytest.raises(ValueError, match=CAUSAL):
        encoder(encoder.token_embedding(ids), ids)
    with pytest.raises(ValueError, match=CAUSAL):
        encoder(None, ids, deep={1: torch.zeros(2, 64)})


def test_deep_image_prompts_are_those_of_hooks_on_the_library(siglip):
    """Prompts behind the patches, replaced before later blocks, which the pooling sees as well."""
    path, library = siglip
    encoder = ClipClassifier(load_clip(str(path)), NAMES, ["a {}"]).double().image_encoder
    width = encoder.conv1.out_channels
    image, first = torch.randn(3, 3, 32, 32, dtype=torch.float64), torch.randn(2, width, dtype=torch.float64)
    later = {i: torch.randn(2, width, dtype=torch.float64) for i in (1, 3)}
    is_open_clip = hasattr(library, "visual")
    blocks = library.visual.trunk.blocks if is_open_clip else library.vision_model.encoder.layers

    def insert(_, args):
        return torch.cat([args[0], first.expand(3, -1, -1)], dim=1), *args[1:]

    def replace(i):
        return lambda _, args: (torch.cat([args[0][:, :-2], later[i].expand(3, -1, -1)], dim=1), *args[1:])

    hooks = [blocks[0].register_forward_pre_hook(insert)]
    hooks += [blocks[i].register_forward_pre_hook(replace(i)) for i in later]
    try:
        with torch.no_grad():
            expected = library.encode_image(image) if is_open_clip else library.get_image_features(image).pooler_output
            actual = encoder(image, first, deep=later)
            assert (actual - encoder(image)).abs().max() > 1e-3
    finally:
        for hook in hooks:
            hook.remove()
    torch.testing.assert_close(actual, expected, atol=1e-9, rtol=0)


def test_attention_of_the_pooling_is_that_of_the_library(folder):
    library = pytest.importorskip("transformers").SiglipModel.from_pretrained(folder).double()
    encoder = ClipClassifier(load_clip(str(folder)), NAMES, ["a {}"]).double().image_encoder
    image = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        tokens, head = library.vision_model(image).last_hidden_state, library.vision_model.head
        expected = head.attention(head.probe.repeat(3, 1, 1), tokens, tokens)[1][:, 0]
    torch.testing.assert_close(class_attention(encoder, image), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", METHODS)
def test_every_trainer_takes_a_step_or_says_why_not(name, folder, make_trainer, take_steps):
    opts = ["MODEL.BACKBONE.NAME", str(folder), "INPUT.SIZE", (32, 32)]
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]) as error:
            make_trainer(*opts, trainer=name)
        assert "SigLIP" in str(error.value)
        return
    trainer = make_trainer(*opts, trainer=name)
    if name != "TipAdapterF" and trainer.optim is not None and TRAINER_REGISTRY.get(name).learner:
        learner = trainer.model.get_submodule(trainer.learner)
        before = {key: value.clone() for key, value in learner.state_dict().items()}
        (terms,) = take_steps(trainer)
        assert all(torch.isfinite(torch.tensor(value)) for value in terms.values())
        after = learner.state_dict()
        assert any(not torch.equal(before[key], after[key]) for key in before)
    trainer.set_model_mode("eval")
    batch = next(iter(trainer.test_loader))
    with torch.no_grad():
        logits = trainer.model_inference(trainer.parse_batch_test(batch)[0])
    assert logits.isfinite().all() and logits.shape[1] == trainer.num_classes


@pytest.mark.parametrize("name", ["OrthCR", "CLIPLoRA", "FullFT"])
def test_merged_weights_are_those_of_the_library(name, folder, make_trainer, take_steps):
    """The changed weights in the library's own model give the features of the trained one."""
    library = pytest.importorskip("transformers").SiglipModel.from_pretrained(folder).double()
    trainer = make_trainer(
        "MODEL.BACKBONE.NAME", str(folder), "INPUT.SIZE", (32, 32), "OPTIM.NAME", "sgd", "OPTIM.LR", 0.5, trainer=name
    )
    take_steps(trainer, 3)
    model, image = trainer.model.double().eval(), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    assert any(place.startswith("image_pool_") for place in model.places)
    ids = model.tokens
    with torch.no_grad():
        f, g = features_of(library, image, ids)
        assert (F.normalize(f, dim=1) - model.encode_image(image)).abs().max() > 1e-6
        state = library.state_dict()
        for key, tensor in names_in_transformers(model).items():
            state[key].copy_(tensor)
        f, g = features_of(library, image, ids)
        torch.testing.assert_close(model.encode_image(image), F.normalize(f, dim=1), atol=1e-9, rtol=0)
        torch.testing.assert_close(model.encode_text(), F.normalize(g, dim=1), atol=1e-9, rtol=0)


def names_in_transformers(model):
    """The merged tensors by their names in transformers' SigLIP, written by hand."""
    named = {}
    for encoder, tensors in model.merge_weights().items():
        tower = "vision_model" if encoder == "image" else "text_model"
        for name, tensor in tensors.items():
            if name.startswith("attn_pool."):
                rest = name.removeprefix("attn_pool.").replace("attn.", "attention.").replace("mlp.c_fc", "mlp.fc1")
                named[f"vision_model.head.{rest.replace('mlp.c_proj', 'mlp.fc2')}"] = tensor
                continue
            _, _, number, rest = name.split(".", 3)
            layer = f"{tower}.encoder.layers.{number}."
            if rest == "attn.in_proj_weight":
                for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                    named[f"{layer}self_attn.{letter}_proj.weight"] = part
            else:
                rest = (
                    rest.replace("attn.out_proj", "self_attn.out_proj").replace("c_fc", "fc1").replace("c_proj", "fc2")
                )
                named[layer + rest] = tensor
    return named


def spec_of_training(folder, output, data_root) -> RunSpec:
    """A short training of OrthCR on the embedded shapes."""
    return RunSpec(
        trainer="OrthCR",
        root=str(data_root),
        dataset_config_file="configs/datasets/shapes.yaml",
        config_file="configs/trainers/OrthCR/tiny.yaml",
        backbone=str(folder),
        seed=1,
        shots=1,
        output_dir=str(output),
        opts=("OPTIM.MAX_EPOCH", "1", "DATALOADER.NUM_WORKERS", "0", "VERBOSE", "False"),
    )


def test_it_is_trained_evaluated_and_predicts(folder, tmp_path, data_root):
    results = run(spec_of_training(folder, tmp_path / "OUT", data_root))
    again = RunSpec(
        trainer="OrthCR", eval_only=True, model_dir=str(tmp_path / "OUT"), output_dir=str(tmp_path / "again")
    )
    assert run(again)["accuracy"] == results["accuracy"]
    trainer = load_trained(again)
    assert "squash" == trainer.cfg.INPUT.RESIZE
    predictor, item = Predictor(tmp_path / "OUT"), trainer.dm.dataset.test[0]
    (prediction,) = predictor(item.impath, top=len(predictor.classnames))
    batch = next(iter(trainer.test_loader))
    with torch.no_grad():
        probabilities = trainer.model_inference(batch["img"])[0].softmax(dim=-1)
    for classname, p in prediction.top:
        assert p == pytest.approx(probabilities[trainer.dm.dataset.classnames.index(classname)].item(), abs=1e-5)


def test_it_is_exported_for_onnx_and_not_in_other_forms(folder, tmp_path, data_root, one_line):
    pytest.importorskip("onnxruntime"), pytest.importorskip("onnx")
    run(spec_of_training(folder, tmp_path / "OUT", data_root))
    export(str(tmp_path / "OUT"), "onnx", str(tmp_path / "onnx"))
    trained, exported = Predictor(tmp_path / "OUT"), Predictor(tmp_path / "onnx")
    picture = Image.fromarray(torch.randint(256, (37, 90, 3), dtype=torch.uint8).numpy())
    (expected,), (actual,) = trained(picture, top=5), exported(picture, top=5)
    assert [name for name, _ in actual.top] == [name for name, _ in expected.top]
    assert [p for _, p in actual.top] == pytest.approx([p for _, p in expected.top], abs=1e-4)
    for form in ("openai", "open_clip", "transformers", "peft"):
        with pytest.raises(ValueError, match="SigLIP cannot be written in this form") as error:
            export(str(tmp_path / "OUT"), form, str(tmp_path / form))
        assert "--to onnx" in one_line(error) and not (tmp_path / form).exists()


@pytest.mark.parametrize("resize", ["shorter", "squash"])
def test_the_web_page_reads_pictures_for_its_images(resize, tmp_path):
    cfg = get_cfg_default()
    merge_config(cfg, ["INPUT.RESIZE", resize, "INPUT.SIZE", (32, 32)])
    transform, size = build_transform(cfg, is_train=False), (37, 91)
    picture = Image.fromarray(torch.randint(256, (*size, 3), dtype=torch.uint8).numpy())
    picture.save(tmp_path / "picture.png")
    pixels = PictureReader(first_resize(transform))(str(tmp_path / "picture.png"))
    assert pixels.shape == ((32, 32, 3) if resize == "squash" else (32, 78, 3))
    assert torch.equal(transform(Image.fromarray(pixels)), transform(picture))
    assert transform(picture).shape == (3, 32, 32)


# ------------------------------------------------------------------ LongCLIP


def test_longclip_adds_its_positions_as_its_code_does(tmp_path, random_clip):
    """Its code adds positions 0 to 19 of one embedding and 20 to 247 of another."""
    torch.manual_seed(0)
    small = random_clip("vit")
    state = {name: tensor.clone() for name, tensor in small.state_dict().items()}
    width = state["positional_embedding"].shape[1]
    state["positional_embedding"], state["positional_embedding_res"] = torch.randn(2, 248, width)
    path = tmp_path / "longclip.pt"
    torch.save(state, path)
    loaded = load_clip(str(path))
    assert loaded.context_length == 248
    first = torch.arange(248).unsqueeze(1) < 20
    wanted = state["positional_embedding"] * first + state["positional_embedding_res"] * ~first
    assert torch.equal(loaded.positional_embedding, wanted)
    model = ClipClassifier(loaded, NAMES, ["a photo of a {}."]).double()
    prompts = ["a very " + "long " * 150 + "text", "short"]
    ids = model.text_encoder.tokenize(prompts)
    assert ids.shape[1] > 77
    plain = CLIP(*sizes_of(state))  # OpenAI's LayerNorm computes in fp32
    plain.load_state_dict(merge_long_positions(state))
    with torch.no_grad():
        expected = plain.encode_text(F.pad(ids, (0, 248 - ids.shape[1])))
        torch.testing.assert_close(model.text_encoder(None, ids), expected.double(), atol=1e-4, rtol=1e-4)


def sizes_of(state):
    """The arguments of OpenAI's CLIP for the tensors of `random_clip`."""
    visual = state["visual.conv1.weight"]
    side = int((len(state["visual.positional_embedding"]) - 1) ** 0.5) * visual.shape[-1]
    blocks = [
        len({name.split(".")[k] for name in state if name.startswith(prefix)})
        for prefix, k in (("visual.transformer.resblocks.", 3), ("transformer.resblocks.", 2))
    ]
    width = state["ln_final.weight"].shape[0]
    text = 248, len(state["token_embedding.weight"]), width, max(1, width // 64), blocks[1]
    return state["text_projection"].shape[1], side, blocks[0], visual.shape[0], visual.shape[-1], *text


def test_siglip_needs_what_siglips_have(tmp_path, one_line):
    """A model with a logit bias and other parts is no SigLIP that is known."""
    siglip_folder("open_clip", tmp_path)
    file = tmp_path / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"]["text_cfg"]["pool_type"] = "argmax"
    file.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="pool_type is 'argmax', not 'last'") as error:
        load_clip(str(tmp_path))
    assert str(tmp_path) in one_line(error)


def test_the_table_of_the_documentation_is_that_of_this_test():
    text = (Path(__file__).parents[1] / "docs" / "backbones.md").read_text()
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.endswith("|")]
    refused = [name.strip() for names, verdict in rows if verdict.strip() == "refused" for name in names.split(",")]
    assert {name for name in refused if name in METHODS} == REFUSED.keys()


def test_similarity_needs_the_projection_of_a_class_token(folder, make_trainer, one_line):
    opts = ["MODEL.BACKBONE.NAME", str(folder), "INPUT.SIZE", (32, 32), "TRAINER.ORTHSR.CUTOUT_BY", "similarity"]
    with pytest.raises(ValueError, match=CLASS_TOKEN) as error:
        make_trainer(*opts, trainer="OrthSR")
    assert "CUTOUT_BY attention" in one_line(error)
