"""An exported folder as a classifier again: what the Predictor runs in place of a trainer."""

import os.path as osp

import torch

from dassl.config import get_cfg_default, merge_config
from dassl.data.transforms import build_transform
from dassl.files import read_json
from trainers.shared.backbones import library, load_clip
from trainers.shared.classifier import ClipClassifier

from .seen import Seen

EXPORT = "export.json"  # what the folder is, beside the files of its format


class OnnxClassifier:
    """`model.onnx`, run by onnxruntime on the CPU."""

    device = torch.device("cpu")

    def __init__(self, folder: str):
        runtime = library("onnxruntime", folder)
        self.session = runtime.InferenceSession(osp.join(folder, "model.onnx"), providers=["CPUExecutionProvider"])

    def model_inference(self, image: torch.Tensor) -> torch.Tensor:
        """float32 [B, 3, H, W] -> logits float32 [B, n_cls]."""
        return torch.from_numpy(self.session.run(None, {"image": image.numpy()})[0])


class ClipOfFolder:
    """A plain CLIP of any layout, by the one forward pass here."""

    def __init__(self, folder: str, classes: list[str], templates: list[str], device: torch.device):
        self.device = device
        self.model = ClipClassifier(load_clip(folder, device), classes, templates).to(device).eval()

    @torch.no_grad()
    def model_inference(self, image: torch.Tensor) -> torch.Tensor:
        return self.model(image)


def is_exported(folder: str) -> bool:
    return osp.exists(osp.join(folder, EXPORT))


def open_exported(folder: str, classes: list[str] | None, template: str, device: str | None) -> dict:
    """The attributes of a Predictor of an exported folder; arguments are the Predictor's.

    Raises:
        ValueError: other classes for an ONNX file, whose class features are fixed.
    """
    path = osp.join(folder, EXPORT)
    facts = read_json(path)
    if not isinstance(facts, dict) or not {"classes", "templates", "format", "input"} <= facts.keys():
        raise ValueError(f"{path} is not what export.py wrote: export again")
    classnames = list(facts["classes"]) if classes is None else list(classes)
    if facts["format"] != "onnx":
        where = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model = ClipOfFolder(folder, classnames, [template] if template else facts["templates"], torch.device(where))
    elif classes is not None or template:
        raise ValueError(f"the class features are inside {folder}/model.onnx: export again for other classes")
    else:
        model = OnnxClassifier(folder)
    cfg = get_cfg_default()
    words = [word for key, value in facts["input"].items() for word in (f"INPUT.{key}", value)]
    merge_config(cfg, [*words, "INPUT.TRANSFORMS", ("normalize",)])
    return {
        "trainer": model,
        "classnames": classnames,
        "temperature": None,  # it is in the logits
        "transform": build_transform(cfg, is_train=False),
        "seen": Seen(folder),
        "batch_size": cfg.DATALOADER.TEST.BATCH_SIZE,
        "workers": 0,
    }
