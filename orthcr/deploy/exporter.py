"""The export of a trained model into other formats: OpenAI's, open_clip's, transformers', PEFT's, ONNX.

A method that changes weights is merged into a plain CLIP. Prompts, adapters and caches run beside CLIP, and a plain
CLIP has no place for them. An ONNX file has: it holds the whole classifier, with the class features.
"""

import contextlib
import glob
import io
import json
import logging
import os
import os.path as osp
import warnings
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from clip import clip
from clip.model import CLIP
from torch import nn

import trainers
from dassl.config import flatten
from dassl.engine import TRAINER_REGISTRY
from dassl.infrastructure.files import SCRATCH, atomic_write, file_hash, read_json, scratch_folder, sweep, write_json
from orthcr.deploy.card import write_card
from orthcr.deploy.exported import EXPORT, INPUT_KEYS, OnnxClassifier
from orthcr.deploy.peft_adapter import adapter_of, logits_of
from orthcr.run.config_files import read_model_config
from orthcr.run.declarations import discover
from orthcr.run.spec import RunSpec
from orthcr.run.temperature import temperature_of
from orthcr.run.trained import check_is_training, load_trained, read_model_classes
from trainers.base import ClipTrainer
from trainers.shared import layouts
from trainers.shared.backbones import ADAPTER, ADAPTER_BASE, ADAPTER_CONFIG, HUB_NAMES, is_vit, library, load_clip
from trainers.shared.classifier import ClipClassifier
from trainers.shared.weights import TunedCLIP

OPSET = 20
LIMIT = 1e-3  # largest difference of logits between an export and its model
PLAIN = "openai, open_clip and transformers are plain CLIPs; --to onnx holds it"


def export(model_dir: str, to: str, output: str, epoch: int | None = None, strength: float | None = None) -> None:
    """Write a model into a folder, all of it or nothing, and print a summary.

    Args:
        model_dir: output directory of a training, or of a zero-shot run.
        to: openai, open_clip, transformers, peft or onnx.
        output: folder to be made.
        epoch: epoch of the checkpoint; None: the best on val if kept, else the last.
        strength: fraction of the update, from 0 to 1; None: the strength of the model.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: the format cannot hold the model, or `output` is not empty.
        FloatingPointError: the written files give other logits than the model.
    """
    output = osp.abspath(osp.expanduser(output))
    if osp.exists(output) and (not osp.isdir(output) or os.listdir(output)):
        raise ValueError(f"--output {output} exists and is not empty: give another folder, or remove it")
    model_dir = osp.expanduser(model_dir)
    with contextlib.redirect_stdout(io.StringIO()):  # hides the log of a training
        trainer = load_on_cpu(model_dir, epoch, strength)
    facts = describe(trainer, to, model_dir, temperature_of(trainer, model_dir, epoch))
    image = torch.randn(3, 3, *trainer.cfg.INPUT.SIZE)
    with torch.no_grad():
        expected = trainer.model(image) / facts["temperature"]  # also fills the model's cache of class features
    parent = osp.dirname(output)
    os.makedirs(parent, exist_ok=True)
    sweep(parent, SCRATCH.format("orthcr-export"))  # of exports that were killed
    with scratch_folder(parent, "orthcr-export") as folder:
        if to == "onnx":
            facts |= write_onnx(trainer, folder, facts)
            logits = OnnxClassifier(folder, len(facts["classes"])).model_inference(image)
        elif to == "peft":
            frozen = load_clip(trainer.cfg.MODEL.BACKBONE.NAME)
            facts |= write_peft(trainer, frozen, folder, facts)
            logits = logits_of(folder, frozen, facts, trainer.model.tokens, image)
        else:
            model = plain_clip(trainer, facts["temperature"])
            facts |= WRITERS[to](model, folder, facts)
            with torch.no_grad():
                logits = ClipClassifier(load_clip(folder), facts["classes"], facts["templates"]).eval()(image)
        difference = (logits - expected).abs().max().item()
        if not difference < LIMIT * max(1, expected.abs().max().item() / 10):
            raise FloatingPointError(f"the files give logits that are off by {difference:.2g}: nothing is kept")
        facts["files"] = {name: file_hash(osp.join(folder, name)) for name in files_in(folder)}
        write_json(facts, osp.join(folder, EXPORT), seal=True)
        write_card(facts, folder)
        os.chmod(folder, 0o777 & ~umask())
        os.rename(folder, output)
    size = sum(file.stat().st_size for file in Path(output).rglob("*") if file.is_file())
    opset = f", opset {facts['opset']}" if to == "onnx" else ""
    print(f"{output}: {facts['trainer']} on {facts['dataset']} for {to}, float32{opset}, {size / 2**20:.1f} MiB")
    print(f"Its logits are off the trained model's by at most {difference:.1e}; its README.md says how to load it")
    if facts["temperature"] != 1:
        print(f"They are divided by the calibrated temperature {facts['temperature']:.3f}, as predict.py divides them")


