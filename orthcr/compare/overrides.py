"""The settings of a method that a benchmark overrides: Cutout, further strengths, the epochs of an embedded source."""

import argparse
from dataclasses import replace

from dassl.config import flatten
from dassl.engine import TRAINER_REGISTRY
from orthcr.compare.benchmark_datasets import row_of
from orthcr.compare.methods import is_trained
from orthcr.compare.plans import PlannedRun
from orthcr.compare.stages import Stages
from orthcr.run.config import setup_cfg
from orthcr.run.declarations import strength_key
from trainers.base import node_of
from trainers.shared.strength import AUTO


def cutout_choices(trainer: str, args: argparse.Namespace) -> list[str]:
    """Return the words of --cutout for a method: "with", "without", or "" for the method's own settings."""
    return list(dict.fromkeys(args.cutout)) if args.cutout and is_trained(trainer) else [""]


def override_cutout(training: PlannedRun, word: str) -> PlannedRun:
    """Return a training with or without Cutout, all other settings unchanged.

    "with" adds the transform "cutout" to a method that does not have it. Its hole is a quarter of the image's side wide
    unless INPUT.CUTOUT_LEN is given. A method with ATTENTIVE cuts the holes itself: "with" leaves it as it is, and
    "without" sets it to no holes and one view.

    Args:
        training: a training with the method's settings.
        word: "with" or "without".
    """
    cfg, method = setup_cfg(training.spec), TRAINER_REGISTRY.get(training.spec.trainer)
    node, key = cfg.TRAINER.get(node_of(method), {}), f"TRAINER.{node_of(method)}"
    transforms, pairs = list(cfg.INPUT.TRANSFORMS), []
    if node.get("ATTENTIVE"):
        if word == "without":
            no_holes = {"ATTENTIVE": False, "CUTOUT_BY": "attention", "VIEWS": "cut", "LAMBDA_CUT": None}
            for name, value in no_holes.items():
                if node[name] != value:
                    pairs += [f"{key}.{name}", str(value)]
    else:
        adds_cutout = word == "with" and "cutout" not in transforms
        if adds_cutout and "INPUT.CUTOUT_LEN" not in training.spec.opts[::2]:
            pairs = ["INPUT.CUTOUT_LEN", str(min(cfg.INPUT.SIZE) // 4)]
        if word == "without":
            transforms = [name for name in transforms if name != "cutout"]
        elif adds_cutout:
            transforms.append("cutout")
        pairs += ["INPUT.TRANSFORMS", str(transforms)]
    return replace(training, spec=replace(training.spec, opts=(*training.spec.opts, *pairs)))


def other_strengths(training: PlannedRun, strengths: list[str]) -> list[str]:
    """Return the strengths that differ from the one in the model's settings; [] for a method without a strength."""
    key = strength_key(training.spec.trainer)
    if not key or not strengths:
        return []
    own_strength = flatten(setup_cfg(training.spec))[key]
    return [s for s in strengths if (s if s == AUTO else float(s)) != own_strength]


def halve_epochs(stages: Stages, source: str) -> tuple[str, ...]:
    """Return the KEY VALUE pair that halves the epochs of an embedded source, or ().

    tiny.yaml is tuned for half the classes of an embedded source. With all classes, half the epochs have as many steps.
    Published settings have files of their own for the training on a source.
    """
    row = row_of(source)
    if not (row and row.embedded) or not is_trained(stages.method.trainer):
        return ()
    cfg, method = setup_cfg(stages.xd_train(source, 1).spec), TRAINER_REGISTRY.get(stages.method.trainer)
    deciding_keys = getattr(method, "deciding_keys", {})
    if any(cfg.TRAINER[node_of(method)][key] for key, rule in deciding_keys.items() if "OPTIM.MAX_EPOCH" in rule.keys):
        return ()  # another key decides the number of steps in place of the epochs
    return "OPTIM.MAX_EPOCH", str(-(-cfg.OPTIM.MAX_EPOCH // 2))
