"""The settings that a benchmark overrides in a method: Cutout, further strengths, the epochs of an embedded source."""

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
    """Return the words of --cutout for a method; "" stands for the method's own settings."""
    return list(dict.fromkeys(args.cutout)) if args.cutout and is_trained(trainer) else [""]


def override_cutout(training: PlannedRun, word: str) -> PlannedRun:
    """Return a training with or without Cutout, and with its other settings.

    A method without Cutout gets the transform "cutout", whose hole has a quarter of the side unless INPUT.CUTOUT_LEN is
    given. A method that cuts the holes itself continues to do so, or gets no holes and one view.

    Args:
        training: with the method's settings.
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
        gets_holes = word == "with" and "cutout" not in transforms
        if gets_holes and "INPUT.CUTOUT_LEN" not in training.spec.opts[::2]:
            pairs = ["INPUT.CUTOUT_LEN", str(min(cfg.INPUT.SIZE) // 4)]
        if word == "without":
            transforms = [name for name in transforms if name != "cutout"]
        elif gets_holes:
            transforms.append("cutout")
        pairs += ["INPUT.TRANSFORMS", str(transforms)]
    return replace(training, spec=replace(training.spec, opts=(*training.spec.opts, *pairs)))


def other_strengths(training: PlannedRun, strengths: list[str]) -> list[str]:
    """Return the strengths at which a model is not tested by its settings; none for a method without a strength."""
    key = strength_key(training.spec.trainer)
    if not key or not strengths:
        return []
    configured = flatten(setup_cfg(training.spec))[key]
    return [s for s in strengths if (s if s == AUTO else float(s)) != configured]


def halve_epochs(stages: Stages, source: str) -> tuple[str, ...]:
    """Return the KEY VALUE pair that halves the epochs of an embedded source, or ().

    tiny.yaml is for half the classes of an embedded source. With all classes, half the epochs are as many steps.
    Papers train a source for fewer epochs, too; published settings have files of their own for it.
    """
    row = row_of(source)
    if not (row and row.embedded) or not is_trained(stages.method.trainer):
        return ()
    cfg, method = setup_cfg(stages.xd_train(source, 1).spec), TRAINER_REGISTRY.get(stages.method.trainer)
    decides = getattr(method, "decides", {})
    if any(cfg.TRAINER[node_of(method)][key] for key, rule in decides.items() if "OPTIM.MAX_EPOCH" in rule.keys):
        return ()  # another key decides the number of steps in place of the epochs
    return "OPTIM.MAX_EPOCH", str(-(-cfg.OPTIM.MAX_EPOCH // 2))
