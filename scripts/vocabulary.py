"""Do regularizers over a vocabulary or a path of strengths keep more of zero-shot CLIP than the strength alone does?

    python -m scripts.vocabulary [--variants NAME ...] [--seeds 1 2 3 4 5] [--output-dir output/vocabulary]

Trains OrthCR and its variants on all classes of Shapes and measures each model along the strength on Shapes, the other
data sets and the other styles. V are the tuned and V0 the frozen text features of phrases that name none of these
classes, drawn in each step. Phrases, classes and images have one forward pass:

    L = OrthCR's loss + WEIGHT KL(softmax(s f0 V0^T / TAU) || softmax(s f V^T / TAU))

The table compares at equal accuracy on Shapes, with OrthCR of the same seed and its curve between strengths. The same
command given again resumes.
"""

import argparse
import contextlib
import io
import sys
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import torch
from tabulate import tabulate
from torch.nn import functional as F

from dassl.engine import TRAINER_REGISTRY
from dassl.infrastructure.command import command
from dassl.infrastructure.files import read_json, write_json
from dassl.utils import progress
from datasets import catalogue
from datasets.shared import drawing
from orthcr.compare.stages import Method, Stages
from orthcr.compare.strength_curve import GEODESIC, Model, measure
from orthcr.run.runner import run
from trainers.orthcr import OrthCR, OrthogonalCLIP
from trainers.shared.epoch_average import EpochAverage
from trainers.shared.keys import Key
from trainers.shared.prompts import fill_template
from trainers.shared.tokens import tokenize

ROOT = Path(__file__).resolve().parents[1]
STRENGTHS = (0.25, 0.5, 0.75, 1.0)  # rows of the table
DENSE = tuple(k / 8 for k in range(9))  # points of the curve of OrthCR that the others are compared with
NODE = "TRAINER.ORTHCRVOCABULARY."


class VocabularyCLIP(OrthogonalCLIP):
    """OrthogonalCLIP that also compares each image with phrases.

    Attributes:
        drawn: number of phrases of a step.
        random_strength: whether each training step has a strength drawn uniformly from 0 to 1, in place of 1.
        phrase_logits: logits float32 [B, drawn] of the last step, of the tuned and of the frozen CLIP.
    """

    def __init__(self, node, clip_model, classnames, template, node_name):
        super().__init__(node, clip_model, classnames, template, node_name)
        self.drawn, self.random_strength = node.PHRASES, node.RANDOM_STRENGTH
        names = [drawing.name(composition) for composition in drawing.SEEN]
        if set(names) & set(classnames):
            raise ValueError("the vocabulary names a class of the data set: it must have none of them")
        tokens = tokenize(fill_template(template, names), self.text_encoder.context_length)
        width = max(tokens.shape[1], self.tokens.shape[1])  # each ends behind its last end-of-text token
        self.register_buffer("phrases", F.pad(tokens, (0, width - tokens.shape[1])), persistent=False)
        self.tokens = F.pad(self.tokens, (0, width - self.tokens.shape[1]))
        self.phrase_logits = ()

    def compute_changes(self, names, s=1.0):
        if self.training and self.random_strength:
            s = torch.rand(()).item()
        return super().compute_changes(names, s)

    def frozen_phrases(self) -> torch.Tensor:
        """Return V0 of the whole vocabulary, float32 [phrases, d]."""
        with self.encoding():
            return F.normalize(self.text_encoder(None, self.phrases, self.n_shared).float(), dim=-1)

    def all_logits(self, image, frozen_input=None):
        if not self.drawn:
            return super().all_logits(image, frozen_input)
        drawn = torch.randperm(len(self.phrases))[: self.drawn]
        linear = self.linear("image", "text")
        tokens = torch.cat([self.tokens, self.phrases[drawn]])
        f = self.encode_image(image, linear)
        g, v = self._encode("text", (None, tokens, self.n_shared), linear).split([len(self.tokens), len(drawn)])
        f_0 = self.frozen_image(image if frozen_input is None else frozen_input)
        v_0 = self.compute_frozen_once("phrases", self.frozen_phrases)[drawn]
        self.phrase_logits = self.logits(f, v), self.logits(f_0, v_0)
        g_0 = self.frozen_text
        return self.logits(f, g), self.logits(f, g_0), self.logits(f_0, g), self.logits(f_0, g_0)


@TRAINER_REGISTRY.register()
class OrthCRVocabulary(EpochAverage, OrthCR):
    """OrthCR with a regularizer over phrases, random strengths, or the average of its epochs."""

    defaults = OrthCR.defaults | {
        # phrases drawn in each step; 0: none
        "PHRASES": Key(0, low=0),
        # weight and temperature of the regularizer over phrases
        "WEIGHT": Key(1.0, low=0),
        "PHRASE_TAU": Key(4.0, above=0),
        # whether each training step has a random strength
        "RANDOM_STRENGTH": False,
        # whether the model is the average of all epochs
        "AVERAGE": False,
    }
    classifier = VocabularyCLIP

    def gaussian(self):
        return (self.key(), self.max_epoch, 1e6) if self.node.AVERAGE else None

    def losses(self, image, label):
        terms, logits = super().losses(image, label)
        if self.node.PHRASES:
            z, z_0 = (logits / self.node.PHRASE_TAU for logits in self.model.phrase_logits)
            kl = F.kl_div(F.log_softmax(z, dim=-1), F.softmax(z_0, dim=-1), reduction="batchmean")
            terms["phrases"] = self.node.WEIGHT * kl
        return terms, logits


