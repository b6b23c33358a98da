"""The export of a trained model into the formats of OpenAI, open_clip, transformers and PEFT, and into ONNX.

The update of a method that changes weights is merged into a plain CLIP. Learned prompts, adapters and caches cannot be
merged. An ONNX file can hold them, because it contains the whole classifier with the class features.
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
from trainers.shared.siglip import CLIP_FAMILY, family_of
from trainers.shared.weights import TunedCLIP

OPSET = 20
LIMIT = 1e-3  # largest allowed difference between the logits of an export and of its model
PLAIN = "openai, open_clip and transformers hold plain CLIPs only, give --to onnx"


def export(model_dir: str, to: str, output: str, epoch: int | None = None, strength: float | None = None) -> None:
    """Export a model into a new folder and print a summary. If this fails, no folder is left.

    Args:
        model_dir: output directory of a training, or of a zero-shot run.
        to: openai, open_clip, transformers, peft or onnx.
        output: folder to create.
        epoch: epoch of the checkpoint; None: the best on val if there is one, else the last.
        strength: fraction of the update, from 0 to 1; None: the strength of the model.

    Raises:
        FileNotFoundError: there is no model.
        ValueError: the format cannot hold the model, or `output` is not empty.
        FloatingPointError: the logits of the written files differ from the model's.
    """
    output = osp.abspath(osp.expanduser(output))
    if osp.exists(output) and (not osp.isdir(output) or os.listdir(output)):
        raise ValueError(f"--output {output} exists and is not empty: give another folder, or remove it")
    model_dir = osp.expanduser(model_dir)
    with contextlib.redirect_stdout(io.StringIO()):  # hides the lines about the config and the checkpoint
        trainer = load_on_cpu(model_dir, epoch, strength)
    facts = describe(trainer, to, model_dir, temperature_of(trainer, model_dir, epoch))
    image = torch.randn(3, 3, *trainer.cfg.INPUT.SIZE)
    with torch.no_grad():
        expected_logits = trainer.model(image) / facts["temperature"]  # also fills the model's cache of class features
    parent = osp.dirname(output)
    os.makedirs(parent, exist_ok=True)
    sweep(parent, SCRATCH.format("orthcr-export"))  # folders of killed exports
    with scratch_folder(parent, "orthcr-export") as folder:
        if to == "onnx":
            facts |= write_onnx(trainer, folder, facts)
            logits = OnnxClassifier(folder, len(facts["classes"])).model_inference(image)
        elif to == "peft":
            frozen_clip = load_clip(trainer.cfg.MODEL.BACKBONE.NAME)
            check_clip(frozen_clip)
            facts |= write_peft(trainer, frozen_clip, folder, facts)
            logits = logits_of(folder, frozen_clip, facts, trainer.model.tokens, image)
        else:
            model = plain_clip(trainer, facts["temperature"])
            check_clip(model)
            facts |= WRITERS[to](model, folder, facts)
            with torch.no_grad():
                logits = ClipClassifier(load_clip(folder), facts["classes"], facts["templates"]).eval()(image)
        difference = (logits - expected_logits).abs().max().item()
        if not difference < LIMIT * max(1, expected_logits.abs().max().item() / 10):
            problem = f"the logits of the exported files differ from the model's by {difference:.2g}"
            raise FloatingPointError(f"{problem}, so nothing was written: please report this")
        facts["files"] = {name: file_hash(osp.join(folder, name)) for name in list_files(folder)}
        write_json(facts, osp.join(folder, EXPORT), seal=True)
        write_card(facts, folder)
        os.chmod(folder, 0o777 & ~read_umask())
        os.rename(folder, output)
    size = sum(file.stat().st_size for file in Path(output).rglob("*") if file.is_file())
    opset = f", opset {facts['opset']}" if to == "onnx" else ""
    print(f"{output}: {facts['trainer']} on {facts['dataset']} for {to}, float32{opset}, {size / 2**20:.1f} MiB")
    print(
        f"Its logits differ from the trained model's by at most {difference:.1e}; see its README.md on how to load it"
    )
    if facts["temperature"] != 1:
        print(f"They are divided by the calibrated temperature {facts['temperature']:.3f}, as in predict.py")


def list_files(folder: str) -> list[str]:
    """Return the sorted names of the files in a folder, without its subfolders."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_file())


