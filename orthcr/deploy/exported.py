"""The classifier of an exported folder. The Predictor uses it in place of a trainer."""

import os.path as osp

import torch

from dassl.config import check_config, get_cfg_default, merge_config
from dassl.config.defaults import KEYS
from dassl.data.transforms import build_transform
from dassl.infrastructure.files import check_hashes, read_json
from dassl.utils import check_availability
from orthcr.deploy.card import FORMATS
from orthcr.run.seen import SeenImages
from trainers.shared.backbones import library, load_clip
from trainers.shared.classifier import ClipClassifier

EXPORT = "export.json"  # description of an export, in its folder
# keys of cfg.INPUT for the test transform
INPUT_KEYS = ("SIZE", "PIXEL_MEAN", "PIXEL_STD", "INTERPOLATION", "RESIZE")


class OnnxClassifier:
    """The model of `model.onnx`, run by onnxruntime on the CPU.

    Args:
        folder: folder with the file.
        classes: number of classes.

    Raises:
        ValueError: onnxruntime is not installed or cannot run the file, or the file has another number of classes.
    """

    device = torch.device("cpu")

    def __init__(self, folder: str, classes: int):
        runtime, self.path, self.classes = library("onnxruntime", folder), osp.join(folder, "model.onnx"), classes
        if not osp.isfile(self.path):
            raise ValueError(f"{self.path} is missing: export again")
        options = runtime.SessionOptions()
        options.log_severity_level = 4  # no log: errors are raised as exceptions
        try:
            self.session = runtime.InferenceSession(self.path, options, providers=["CPUExecutionProvider"])
            outputs = [output.shape[-1] for output in self.session.get_outputs()]
        except Exception as error:  # onnxruntime raises a dozen types
            raise ValueError(
                f"onnxruntime cannot load {self.path} ({format_exception(error)}): export again"
            ) from error
        if outputs != [classes]:
            raise ValueError(f"{self.path} has outputs {outputs}, but {EXPORT} has {classes} classes: export again")

    def model_inference(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits float32 [B, n_cls] of images float32 [B, 3, H, W]."""
        try:
            (logits,) = self.session.run(None, {"image": image.numpy()})
        except Exception as error:
            raise ValueError(f"onnxruntime cannot run {self.path} ({format_exception(error)}): export again") from error
        return torch.from_numpy(logits)


def format_exception(error: Exception) -> str:
    """Return the message of a library's exception in one line of at most 300 characters."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


class FolderClip:
    """A plain CLIP, loaded from a folder in any format.

    Args:
        folder: folder with the weights.
        classes: names of the classes.
        templates: prompts with {} for the class name.
        device: device of the model.
    """

    def __init__(self, folder: str, classes: list[str], templates: list[str], device: torch.device):
        self.device = device
        self.model = ClipClassifier(load_clip(folder, device), classes, templates).to(device).eval()

    @torch.no_grad()
    def model_inference(self, image: torch.Tensor) -> torch.Tensor:
        """Return logits float32 [B, n_cls] of images float32 [B, 3, H, W]."""
        return self.model(image)


def is_exported(folder: str) -> bool:
    """Return whether a folder is an export."""
    return osp.exists(osp.join(folder, EXPORT))


def read_facts(folder: str) -> dict:
    """Read a folder's `export.json`; check every value, and the checksum of every file.

    Raises:
        ValueError: a value is not valid, or a file has changed since the export.
    """
    path = osp.join(folder, EXPORT)
    facts = read_json(path)
    try:
        facts["input"].setdefault("RESIZE", "shorter")  # exports before version 1.5 have no other
        check_facts(facts)
        input_cfg(facts)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} is not what export.py wrote ({format_exception(error)}): export again") from error
    check_hashes(folder, facts.get("files", {}))
    return facts


def check_facts(facts: dict) -> None:
    """Raise ValueError, TypeError or KeyError if a value of an `export.json` is not valid."""
    if not isinstance(facts, dict):
        raise TypeError("it is no JSON object")
    check_availability(facts["format"], list(FORMATS))
    for key in ("classes", "templates"):
        if not isinstance(facts[key], list) or not all(isinstance(word, str) and word for word in facts[key]):
            raise TypeError(f'"{key}" is no list of texts')
    if len(facts["classes"]) < 2 or len(set(facts["classes"])) < len(facts["classes"]):
        raise ValueError('"classes" must have two or more different names')
    if facts["format"] != "onnx" and not (facts["templates"] and all("{}" in text for text in facts["templates"])):
        raise ValueError('"templates" must have one or more texts with {} for the class name')
    if facts["format"] == "peft" and not (type(facts["logit_scale"]) is float and 0 < facts["logit_scale"] < 1e6):
        raise ValueError('"logit_scale" must be a number above 0')
    if not isinstance(facts["input"], dict) or facts["input"].keys() != set(INPUT_KEYS):
        raise ValueError(f'"input" must have {", ".join(INPUT_KEYS)}')
    files = facts.get("files", {})
    if not isinstance(files, dict) or not all(isinstance(digest, str) for digest in files.values()):
        raise TypeError('"files" is no list of checksums')


def input_cfg(facts: dict):
    """Return a config with the `INPUT` of an export.

    Raises:
        ValueError: the key does not allow a value.
    """
    cfg = get_cfg_default()
    words = [word for key, value in facts["input"].items() for word in (f"INPUT.{key}", value)]
    merge_config(cfg, [*words, "INPUT.TRANSFORMS", ("normalize",)])
    check_config(cfg, {"INPUT": KEYS["INPUT"]})
    return cfg


def open_exported(folder: str, classes: list[str] | None, template: str, device: str | None) -> dict:
    """Return the attributes of a Predictor for an exported folder.

    Args:
        folder: folder of the export.
        classes: see `Predictor`.
        template: see `Predictor`.
        device: see `Predictor`.

    Raises:
        ValueError: the folder is damaged, or other classes are given for an ONNX file, whose class features are fixed.
    """
    facts = read_facts(folder)
    cfg = input_cfg(facts)
    classnames = list(facts["classes"]) if classes is None else list(classes)
    if facts["format"] != "onnx":
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        templates = [template] if template else facts["templates"]
        model = FolderClip(folder, classnames, templates, torch.device(device))
    elif classes is not None or template:
        raise ValueError(f"{folder}/model.onnx has fixed class features: for other classes, export again")
    else:
        model = OnnxClassifier(folder, len(classnames))
    return {
        "trainer": model,
        "classnames": classnames,
        "temperature": None,  # the exported model has already divided the logits by it
        "transform": build_transform(cfg, is_train=False),
        "seen": SeenImages(folder),
        "batch_size": cfg.DATALOADER.TEST.BATCH_SIZE,
        "workers": 0,
    }
