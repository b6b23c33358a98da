"""The files of a new method: its trainer, its settings and its test.

    orthcr new-trainer MyMethod

The command writes trainers/mymethod.py, configs/trainers/MyMethod/{base,tiny,vit_b16}.yaml and tests/test_mymethod.py
into the clone. They work at once: the method adds one trained vector to CLIP's image feature. Change it from there.
docs/design.md lists what a method may override.
"""

import argparse
import keyword
import os
from pathlib import Path
from string import Template

from dassl.infrastructure.command import command
from dassl.infrastructure.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]

TRAINER = '''"""$name: say here what it does, and where it comes from.

The equations:

    f = f0(image) + v          f0: the frozen CLIP's image feature, of unit length; v [d]: trained, from zero
    L = CE(s f g0^T, y)        g0: the frozen CLIP's class features; s: its logit scale
"""

import torch
from torch import nn

from dassl.engine import TRAINER_REGISTRY

from .base import PRECISIONS, ClipTrainer
from .shared.classifier import ClipClassifier
from .shared.encoders import normalize
from .shared.keys import TEMPLATE, Key
from .shared.prompts import template_for


class ${name}Classifier(ClipClassifier):
    """The classifier: a frozen CLIP with a shifted image feature."""

    def __init__(self, node, clip_model, classnames: list[str], template: str):
        super().__init__(clip_model, classnames, [template])
        d = clip_model.text_projection.shape[1]
        self.learner = nn.ParameterDict({"shift": torch.zeros(d)})  # all that is trained
        self.scale = node.SCALE

    def encode_image(self, image):
        return normalize(self.frozen_image(image) + self.scale * self.learner["shift"])


@TRAINER_REGISTRY.register()
class $name(ClipTrainer):
    """The trainer. Its settings are cfg.TRAINER.$node."""

    defaults = ClipTrainer.defaults | {
        "SCALE": Key(1.0, low=0),  # of the shift; 0 = zero-shot CLIP
        "TEMPLATE": TEMPLATE,  # "" = the data set's own
        "PREC": Key("amp", choices=PRECISIONS),
    }
    learner = "learner"  # the submodule above, and the folder of its checkpoints

    def build_classifier(self, clip_model, classnames):
        template = template_for(self.cfg.DATASET.NAME, self.node.TEMPLATE)
        return ${name}Classifier(self.node, clip_model, classnames, template)
'''

BASE = """# Not tuned yet
DATALOADER:
  TRAIN_X:
    BATCH_SIZE: 32

INPUT:
  TRANSFORMS: ["random_resized_crop", "random_flip", "normalize"]

OPTIM:
  NAME: "sgd"
  LR: 0.002
  MAX_EPOCH: 50
  LR_SCHEDULER: "cosine"
  WARMUP_EPOCH: 1
  WARMUP_TYPE: "constant"
  WARMUP_CONS_LR: 1e-5

TRAINER:
  $node:
    SCALE: 1.0
"""

TINY = """# Not tuned yet
_BASE_: [../../backbones/tiny.yaml, base.yaml]

INPUT:
  TRANSFORMS: ["random_resized_crop", "normalize"]
  RRCROP_SCALE: (0.6, 1.0)
"""

VIT_B16 = """_BASE_: [../../backbones/vit_b16.yaml, base.yaml]
"""

TEST = '''"""$name: it starts at zero-shot CLIP, is its formula, and learns."""

import torch


def test_it_starts_at_zero_shot_clip(make_trainer):
    zero = make_trainer(trainer="ZeroshotCLIP", out="zero")
    image = next(iter(zero.test_loader))["img"][:8]
    trainer = make_trainer(trainer="$name")
    with torch.no_grad():
        torch.testing.assert_close(trainer.model.eval()(image), zero.model.eval()(image), atol=1e-3, rtol=1e-4)


def test_logits_are_the_formula(make_trainer, noise):
    trainer = make_trainer("TRAINER.$node.SCALE", 0.5, trainer="$name")
    model, image = trainer.model.eval(), next(iter(trainer.test_loader))["img"][:8]
    with torch.no_grad():
        model.learner["shift"].copy_(noise(*model.learner["shift"].shape))
        f = model.frozen_image(image) + 0.5 * model.learner["shift"]
        expected = model.logit_scale * (f / f.norm(dim=1, keepdim=True)) @ model.frozen_text.T
        torch.testing.assert_close(model(image), expected, atol=1e-3, rtol=1e-4)


def test_it_learns(make_trainer):
    trainer = make_trainer("OPTIM.MAX_EPOCH", 1, trainer="$name")
    trainer.train()
    shift = trainer.model.learner["shift"].detach()
    assert shift.isfinite().all() and shift.any() and 0 <= trainer.results["accuracy"] <= 100
    saved = torch.load(f"{trainer.output_dir}/learner/model.pth.tar-1", weights_only=True)["state_dict"]
    assert torch.equal(saved["shift"], shift)
'''


def new_files(name: str, root: Path) -> dict[Path, str]:
    """Return the content of each file of the new method `name`, by path."""
    module, words = name.lower(), {"name": name, "node": name.upper()}
    settings = root / "configs" / "trainers" / name
    templates = {
        root / "trainers" / f"{module}.py": TRAINER,
        settings / "base.yaml": BASE,
        settings / "tiny.yaml": TINY,
        settings / "vit_b16.yaml": VIT_B16,
        root / "tests" / f"test_{module}.py": TEST,
    }
    return {path: Template(text).substitute(words) for path, text in templates.items()}


def check_name(name: str, root: Path) -> None:
    """Check the name of a new method.

    Args:
        name: name of the trainer's class.
        root: root of the clone.

    Raises:
        ValueError: it is no name of a Python class, or another trainer or file has it.
    """
    if not name.isascii() or not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_"):
        raise ValueError(f'"{name}" is no name of a trainer: give letters and digits, beginning with a letter')
    if keyword.iskeyword(name.lower()):
        raise ValueError(f'"{name}" would be trainers/{name.lower()}.py, which Python cannot import: give another name')
    import trainers  # not above: it imports PyTorch, which takes seconds
    from dassl.engine import TRAINER_REGISTRY
    from orthcr.run.declarations import discover
    from trainers.base import node_of

    discover(trainers)
    for other in TRAINER_REGISTRY.registered_names():
        if name.upper() in (other.upper(), node_of(TRAINER_REGISTRY.get(other))):
            raise ValueError(f'"{name}" is taken by the trainer {other}: give another name')
    for path in (root / "trainers" / name.lower(), *new_files(name, root)):
        if path.exists():
            raise ValueError(f"{path} is there already: give another name, or remove it")


def create(name: str, root: Path = ROOT) -> list[Path]:
    """Write the files of a new method and return their paths.

    Args:
        name: name of the trainer's class.
        root: root of the clone.

    Raises:
        ValueError: see `check_name`.
        OSError: a file cannot be written. The files before it are removed.
    """
    check_name(name, root)
    written = []
    try:
        for path, text in new_files(name, root).items():
            with atomic_write(path) as file:
                file.write(text.encode())
            written.append(path)
    except BaseException:
        for path in written:
            path.unlink()
        raise
    return written


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", metavar="NAME", help="of the trainer's class, e.g. MyMethod")
    args = parser.parse_args(argv)

    def work() -> None:
        paths = [os.path.relpath(path, ROOT) for path in create(args.name)]
        print("\n".join(paths))
        print(f"In {ROOT}:\n    python train.py --trainer {args.name}\n    python -m pytest {paths[-1]}")

    return command(work)