def key_values(**values: object) -> tuple[str, ...]:
    """Return KEY VALUE ... of the variants' keys."""
    return tuple(word for key, value in values.items() for word in (NODE + key, str(value)))


CLEAN = key_values(ATTENTIVE=True, VIEWS="both", LAMBDA_CUT=0.0)
TRANSFORMS = ("INPUT.TRANSFORMS", "['random_resized_crop', 'normalize']")
VARIANTS = {  # the first one is OrthCR itself
    "OrthCR": (),
    "64 phrases, weight 1": key_values(PHRASES=64),
    "64 phrases, weight 3": key_values(PHRASES=64, WEIGHT=3.0),
    "random strength": key_values(RANDOM_STRENGTH=True),
    "random strength, 64 phrases": key_values(RANDOM_STRENGTH=True, PHRASES=64),
    "average of the epochs": key_values(AVERAGE=True),
    "regularizer on clean images": (*CLEAN, *TRANSFORMS),
}
FIRST = next(iter(VARIANTS))


def train(variant: str, seed: int, folder: Path, data: Path) -> Path:
    """Train a variant unless that is finished; return its folder."""
    stages = Stages(Method("OrthCRVocabulary", opts=VARIANTS[variant]), data, folder / variant.replace(", ", "_"))
    spec = stages.xd_train("shapes", seed, ("OPTIM.MAX_EPOCH", "20")).spec
    spec = replace(spec, opts=(*spec.opts, "VERBOSE", "False"))
    if not (Path(spec.output_dir) / "results.json").exists():
        with contextlib.redirect_stdout(io.StringIO()):
            run(spec)
    return Path(spec.output_dir)


def curve_of(folder: Path, seed: int, strengths: tuple[float, ...], data: Path) -> dict[str, list[float]]:
    """Return a model's accuracies in percent at each strength: on the source, other data sets and other styles."""
    file = folder / "curve.json"
    if not file.exists():
        model = Model(str(folder), "OrthCRVocabulary", seed, ("Shapes", "all", 16))
        points = measure([model], strengths, str(data), "test")
        points = [point for point in points if point.path == GEODESIC]
        accuracies = {p.strength: {name: value for (name, _), value in p.accuracies.items()} for p in points}
        groups = {
            "source": ["Shapes"],
            "other data sets": [row.name for row in catalogue.targets("Shapes")],
            "other styles": [row.name for row in catalogue.variants("Shapes")],
        }
        write_json({k: [mean(accuracies[s][n] for n in names) for s in strengths] for k, names in groups.items()}, file)
    return read_json(file)


def gain(curve: dict, reference: dict, group: str, k: int) -> float:
    """Return a variant's accuracy on a group at its k-th strength, minus that of OrthCR at equal source accuracy.

    OrthCR's curve is interpolated linearly between its strengths. NaN: it never has this accuracy on the source.
    """
    order = np.argsort(reference["source"])
    source, accuracies = np.array(reference["source"])[order], np.array(reference[group])[order]
    equal = np.interp(curve["source"][k], source, accuracies, left=np.nan, right=np.nan)
    return curve[group][k] - float(equal)


def spread(values: list[float], sign: str = "") -> str:
    """Return mean ± standard error, "" if a value is missing."""
    if np.isnan(values).any():
        return ""
    error = f" ± {stdev(values) / len(values) ** 0.5:.1f}" if len(values) > 1 else ""
    return f"{mean(values):{sign}.1f}{error}"


def main(argv: list[str] | None = None) -> None:
    """Train and measure the variants and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3, 4, 5])
    parser.add_argument("--output-dir", type=Path, default=ROOT / "output/vocabulary")
    parser.add_argument("--root", type=Path, default=ROOT / "data", help="folder of the data sets")
    args = parser.parse_args(argv)
    variants = list(dict.fromkeys([FIRST, *args.variants]))
    curves = {}
    for variant, seed in progress([(v, s) for s in args.seeds for v in variants], desc="variants x seeds"):
        folder = train(variant, seed, args.output_dir, args.root)
        curves[variant, seed] = curve_of(folder, seed, DENSE if variant == FIRST else STRENGTHS, args.root)
    rows, groups = [], ("source", "other data sets", "other styles")
    for variant in variants:
        for s in STRENGTHS:
            k = (DENSE if variant == FIRST else STRENGTHS).index(s)
            row = [variant, s, *(spread([curves[variant, seed][group][k] for seed in args.seeds]) for group in groups)]
            for group in groups[1:]:
                differences = [gain(curves[variant, seed], curves[FIRST, seed], group, k) for seed in args.seeds]
                row.append("" if variant == FIRST else spread(differences, "+"))
            rows.append(row)
    print(
        "Accuracy in percent, mean ± standard error over the seeds. Gain: over OrthCR of the same seed at equal source"
    )
    print("accuracy, in points.\n")
    print(tabulate(rows, ["variant", "strength", *groups, *(f"gain, {group}" for group in groups[1:])], "github"))


if __name__ == "__main__":
    sys.exit(command(main, "interrupted: give the same command again to resume the runs", 1))