def files_in(folder: str) -> list[str]:
    """Return the sorted names of the files in a folder, without those in its folders."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_file())


def umask() -> int:
    """Return the umask of this process, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def load_on_cpu(model_dir: str, epoch: int | None, strength: float | None) -> ClipTrainer:
    """Return the trainer of a run with its model loaded, on the CPU, in eval mode, without gradients."""
    spec = RunSpec(eval_only=True, model_dir=model_dir, load_epoch=epoch, opts=("USE_CUDA", "False"))
    if strength is not None:
        spec = replace(spec, strength=str(strength))
    check_is_training(model_dir)
    discover(trainers)
    name = read_model_config(spec)["TRAINER.NAME"]
    if name in TRAINER_REGISTRY.registered_names() and not issubclass(TRAINER_REGISTRY.get(name), ClipTrainer):
        raise ValueError(f"{name} is written for the original Dassl: only methods of ClipTrainer are exported")
    trainer = load_trained(spec, read_model_classes(model_dir))
    if trainer.adaptation:
        raise ValueError(f"{name} adapts to {trainer.adaptation}, which no exported file does: use predict.py")
    trainer.model.requires_grad_(False)
    return trainer


def describe(trainer: ClipTrainer, to: str, model_dir: str, temperature: float | None) -> dict:
    """Return the facts of an export, for `export.json` and the model card.

    Args:
        trainer: with its model loaded.
        to: format.
        model_dir: output directory of the run.
        temperature: temperature of the probabilities; None: they are not calibrated.
    """
    cfg, model = trainer.cfg, trainer.model
    strength = getattr(model, "strength", None)
    classes, templates = list(trainer.dm.dataset.classnames), list(model.templates)
    image_input = {}
    for key in INPUT_KEYS:
        value = cfg.INPUT[key]
        image_input[key] = list(value) if isinstance(value, list | tuple) else value
    return {
        "format": to,
        "trainer": cfg.TRAINER.NAME,
        "dataset": cfg.DATASET.NAME,
        "backbone": cfg.MODEL.BACKBONE.NAME,
        "strength": strength,
        "figures": figures(model_dir, strength),
        "temperature": temperature or 1.0,  # the logits of the exported model are divided by it already
        "classes": classes,
        "templates": templates,
        "prompts": model.prompts(),
        "input": image_input,
        "dtype": "float32",
    }


def figures(model_dir: str, strength: float | None) -> list[dict]:
    """Return the results at this strength in and below a run's directory."""
    rows = []
    paths = [osp.join(model_dir, "results.json")]
    paths += glob.glob(osp.join(glob.escape(model_dir), "eval", "*", "*.json"))
    for path in paths:
        if osp.basename(path) != "results.json" or not osp.exists(path):
            continue
        results = read_json(path)
        config = flatten(results.get("config") or {})
        configured = next((value for key, value in config.items() if key.endswith(".STRENGTH")), strength)
        if strength is None or results.get("strength", configured) == strength:
            keys = ("dataset", "classes", "shots", "seed", "split", "accuracy")
            rows.append({key: results.get(key) for key in keys})
    return [row for k, row in enumerate(rows) if row not in rows[:k]]  # an evaluation may repeat the training's test


# ------------------------------------------------------------------ a plain CLIP


def holds_plain(trainer: ClipTrainer) -> bool:
    """Return whether the model is a plain CLIP, with tuned weights or with the pretrained ones."""
    return isinstance(trainer.model, TunedCLIP) or type(trainer.model) is ClipClassifier


def plain_clip(trainer: ClipTrainer, temperature: float = 1.0) -> CLIP:
    """Return a CLIP with the update merged into its weights.

    Args:
        trainer: with its model loaded.
        temperature: divides the logit scale.

    Raises:
        ValueError: the method has parts that a CLIP has no place for.
    """
    if not holds_plain(trainer):
        name, part = trainer.cfg.TRAINER.NAME, "its class features come from sentences"
        if trainer.learner:
            part = f"its {trainer.learner} runs beside them"
        raise ValueError(f"{name} leaves CLIP's weights as they are, {part}: {PLAIN}")
    model, result = trainer.model, load_clip(trainer.cfg.MODEL.BACKBONE.NAME)
    state = result.state_dict()
    if isinstance(model, TunedCLIP):
        parts = model.merge_weights()
        for prefix, encoder in (("visual.", "image"), ("", "text")):
            for name, tensor in parts[encoder].items():
                state[prefix + name].copy_(tensor)
    state["logit_scale"].copy_((model.logit_scale / temperature).log())  # from the model: CLIPLoRA has its own scale
    return result


