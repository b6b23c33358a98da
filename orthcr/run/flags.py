"""The command line of train.py.

Nothing here imports PyTorch, which takes seconds: --help and errors of flags appear at once.
"""

import argparse
import re

from dassl.config.defaults import KEYS

from .spec import RunSpec


def parse(argv: list[str] | None = None, description: str | None = None) -> RunSpec:
    """Return the run that a command line of train.py describes: CoOp's flags and a few more.

    Args:
        argv: words of the command line; None: of this process.
        description: for --help.

    Raises:
        ValueError: flags that contradict each other.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of the data sets, default: data; the embedded ones are generated there")
    images_help = "own images: a folder with one folder for each class, or a CSV or JSON with path and label"
    parser.add_argument("--images", help=images_help)
    val_help = "with --images: fraction of the images, or number of each class, for val; default: 0.2"
    parser.add_argument("--val", type=float, help=val_help)
    skip_help = "with --images: leave out images that cannot be read"
    parser.add_argument("--skip-unreadable", action="store_true", help=skip_help)
    split_help = "JSON lines file with the training and val images, instead of a draw by the seed: docs/datasets.md"
    parser.add_argument("--few-shot-split", metavar="FILE", help=split_help)
    parser.add_argument("--template", help='prompt for the classes, e.g. "a photo of a {}, a type of pet."')
    descriptions_help = "JSON file with sentences about the classes, {class: [sentence, ...]}: docs/methods/CuPL.md"
    parser.add_argument("--descriptions", metavar="FILE", help=descriptions_help)
    parser.add_argument("--strength", help='fraction of the update, 0 to 1, in evaluation; "auto": selected on val')
    parser.add_argument("--output-dir", default="", help="default: output/<trainer>/<data set>/<classes>/...")
    parser.add_argument("--resume", default="", help="output directory of an interrupted run to continue")
    parser.add_argument("--seed", type=int, help="seed of all random numbers; default: 1; negative: not seeded")
    parser.add_argument("--source-domains", nargs="+", help="source domains for DA/DG")
    parser.add_argument("--target-domains", nargs="+", help="target domains for DA/DG")
    parser.add_argument("--transforms", nargs="+", help="data augmentation, sets INPUT.TRANSFORMS")
    parser.add_argument("--config-file", default="", help="config file of the method; default: its tiny.yaml")
    parser.add_argument("--dataset-config-file", default="", help="config file of the data set; default: shapes.yaml")
    parser.add_argument("--trainer", default="", help="name of the trainer; default: OrthCR")
    parser.add_argument("--backbone", default="", help="CLIP to adapt, sets MODEL.BACKBONE.NAME: docs/backbones.md")
    parser.add_argument("--head", default="", help="for trainers written for Dassl, sets MODEL.HEAD.NAME")
    parser.add_argument("--eval-only", action="store_true", help="evaluate the model of --model-dir")
    parser.add_argument("--model-dir", default="", help="output directory of the training run, for --eval-only")
    parser.add_argument(
        "--load-epoch",
        type=int,
        help="epoch of the checkpoint; default: the best on val with TEST.FINAL_MODEL best_val, else the last",
    )
    parser.add_argument("--no-train", action="store_true", help="build everything and stop")
    config_help = (
        "print the merged config, the learning rate and the number of steps, without loading weights, and stop"
    )
    parser.add_argument("--print-config", action="store_true", help=config_help)
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config KEY VALUE pairs, e.g. OPTIM.LR 0.001")
    args, pairs = parser.parse_args(argv), []
    for name in ("source_domains", "target_domains", "transforms"):  # argparse adds the KEY VALUE pairs behind them
        words = getattr(args, name) or []
        end = next((k for k, word in enumerate(words) if is_key(word)), len(words))
        setattr(args, name, tuple(words[:end]) or None)
        pairs += words[end:]
    args.opts = (*pairs, *args.opts)
    spec = RunSpec(**vars(args))
    check_flags(spec)
    return spec


def is_key(word: str) -> bool:
    """Return whether a word is a config key and not the name of a domain or a transform."""
    return word in KEYS or bool(re.fullmatch(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+", word))


def check_flags(spec: RunSpec) -> None:
    """Raise ValueError for flags that contradict each other."""
    for word in spec.opts[::2]:
        if word.startswith("--"):
            raise ValueError(f"{word} comes after a KEY VALUE pair: give all flags before the first KEY")
    if spec.images == "":
        raise ValueError("--images is empty: give a folder, a CSV or a JSON")
    if spec.descriptions == "":
        raise ValueError("--descriptions is empty: give a JSON file {class: [sentence, ...]}")
    if spec.few_shot_split == "":
        raise ValueError("--few-shot-split is empty: give a JSON lines file")
    if spec.few_shot_split and spec.images:
        advice = "give one of them; a list of images may have a column split"
        raise ValueError(f"--few-shot-split and --images both choose the training images: {advice}")
    if spec.skip_unreadable and not spec.images and not (spec.eval_only and spec.model_dir):
        raise ValueError("--skip-unreadable needs --images, or --eval-only with a model of own images: leave it out")
    if spec.val is not None and spec.val < 0:
        raise ValueError(f"--val must be at least 0 (got {spec.val:g}): give a fraction or a number of images")
    if spec.val is not None and spec.eval_only:
        raise ValueError(f"--val {spec.val:g} has no effect in an evaluation: leave it out")
    if spec.val is not None and not spec.images:
        raise ValueError(f"--val {spec.val:g} needs a training with --images: leave it out, or give --images")
    if spec.images and spec.dataset_config_file:
        raise ValueError("--images and --dataset-config-file both name a data set: give one of them")
    if spec.model_dir and not spec.eval_only:
        raise ValueError("--model-dir needs --eval-only: to continue the training in that directory give --resume")
    if spec.load_epoch is not None and not spec.model_dir:
        raise ValueError("--load-epoch needs --eval-only --model-dir: give these, or leave it out")
    if spec.resume and spec.eval_only:
        raise ValueError("--resume has no effect with --eval-only: to evaluate a model give --model-dir instead")
