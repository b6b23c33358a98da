"""Loading CLIP, encoding text, zero-shot classification, and what all trainers have in common."""

import ast
import hashlib
import sys
import threading
import urllib.request
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from clip import clip
from clip.model import CLIP

import datasets
import train
import trainers
from dassl.engine import TRAINER_REGISTRY
from trainers.base import ClipTrainer
from trainers.shared import backbones
from trainers.shared.backbones import is_vit, load_clip
from trainers.shared.encoders import TextEncoder
from trainers.shared.prompts import fill_template, template_for, tokenize
from trainers.shared.templates import CUSTOM_TEMPLATES, IMAGENET_TEMPLATES

train.discover(trainers)
train.discover(datasets)
METHODS = [name for name in TRAINER_REGISTRY.registered_names() if issubclass(TRAINER_REGISTRY.get(name), ClipTrainer)]


def one_line(error):
    return "\n" not in str(error.value) and str(error.value)


# ------------------------------------------------------------------ loading


def rounded(state):
    """OpenAI's build_model keeps the weights of layers and projections in fp16: what each tensor may lose by that."""
    return {name: (t, 2**-11 * t.abs() + 2**-25) for name, t in state.items() if t.is_floating_point()}


def check_same(model, state):
    assert isinstance(model, CLIP) and not model.training
    given = model.state_dict()
    for name, (tensor, tolerance) in rounded(state).items():
        assert given[name].dtype == torch.float32
        assert bool(((given[name] - tensor).abs() <= tolerance).all()), name
    assert not any(p.requires_grad for p in model.parameters())