def read_umask() -> int:
    """Return the umask of this process. It can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def load_on_cpu(model_dir: str, epoch: int | None, strength: float | None) -> ClipTrainer:
    """Return the trainer of a run with its model on the CPU, in eval mode and without gradients."""
    spec = RunSpec(eval_only=True, model_dir=model_dir, load_epoch=epoch, opts=("USE_CUDA", "False"))
    if strength is not None:
        spec = replace(spec, strength=str(strength))
    check_is_training(model_dir)
    discover(trainers)
    name = read_model_config(spec)["TRAINER.NAME"]
    if name in TRAINER_REGISTRY.registered_names() and not issubclass(TRAINER_REGISTRY.get(name), ClipTrainer):
        raise ValueError(f"{name} is written for the original Dassl and cannot be exported: use predict.py")
    trainer = load_trained(spec, read_model_classes(model_dir))
    if trainer.adaptation:
        raise ValueError(f"{name} adapts to {trainer.adaptation}, but an exported file cannot adapt: use predict.py")
    trainer.model.requires_grad_(False)
    return trainer


def describe(trainer: ClipTrainer, to: str, model_dir: str, temperature: float | None) -> dict:
    """Return the description of an export, for `export.json` and the model card.

    Args:
        trainer: trainer with its model loaded.
        to: name of the format.
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
        "temperature": temperature or 1.0,  # the exported model divides its logits by it
        "classes": classes,
        "templates": templates,
        "prompts": model.prompts(),
        "input": image_input,
        "dtype": "float32",
    }


def figures(model_dir: str, strength: float | None) -> list[dict]:
    """Return the results of a run and of its evaluations at this strength."""
    rows = []
    paths = [osp.join(model_dir, "results.json")]
    paths += glob.glob(osp.join(glob.escape(model_dir), "eval", "*", "*.json"))
    for path in paths:
        if osp.basename(path) != "results.json" or not osp.exists(path):
            continue
        results = read_json(path)
        config = flatten(results.get("config") or {})
        own_strength = next((value for key, value in config.items() if key.endswith(".STRENGTH")), strength)
        if strength is None or results.get("strength", own_strength) == strength:
            keys = ("dataset", "classes", "shots", "seed", "split", "accuracy")
            rows.append({key: results.get(key) for key in keys})
    return [row for k, row in enumerate(rows) if row not in rows[:k]]  # drops repeated tests


# ------------------------------------------------------------------ a plain CLIP


def is_plain_clip(trainer: ClipTrainer) -> bool:
    """Return whether the model is a plain CLIP, with tuned or with pretrained weights."""
    return isinstance(trainer.model, TunedCLIP) or type(trainer.model) is ClipClassifier


def plain_clip(trainer: ClipTrainer, temperature: float = 1.0) -> CLIP:
    """Return a CLIP with the update merged into its weights.

    Args:
        trainer: trainer with its model loaded.
        temperature: number that the logit scale is divided by.

    Raises:
        ValueError: the method has parts that cannot be merged into a CLIP.
    """
    if not is_plain_clip(trainer):
        name, part = trainer.cfg.TRAINER.NAME, "class features from sentences"
        if trainer.learner:
            part = trainer.learner
        raise ValueError(f"{name} does not change CLIP's weights, but has its own {part}: {PLAIN}")
    model, result = trainer.model, load_clip(trainer.cfg.MODEL.BACKBONE.NAME)
    state = result.state_dict()
    if isinstance(model, TunedCLIP):
        parts = model.merge_weights()
        for prefix, encoder in (("visual.", "image"), ("", "text")):
            for name, tensor in parts[encoder].items():
                state[prefix + name].copy_(tensor)
    state["logit_scale"].copy_((model.logit_scale / temperature).log())  # the scale may be the method's own (CLIPLoRA)
    return result