def tensors(model: CLIP) -> dict[str, torch.Tensor]:
    """Return a model's tensors by name, contiguous and without shared memory, as safetensors needs them."""
    return {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}


def save_tensors(state: dict[str, torch.Tensor], path: str) -> None:
    with atomic_write(path) as f:
        f.write(safetensors.torch.save(state, {"format": "pt"}))


def needs_vit(model: CLIP, to: str) -> None:
    """Raise ValueError if the image encoder is a ResNet."""
    if not is_vit(model):
        raise ValueError(
            f"the image encoder is a ResNet, which {to} has in another form or not at all: take --to openai or onnx"
        )


def write_openai(model: CLIP, folder: str, facts: dict) -> dict:
    """Write model.pt, a state dict: `clip.load` reads no safetensors.

    Raises:
        ValueError: clip.load would build another model from it.
    """
    if is_vit(model):
        for name, module, tower in zip(
            ("image", "text"), (model.visual, model), layouts.architecture_of(model), strict=False
        ):
            c_fc = module.transformer.resblocks[0].mlp.c_fc
            usual = layouts.Tower(c_fc.in_features // 64)
            if tower != usual or c_fc.out_features != 4 * c_fc.in_features:
                shape = f"{tower.heads} heads, {tower.activation}, an MLP of {c_fc.out_features}, epsilon {tower.eps:g}"
                raise ValueError(
                    f"clip.load cannot build the {name} encoder ({shape}), only heads of width 64, QuickGELU, an MLP "
                    f"of {4 * c_fc.in_features} and epsilon 1e-05: take --to open_clip or transformers"
                )
    with atomic_write(osp.join(folder, "model.pt")) as f:
        torch.save(tensors(model), f)
    write_json(layouts.image_processor(facts["input"]), osp.join(folder, "preprocessor_config.json"))
    return {}


def write_open_clip(model: CLIP, folder: str, facts: dict) -> dict:
    """Write a hub repository of open_clip, and the architecture in a file of its own for `add_model_config`."""
    needs_vit(model, "open_clip")
    config, image_input = layouts.open_clip_config(model), facts["input"]
    preprocess = {
        "mean": image_input["PIXEL_MEAN"],
        "std": image_input["PIXEL_STD"],
        "interpolation": image_input["INTERPOLATION"],
        "resize_mode": "shortest",
    }
    save_tensors(tensors(model), osp.join(folder, "open_clip_model.safetensors"))
    hub = {"model_cfg": config, "preprocess_cfg": preprocess}
    write_json(hub, osp.join(folder, "open_clip_config.json"))
    name = name_in_open_clip(config)
    if not name:
        write_json(config, osp.join(folder, "tuned_clip.json"))
    return {"open_clip_name": name}


def name_in_open_clip(config: dict) -> str:
    """Return open_clip's name for an architecture; "" if it has none, or is not installed."""
    try:
        import open_clip
    except ImportError:
        return ""

    def with_defaults(cfg: dict) -> dict:
        values = {"head_width": 64, "quick_gelu": False}
        values.update(flatten(cfg))
        values["vision_cfg.head_width"] = cfg["vision_cfg"].get("head_width", 64)
        return values

    for name in sorted(open_clip.list_models(), key=len):
        if with_defaults(open_clip.get_model_config(name)) == with_defaults(config):
            return name
    return ""


def write_transformers(model: CLIP, folder: str, facts: dict) -> dict:
    """Write the files of CLIPModel, of CLIPProcessor and of the tokenizer."""
    needs_vit(model, "transformers")
    save_tensors(layouts.to_transformers(model.state_dict()), osp.join(folder, "model.safetensors"))
    write_json(layouts.transformers_config(model), osp.join(folder, "config.json"))
    write_processor(model, folder, facts)
    return {}


def write_processor(model: CLIP, folder: str, facts: dict) -> None:
    """Write the files of CLIPProcessor and of the tokenizer."""
    write_json(layouts.image_processor(facts["input"]), osp.join(folder, "preprocessor_config.json"))
    tokenizer = clip._tokenizer
    merges = "".join(f"{first} {second}\n" for first, second in tokenizer.bpe_ranks)
    with atomic_write(osp.join(folder, "merges.txt")) as f:
        f.write(f"#version: 0.2\n{merges}".encode())
    write_json(tokenizer.encoder, osp.join(folder, "vocab.json"))
    end = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    words = {"bos_token": "<|startoftext|>", **end}
    about = {"tokenizer_class": "CLIPTokenizer", "model_max_length": model.context_length, "do_lower_case": True}
    write_json(about | words, osp.join(folder, "tokenizer_config.json"))
    write_json(words, osp.join(folder, "special_tokens_map.json"))


WRITERS = {"openai": write_openai, "open_clip": write_open_clip, "transformers": write_transformers}


# ------------------------------------------------------------------ PEFT


def write_peft(trainer: ClipTrainer, frozen: CLIP, folder: str, facts: dict) -> dict:
    """Write an adapter for CLIPModel, the processor and, unless the hub has it, the frozen CLIP in the folder `base`.

    Args:
        trainer: with its model loaded.
        frozen: the CLIP that the adapter changes.
        folder: folder of the export.
        facts: facts of the export.

    Returns:
        Further facts: the base, and the scale of the logits.
    """
    needs_vit(frozen, "peft")
    model = trainer.model
    config, adapter = adapter_of(model, facts["trainer"])
    base = HUB_NAMES.get(facts["backbone"], ADAPTER_BASE)
    save_tensors(adapter, osp.join(folder, ADAPTER))
    write_json(config | {"base_model_name_or_path": base}, osp.join(folder, ADAPTER_CONFIG))
    write_processor(frozen, folder, facts)
    if base == ADAPTER_BASE:
        path = osp.join(folder, base)
        os.mkdir(path)
        write_transformers(frozen, path, facts)
        hashes = {name: file_hash(osp.join(path, name)) for name in files_in(path)}
        write_json({"files": hashes}, osp.join(path, EXPORT), seal=True)
    return {"base": base, "logit_scale": (model.logit_scale / facts["temperature"]).item()}


# ------------------------------------------------------------------ ONNX


class Classifier(nn.Module):
    """A model whose logits are divided by a temperature: float [B, 3, H, W] -> logits float32 [B, n_cls]."""

    def __init__(self, model: ClipClassifier, temperature: float):
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.model(image) / self.temperature


def write_onnx(trainer: ClipTrainer, folder: str, facts: dict) -> dict:
    """Write model.onnx: input "image" float32 [batch, 3, H, W], output "logits" float32 [batch, n_cls]."""
    for package in ("onnxscript", "onnx", "onnxruntime"):
        library(package, "--to onnx")
    model = trainer.model
    if holds_plain(trainer):  # the tuned model has the frozen weights, too, which the file need not hold
        model = ClipClassifier(plain_clip(trainer), facts["classes"], facts["templates"]).eval()
    example = torch.randn(2, 3, *facts["input"]["SIZE"])
    classifier = Classifier(model, facts["temperature"]).eval()
    with torch.no_grad(), quiet():
        classifier(example)  # caches the class features, which become constants of the program
        program = traced(classifier, example)
    if program is None or isinstance(program.model.graph.inputs[0].shape[0], int):
        name = facts["trainer"]
        raise ValueError(f"{name} cannot be traced for any number of images, as its class features depend on the image")
    keys = ("trainer", "dataset", "backbone", "strength", "temperature", "classes", "input")
    program.model.metadata_props.update({key: dumps(facts[key]) for key in keys if facts[key] is not None})
    program.save(osp.join(folder, "model.onnx"))
    return {"opset": program.model.opset_imports[""]}


def traced(classifier: Classifier, example: torch.Tensor):
    """Return the ONNX program for any number of images.

    None if the program would encode prompts: the exporter cannot follow their packing.
    """
    try:
        return torch.onnx.export(
            classifier,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=["image"],
            output_names=["logits"],
            dynamic_shapes={"image": {0: torch.export.Dim("batch")}},
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        if "trainers/shared/packing.py" not in f"{error} {error.__cause__}":
            raise
        return None


def dumps(value) -> str:
    """Return a text as it is, any other value as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


@contextlib.contextmanager
def quiet():
    """Hide the log messages and warnings of the exporter."""
    levels = {name: logging.getLogger(name).level for name in ("onnxscript", "onnx_ir", "torch.onnx")}
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