def as_archive(model, path):
    """A JIT archive as OpenAI's: a ScriptModule with the three integers among its tensors, weights in fp16."""
    side = model.visual.input_resolution
    for name, value in (("input_resolution", side), ("context_length", 77), ("vocab_size", model.vocab_size)):
        if hasattr(model, name):
            delattr(model, name)
        model.register_buffer(name, torch.tensor(value))
    example = torch.zeros(1, 3, side, side), tokenize(["a"])
    torch.jit.trace(model, example, check_trace=False).save(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("kind", ["vit", "resnet"])
@pytest.mark.parametrize("form", ["state dict", "checkpoint", "fp16", "archive", "safetensors"])
def test_weights_in_every_form(random_clip, tmp_path, noise, kind, form):
    model = random_clip(kind)
    state, path = {name: t.clone() for name, t in model.state_dict().items()}, tmp_path / "weights.pt"
    if form == "safetensors":
        path = tmp_path / "weights.safetensors"
        safetensors.torch.save_file(state, path)
    elif form == "archive":
        as_archive(model, str(path))
    elif form == "fp16":
        state = {name: t.half() if t.is_floating_point() else t for name, t in state.items()}
        torch.save(state, path)
    else:
        torch.save({"state_dict": state} if form == "checkpoint" else state, path)
    loaded = load_clip(str(path))
    check_same(loaded, state)
    assert is_vit(loaded) == (kind == "vit")
    side = 32 if kind == "vit" else 64
    assert loaded.visual.input_resolution == side
    image = noise(2, 3, side, side)
    with torch.no_grad():
        wanted = random_clip(kind).encode_image(image)
        torch.testing.assert_close(loaded.encode_image(image), wanted, atol=2e-2, rtol=2e-2)


def test_the_embedded_clip(tiny, root):
    check_same(tiny, safetensors.torch.load_file(root / "assets" / "tiny_clip.safetensors"))
    assert is_vit(tiny) and tiny.visual.input_resolution == 32 and tiny.context_length == 77
    again = load_clip("tiny")
    assert all(torch.equal(a, b) for a, b in zip(tiny.state_dict().values(), again.state_dict().values(), strict=True))


def test_unknown_name_gets_the_nearest_one():
    with pytest.raises(ValueError, match='did you mean "ViT-B/16"') as error:
        load_clip("ViT-B-16")
    assert one_line(error)
    with pytest.raises(ValueError, match='did you mean "tiny"'):
        load_clip("tinny")


def write_text(path):
    path.write_text("no weights at all")


def write_nothing(path):
    path.write_bytes(b"")


def save_other_net(path):
    torch.save(torch.nn.Linear(2, 3).state_dict(), path)


def save_list(path):
    torch.save([torch.zeros(2)], path)


def save_half_a_clip(path):
    names = ["text_projection", "token_embedding.weight", "logit_scale", "positional_embedding"]
    torch.save({name: torch.zeros(4, 4) for name in names}, path)


@pytest.mark.parametrize(
    "write, ending",
    [
        (write_text, ".pt"),
        (save_other_net, ".pt"),
        (write_nothing, ".pt"),
        (save_list, ".pt"),
        (save_half_a_clip, ".pt"),
        (write_text, ".safetensors"),
        (write_nothing, ".safetensors"),
    ],
)
def test_file_that_is_no_clip(tmp_path, write, ending):
    path = tmp_path / f"wrong{ending}"
    write(path)
    with pytest.raises(ValueError) as error:
        load_clip(str(path))
    assert str(path) in one_line(error)


def test_clip_with_a_missing_tensor(random_clip, tmp_path):
    state = random_clip().state_dict()
    del state["visual.ln_post.weight"]
    torch.save(state, tmp_path / "cut.pt")
    with pytest.raises(ValueError, match=r"visual\.ln_post\.weight") as error:
        load_clip(str(tmp_path / "cut.pt"))
    assert one_line(error)


def test_text_with_openais_own_attention(tiny, monkeypatch):
    """OpenAI's block adds its mask of all 77 tokens, whatever the length: a CoOp clone's clip/ does."""
    prompts = ["a photo of a red circle.", "one"]

    def attention(self, x):
        return self.attn(x, x, x, need_weights=False, attn_mask=self.attn_mask)[0]

    with torch.no_grad():
        want = tiny.encode_text(clip.tokenize(prompts))
        monkeypatch.setattr("clip.model.ResidualAttentionBlock.attention", attention)
        torch.testing.assert_close(TextEncoder(tiny)(None, tokenize(prompts)), want)


def test_pickled_code_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.save({"text_projection": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError) as error:
        load_clip(str(tmp_path / "evil.pt"))
    assert one_line(error) and not (tmp_path / "ran").exists()


def test_image_size_of_another_backbone(make_trainer):
    with pytest.raises(ValueError, match=r"INPUT\.SIZE is \(224, 224\), but tiny takes \(32, 32\)") as error:
        make_trainer("INPUT.SIZE", "(224, 224)")
    assert one_line(error)


# ------------------------------------------------------------------ downloading


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@contextmanager
def serving(folder):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty folder in place of the user's cache; 127.0.0.1 is asked directly."""
    monkeypatch.setattr(backbones, "CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(clip._download, "__defaults__", (str(tmp_path / "cache"),))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(urllib.request, "_opener", None)
    return tmp_path / "cache"


def offered(folder, model, digest=None):
    """Saves weights as `<folder>/<sha256>/ViT-S-99.pt`; returns that path below the folder."""
    torch.save(model.state_dict(), folder / "saved.pt")
    content = (folder / "saved.pt").read_bytes()
    digest = digest or hashlib.sha256(content).hexdigest()
    (folder / digest).mkdir()
    (folder / digest / "ViT-S-99.pt").write_bytes(content)
    return f"{digest}/ViT-S-99.pt"


def test_download_is_checked_and_kept(random_clip, tmp_path, cache, monkeypatch):
    model = random_clip()
    with serving(tmp_path) as address:
        monkeypatch.setitem(clip._MODELS, "ViT-S/99", f"{address}/{offered(tmp_path, model)}")
        check_same(load_clip("ViT-S/99"), model.state_dict())
    assert (cache / "ViT-S-99.pt").is_file()
    check_same(load_clip("ViT-S/99"), model.state_dict())  # the server is gone


@pytest.mark.parametrize("failure", ["refused", "checksum", "not found"])
def test_failed_download_says_what_to_put_where(random_clip, tmp_path, cache, monkeypatch, failure):
    with serving(tmp_path) as address:
        url = f"{address}/{offered(tmp_path, random_clip(), digest='0' * 64)}"
        if failure == "not found":
            url = url.replace("000/", "001/")
        monkeypatch.setitem(clip._MODELS, "ViT-S/99", url)
        if failure != "refused":
            with pytest.raises(OSError) as error:
                load_clip("ViT-S/99")
    if failure == "refused":
        with pytest.raises(OSError) as error:
            load_clip("ViT-S/99")
    message = one_line(error)
    assert message and str(cache / "ViT-S-99.pt") in message and url in message and "MODEL.BACKBONE.NAME" in message


def test_download_as_other_trainers_call_it(random_clip, tmp_path, cache):
    """Trainers written for CoOp's own copy of CLIP call clip._download(url)."""
    with serving(tmp_path) as address:
        path = clip._download(f"{address}/{offered(tmp_path, random_clip())}")
    assert Path(path).read_bytes() == (tmp_path / "saved.pt").read_bytes()


# ------------------------------------------------------------------ text

PROMPTS = [
    "x",
    "a photo of a cat.",
    "a photo of a very long-haired, grey-and-white striped cat on a mat, looking up.",
    "itap of my " + "very " * 60 + "old dog.",
]


@pytest.mark.parametrize("which", ["tiny", "vit", "resnet"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_text_cut_behind_its_end_is_the_whole_encoding(request, random_clip, which, count):
    model = request.getfixturevalue("tiny") if which == "tiny" else random_clip(which)
    prompts = PROMPTS[:count]
    tokens, whole = tokenize(prompts), clip.tokenize(prompts)
    longest = max(len(clip._tokenizer.encode(prompt)) for prompt in prompts) + 2
    assert tokens.shape == (count, longest) and longest < 77
    assert torch.equal(tokens, whole[:, :longest]) and not whole[:, longest:].any()
    with torch.no_grad():
        wanted, encoder = model.encode_text(whole), TextEncoder(model)
        torch.testing.assert_close(encoder(None, tokens), wanted, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(encoder(encoder.token_embedding(tokens), tokens), wanted, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(encoder(None, whole), wanted, atol=2e-6, rtol=1e-5)


def test_prompt_of_77_tokens_fits_and_of_78_does_not():
    assert tokenize(["cat " * 75]).shape == (1, 77)
    with pytest.raises(ValueError, match="too long.*shorten") as error:
        tokenize(["short", "cat " * 76])
    assert one_line(error)


def test_templates():
    assert fill_template("a {} of {}.", ["big_cat", "dog"]) == ["a big cat of big cat.", "a dog of dog."]
    with pytest.raises(ValueError, match="has no {}") as error:
        fill_template("a photo of a dog.", ["cat"])
    assert one_line(error)
    assert template_for("OxfordPets") == "a photo of a {}, a type of pet."
    assert template_for("OxfordPets", "my {}.") == "my {}." and template_for("Unknown") == "a photo of a {}."
    assert len(IMAGENET_TEMPLATES) == len(set(IMAGENET_TEMPLATES)) == 80
    assert all(t.count("{}") == 1 for t in [*IMAGENET_TEMPLATES, *CUSTOM_TEMPLATES.values()])
    assert all(t == t.strip() and t.endswith(".") for t in IMAGENET_TEMPLATES)


def test_template_without_a_place_for_the_class(make_trainer):
    for name in ("OrthCR", "ZeroshotCLIP"):
        with pytest.raises(ValueError, match="has no {}"):
            make_trainer(f"TRAINER.{name.upper()}.TEMPLATE", "a photo", trainer=name)


# ------------------------------------------------------------------ zero-shot


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def encoded(model, prompts):
    with torch.no_grad():
        return unit(model.encode_text(clip.tokenize(prompts)).double().numpy())


@pytest.mark.parametrize(
    "name, dataset, count",
    [
        ("ZeroshotCLIP", "Shapes", 1),
        ("ZeroshotCLIP", "Digits", 1),
        ("ZeroshotCLIP2", "Shapes", 80),
        ("ZeroshotCLIP2", "Digits", 81),
    ],
)
def test_class_features_are_the_mean_over_templates(make_trainer, tiny, name, dataset, count):
    trainer = make_trainer("DATASET.SUBSAMPLE_CLASSES", "base", trainer=name, dataset=dataset)
    own = "a photo of a digit {}." if dataset == "Digits" else "a photo of a {}."
    templates = [own] if count == 1 else [*IMAGENET_TEMPLATES, own][:count]
    assert trainer.templates() == templates and trainer.model.templates == templates
    names = [n.replace("_", " ") for n in trainer.dm.dataset.classnames]
    mean = sum(encoded(tiny, [t.format(n) for n in names]) for t in templates) / count
    image = next(iter(trainer.test_loader))["img"][:12]
    trainer.set_model_mode("eval")
    with torch.no_grad():
        features = unit(tiny.encode_image(image).double().numpy())
        given = trainer.model_inference(image).numpy()
    np.testing.assert_allclose(given, np.exp(float(tiny.logit_scale)) * features @ unit(mean).T, atol=3e-4)


def test_zero_shot_trains_nothing_and_encodes_each_class_once(make_trainer, tmp_path):
    trainer, calls = make_trainer("DATALOADER.TEST.BATCH_SIZE", 20, trainer="ZeroshotCLIP"), []
    trainer.model.text_encoder.register_forward_hook(lambda *_: calls.append(1))
    before = {name: t.clone() for name, t in trainer.model.state_dict().items()}
    trainer.train()
    assert len(calls) == 1 and 30 < trainer.results["accuracy"] <= 100
    assert not any(p.requires_grad for p in trainer.model.parameters())
    assert all(torch.equal(t, before[name]) for name, t in trainer.model.state_dict().items())
    trainer.load_model("", epoch=3)  # without a directory there is nothing to complain about


# ------------------------------------------------------------------ every trainer


@pytest.mark.parametrize("dataset", ["Shapes", "Digits"])
@pytest.mark.parametrize("name", METHODS)
def test_every_trainer_runs_on_every_embedded_data_set(make_trainer, take_steps, name, dataset):
    trainer = make_trainer("DATALOADER.TRAIN_X.BATCH_SIZE", 8, trainer=name, dataset=dataset)
    if trainer.learner:
        assert all(np.isfinite(value) for step in take_steps(trainer, 2) for value in step.values())
        assert list(trainer._models) == [trainer.learner]
    clips = [p for n, p in trainer.model.named_parameters() if n.startswith(("image_encoder.", "text_encoder."))]
    assert len(clips) > 50 and not any(p.requires_grad for p in clips)
    accuracy = trainer.test(split="val")
    assert accuracy == trainer.results["accuracy"] and 0 <= accuracy <= 100
    assert not any(module.training for module in trainer.model.modules())


@pytest.mark.parametrize("name", [name for name in METHODS if TRAINER_REGISTRY.get(name).learner])
def test_the_frozen_clip_stays_in_eval_mode(make_trainer, name):
    trainer = make_trainer(trainer=name)
    trainer.set_model_mode("train")
    assert trainer.model.training and trainer.model.get_submodule(trainer.learner).training
    assert not any(m.training for m in (*trainer.model.image_encoder.modules(), *trainer.model.text_encoder.modules()))


@pytest.mark.parametrize("precision", ["amp", "bf16"])
@pytest.mark.parametrize("name", ["OrthCR", "CoOp"])
def test_on_the_cpu_every_precision_is_fp32(make_trainer, take_steps, capsys, name, precision):
    steps = {}
    for prec in ("fp32", precision):
        trainer = make_trainer(f"TRAINER.{name.upper()}.PREC", prec, "OPTIM.LR", 0.01, trainer=name, out=prec)
        assert trainer.autocast["enabled"] is False and not trainer.scaler.is_enabled()
        assert ("fp32 is used on the CPU" in capsys.readouterr().out) == (prec != "fp32")
        torch.manual_seed(0)
        steps[prec] = take_steps(trainer, 2)
    assert steps["fp32"] == steps[precision]


@pytest.mark.parametrize("name", METHODS)
def test_unknown_precision_is_refused(make_trainer, name):
    with pytest.raises(ValueError, match="fp64"):
        make_trainer(f"TRAINER.{name.upper()}.PREC", "fp64", trainer=name)


@pytest.mark.parametrize("name", ["OrthCR", "CoOp"])
def test_the_learning_rate_moves_at_the_end_of_an_epoch_only(make_trainer, name):
    trainer = make_trainer("OPTIM.LR", 0.01, "OPTIM.MAX_EPOCH", 4, trainer=name)
    trainer.set_model_mode("train")
    batch, rates = next(iter(trainer.train_loader_x)), []
    trainer.num_batches = 2
    for trainer.batch_idx in (0, 1, 0, 1):
        trainer.forward_backward(batch)
        rates.append(trainer.get_current_lr())
    cosine = [0.01 * (1 + np.cos(np.pi * epoch / 4)) / 2 for epoch in (0, 1, 1, 2)]
    assert rates == pytest.approx(cosine)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["amp", "bf16"])
@pytest.mark.parametrize("name", ["OrthCR", "CoOp"])
def test_half_precision_on_a_gpu(make_trainer, take_steps, name, precision):
    losses = []
    for prec in ("fp32", precision):
        trainer = make_trainer("USE_CUDA", True, f"TRAINER.{name.upper()}.PREC", prec, trainer=name, out=prec)
        torch.manual_seed(0)
        losses.append([step["loss"] for step in take_steps(trainer, 2)])
        assert all(p.dtype == torch.float32 and p.is_cuda for p in trainer.model.parameters())
    assert losses[1] == pytest.approx(losses[0], rel=0.05) and losses[1] != losses[0]


# ------------------------------------------------------------------ what trainers/ may lean on

PUBLIC = {  # DESIGN.md, section 6
    "dassl.config": "get_cfg_default clean_cfg",
    "dassl.data": "DataManager DatasetWrapper",
    "dassl.data.datasets": "DATASET_REGISTRY Datum DatasetBase build_dataset",
    "dassl.data.transforms": "build_transform INTERPOLATION_MODES",
    "dassl.engine": "TRAINER_REGISTRY build_trainer TrainerBase SimpleTrainer TrainerX TrainerXU SimpleNet",
    "dassl.evaluation": "EVALUATOR_REGISTRY build_evaluator EvaluatorBase Classification",
    "dassl.metrics": "compute_accuracy cosine_distance euclidean_squared_distance compute_distance_matrix",
    "dassl.optim": "build_optimizer build_lr_scheduler",
    "dassl.utils": "mkdir_if_missing check_isfile read_json write_json set_random_seed download_url read_image "
    "collect_env_info listdir_nohidden get_most_similar_str_to_a_from_b check_availability tolist_if_not setup_logger "
    "AverageMeter MetricMeter Registry save_checkpoint load_checkpoint resume_from_checkpoint load_pretrained_weights "
    "count_num_param open_all_layers open_specified_layers",
}
OUTSIDE = {"torch", "clip", "yacs", "safetensors"}  # beside the standard library
TRAINERS = Path(trainers.__file__).parent
FILES = sorted(TRAINERS.rglob("*.py"))

# Attributes of TrainerX, SimpleTrainer and TrainerBase in Dassl.pytorch as its authors left it
ORIGINAL = set(
    """
cfg device dm optim sched model train_loader_x train_loader_u val_loader test_loader num_classes num_source_domains
lab2cname evaluator batch_idx num_batches epoch start_epoch max_epoch output_dir best_result time_start
register_model get_model_names save_model resume_model_if_exist load_model set_model_mode update_lr detect_anomaly
init_writer close_writer write_scalar train before_train after_train before_epoch after_epoch run_epoch test
parse_batch_train parse_batch_test forward_backward model_inference model_zero_grad model_backward model_update
model_backward_and_update get_current_lr check_cfg build_data_loader build_model _models _optims _scheds _writer
""".split()
)


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(TRAINERS)) for path in FILES])
def test_trainers_import_dassls_public_names_only(path):
    for item in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(item, ast.Import):
            modules = [alias.name for alias in item.names]
            assert not any(m.startswith("dassl") for m in modules), f"line {item.lineno}: import names, not modules"
        elif isinstance(item, ast.ImportFrom) and item.level == 0:
            modules = [item.module]
            if item.module.split(".")[0] == "dassl":
                unknown = {alias.name for alias in item.names} - set(PUBLIC.get(item.module, "").split())
                assert not unknown, f"line {item.lineno}: {item.module} has no public {unknown}"
                continue
        else:
            continue
        tops = {module.split(".")[0] for module in modules}
        assert tops <= OUTSIDE | set(sys.stdlib_module_names), f"line {item.lineno}: {tops}"


def class_nodes():
    """Every class below trainers/ by name; names are unique."""
    nodes = {}
    for path in FILES:
        for item in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(item, ast.ClassDef):
                nodes.setdefault(item.name, []).append(item)
    return nodes


def own_names(node):
    """What a class defines: methods, class attributes and everything it sets on self."""
    names = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
    for item in node.body:
        if isinstance(item, ast.Assign | ast.AnnAssign):
            names |= {target.id for target in getattr(item, "targets", None) or [item.target]}
    return names | {a.attr for a in attributes_of_self(node) if isinstance(a.ctx, ast.Store)}


def attributes_of_self(node):
    def of_self(value):
        is_super = isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "super"
        return is_super or (isinstance(value, ast.Name) and value.id == "self")

    return [item for item in ast.walk(node) if isinstance(item, ast.Attribute) and of_self(item.value)]


@pytest.mark.parametrize("name", ["ClipTrainer", *METHODS])
def test_trainers_use_what_original_dassl_has(name):
    """So that each of them also runs on Dassl.pytorch itself."""
    known, nodes = set(ORIGINAL), class_nodes()
    lineage = [c.__name__ for c in (ClipTrainer if name == "ClipTrainer" else TRAINER_REGISTRY.get(name)).__mro__]
    for parent in lineage:
        for node in nodes.get(parent, []):
            known |= own_names(node)
    (node,) = nodes[name]
    used = {attribute.attr for attribute in attributes_of_self(node)}
    assert name in ("ZeroshotCLIP2",) or used & {"cfg", "node", "model", "templates"}, "the walk found nothing"
    assert used <= known, f"{name} uses {used - known}"


def test_dassl_has_every_name_that_is_promised():
    for module, names in PUBLIC.items():
        found = __import__(module, fromlist=["x"])
        assert all(hasattr(found, name) for name in names.split()), module