def check_clip(model) -> None:
    """Raise ValueError for a family that can be exported to ONNX only."""
    family = family_of(model)
    if family != CLIP_FAMILY:
        raise ValueError(f"{family.name} cannot be written in this form: take --to onnx, or predict.py --model-dir")


def copy_tensors(model: CLIP) -> dict[str, torch.Tensor]:
    """Return {name: tensor} of a model, contiguous and without shared memory, as safetensors needs it."""
    return {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}


def save_tensors(state: dict[str, torch.Tensor], path: str) -> None:
    with atomic_write(path) as f:
        f.write(safetensors.torch.save(state, {"format": "pt"}))


def check_is_vit(model: CLIP, format_name: str) -> None:
    """Raise ValueError if the image encoder is a ResNet."""
    if not is_vit(model):
        raise ValueError(
            f"the image encoder is a ResNet, which cannot be exported to {format_name}: give --to openai or onnx"
        )


def write_openai(model: CLIP, folder: str, facts: dict) -> dict:
    """Write model.pt, a state dict, because `clip.load` does not read safetensors.

    Raises:
        ValueError: clip.load would build another architecture from the state dict.
    """
    if is_vit(model):
        for name, module, tower in zip(
            ("image", "text"), (model.visual, model), layouts.architecture_of(model), strict=False
        ):
            c_fc = module.transformer.resblocks[0].mlp.c_fc
            expected_tower = layouts.Tower(c_fc.in_features // 64)
            if tower != expected_tower or c_fc.out_features != 4 * c_fc.in_features:
                shape = f"{tower.heads} heads, {tower.activation}, an MLP of {c_fc.out_features}, epsilon {tower.eps:g}"
                raise ValueError(
                    f"clip.load cannot build the {name} encoder ({shape}). It needs heads of width 64, QuickGELU, an "
                    f"MLP of {4 * c_fc.in_features} and epsilon 1e-05: give --to open_clip or transformers"
                )
    with atomic_write(osp.join(folder, "model.pt")) as f:
        torch.save(copy_tensors(model), f)
    write_json(layouts.image_processor(facts["input"]), osp.join(folder, "preprocessor_config.json"))
    return {}


def write_open_clip(model: CLIP, folder: str, facts: dict) -> dict:
    """Write a hub repository of open_clip and, for an architecture unknown to it, a file for `add_model_config`."""
    check_is_vit(model, "open_clip")
    config, image_input = layouts.open_clip_config(model), facts["input"]
    preprocess = {
        "mean": image_input["PIXEL_MEAN"],
        "std": image_input["PIXEL_STD"],
        "interpolation": image_input["INTERPOLATION"],
        "resize_mode": "shortest",
    }
    save_tensors(copy_tensors(model), osp.join(folder, "open_clip_model.safetensors"))
    hub = {"model_cfg": config, "preprocess_cfg": preprocess}
    write_json(hub, osp.join(folder, "open_clip_config.json"))
    name = name_in_open_clip(config)
    if not name:
        write_json(config, osp.join(folder, "tuned_clip.json"))
    return {"open_clip_name": name}


def name_in_open_clip(config: dict) -> str:
    """Return open_clip's name for an architecture; "" if it has no name, or if open_clip is not installed."""
    try:
        import open_clip
    except ImportError:
        return ""

    def fill_in_defaults(cfg: dict) -> dict:
        values = {"head_width": 64, "quick_gelu": False}
        values.update(flatten(cfg))
        values["vision_cfg.head_width"] = cfg["vision_cfg"].get("head_width", 64)
        return values

    for name in sorted(open_clip.list_models(), key=len):
        if fill_in_defaults(open_clip.get_model_config(name)) == fill_in_defaults(config):
            return name
    return ""


def write_transformers(model: CLIP, folder: str, facts: dict) -> dict:
    """Write the files of CLIPModel, CLIPProcessor and the tokenizer."""
    check_is_vit(model, "transformers")
    save_tensors(layouts.to_transformers(model.state_dict()), osp.join(folder, "model.safetensors"))
    write_json(layouts.transformers_config(model), osp.join(folder, "config.json"))
    write_processor(model, folder, facts)
    return {}


def write_processor(model: CLIP, folder: str, facts: dict) -> None:
    """Write the files of CLIPProcessor and the tokenizer."""
    write_json(layouts.image_processor(facts["input"]), osp.join(folder, "preprocessor_config.json"))
    tokenizer = clip._tokenizer
    merges = "".join(f"{first_token} {second_token}\n" for first_token, second_token in tokenizer.bpe_ranks)
    with atomic_write(osp.join(folder, "merges.txt")) as f:
        f.write(f"#version: 0.2\n{merges}".encode())
    write_json(tokenizer.encoder, osp.join(folder, "vocab.json"))
    end = {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    words = {"bos_token": "<|startoftext|>", **end}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": model.context_length, "do_lower_case": True}
    write_json(settings | words, osp.join(folder, "tokenizer_config.json"))
    write_json(words, osp.join(folder, "special_tokens_map.json"))


WRITERS = {"openai": write_openai, "open_clip": write_open_clip, "transformers": write_transformers}


# ------------------------------------------------------------------ PEFT


def write_peft(trainer: ClipTrainer, frozen_clip: CLIP, folder: str, facts: dict) -> dict:
    """Write an adapter for CLIPModel and the processor. If the hub does not have the frozen CLIP, write it to `base`.

    Args:
        trainer: trainer with its model loaded.
        frozen_clip: the CLIP that the adapter changes.
        folder: folder of the export.
        facts: facts of the export.

    Returns:
        Additional facts: the base, and the scale of the logits.
    """
    check_is_vit(frozen_clip, "peft")
    model = trainer.model
    config, adapter = adapter_of(model, facts["trainer"])
    base = HUB_NAMES.get(facts["backbone"], ADAPTER_BASE)
    save_tensors(adapter, osp.join(folder, ADAPTER))
    write_json(config | {"base_model_name_or_path": base}, osp.join(folder, ADAPTER_CONFIG))
    write_processor(frozen_clip, folder, facts)
    if base == ADAPTER_BASE:
        path = osp.join(folder, base)
        os.mkdir(path)
        write_transformers(frozen_clip, path, facts)
        hashes = {name: file_hash(osp.join(path, name)) for name in list_files(path)}
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
    if is_plain_clip(trainer):  # leaves out the frozen weights that a tuned model also has
        model = ClipClassifier(plain_clip(trainer), facts["classes"], facts["templates"]).eval()
    example = torch.randn(2, 3, *facts["input"]["SIZE"])
    classifier = Classifier(model, facts["temperature"]).eval()
    with torch.no_grad(), hide_exporter_messages():
        classifier(example)  # caches the class features, so that they become constants of the program
        program = build_onnx_program(classifier, example)
    if program is None or isinstance(program.model.graph.inputs[0].shape[0], int):
        name = facts["trainer"]
        problem = f"{name} cannot be exported to ONNX, because its class features depend on the image"
        raise ValueError(f"{problem}: use predict.py")
    keys = ("trainer", "dataset", "backbone", "strength", "temperature", "classes", "input")
    program.model.metadata_props.update({key: to_text(facts[key]) for key in keys if facts[key] is not None})
    program.save(osp.join(folder, "model.onnx"))
    return {"opset": program.model.opset_imports[""]}


def build_onnx_program(classifier: Classifier, example: torch.Tensor):
    """Return the ONNX program for any number of images.

    Return None if the program would encode prompts, because the exporter does not support their packing.
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


def to_text(value) -> str:
    """Return a text unchanged, and any other value as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


@contextlib.contextmanager
def hide_exporter_messages():
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
