"""The command line of benchmark.py.

Nothing here imports PyTorch, which takes seconds: --help and errors of flags appear at once.
"""

import argparse
import re
from pathlib import Path

PROTOCOLS = ("base2new", "fewshot", "xd", "dg")
SEEDS, SHOTS = (1, 2, 3), (1, 2, 4, 8, 16)
NAMES = dict(zip(("base2new", "few_shot", "cross_dataset", "domain_generalization"), PROTOCOLS, strict=True))
KEY = re.compile(r"[A-Z][A-Z0-9_]*(\.\w+)+|VERBOSE|USE_CUDA")
BY_FLAGS = ("SEED", "OUTPUT_DIR", "DATASET.NAME", "DATASET.NUM_SHOTS", "DATASET.SUBSAMPLE_CLASSES", "TRAINER.NAME")


def arguments(argv: list[str], description: str | None = None) -> argparse.Namespace:
    """Parse the command line of benchmark.py.

    Args:
        argv: words of the command line.
        description: for --help.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    tta = "default: all; tta: both transfers, of methods that train nothing"
    parser.add_argument("--protocol", nargs="+", default=["all"], choices=[*NAMES, "tta", "all"], help=tta)
    parser.add_argument("--trainers", nargs="+", default=["all"], help="names, or all; default: all")
    names = 'names in configs/datasets; "all": the 15 benchmarks; "embedded", which is the default'
    parser.add_argument("--datasets", nargs="+", default=["embedded"], help=names)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="default: 1 2 3")
    parser.add_argument("--shots", nargs="+", type=count, default=list(SHOTS), help="of few_shot; default: 1 2 4 8 16")
    strengths = "further strengths at which models of weight methods are tested: from 0 to 1, or auto"
    parser.add_argument("--strength", nargs="+", type=strength, default=[], metavar="S", help=strengths)
    cutout = "train each method with Cutout, without it, or both; default: as its settings say"
    parser.add_argument("--cutout", nargs="+", choices=["with", "without"], default=[], help=cutout)
    cfg = "name of a file in configs/trainers/TRAINER; default: the one of the published figures"
    parser.add_argument("--cfg", default="", help=cfg)
    parser.add_argument("--root", default="data", help="folder of the data sets; embedded ones are drawn into it")
    parser.add_argument("--output-dir", type=Path, default=Path("output", "bench"))
    parser.add_argument("--engine", choices=["local", "ray"], default="local", help="processes here, or a Ray cluster")
    parser.add_argument("--address", default="", help="of the Ray cluster; default: this machine alone")
    parser.add_argument("--workers", type=count, help="runs at a time; default: what cores, GPUs and memory allow")
    parser.add_argument("--memory", type=float, metavar="GIB", help="memory of a run; default: a guess by backbone")
    parser.add_argument("--per-gpu", type=count, help="runs that share a GPU; default: as memory allows; on Ray 1")
    sweep = "train with each value of a key; the best on val is tested"
    parser.add_argument("--sweep", nargs="+", default=[], metavar=("KEY", "VALUE"), help=sweep)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys of all runs, at the end")
    pairs = list(enumerate(zip(argv, ["", *argv], strict=False)))  # each word with the one before it
    first = next((k for k, (word, before) in pairs if KEY.fullmatch(word) and before != "--sweep"), len(argv))
    args = parser.parse_args(argv[:first])
    if args.opts:
        parser.error(f"{args.opts[0]} is no config key: these look like OPTIM.LR, and come last")
    args.opts = tuple(argv[first:])
    if len(args.opts) % 2:
        parser.error(f"options come as KEY VALUE pairs, but these are {len(args.opts)} words: {' '.join(args.opts)}")
    for key in args.opts[::2]:
        if key in BY_FLAGS:
            parser.error(f"{key} is set by a flag: leave it out of the KEY VALUE pairs")
        if key == "DATASET.FEW_SHOT_SPLIT":
            parser.error(f"{key} is for one data set, seed and number of shots: give --few-shot-split to train.py")
    if "tta" in args.protocol and len(args.protocol) > 1:
        parser.error("--protocol tta stands alone: it has both transfers")
    if args.cutout and "INPUT.TRANSFORMS" in args.opts[::2]:
        parser.error("INPUT.TRANSFORMS is set by --cutout: leave one of them out")
    if args.sweep:
        wrong = wrong_sweep(args)
        if wrong:
            parser.error(wrong)
    return args


def protocols_of(words: list[str]) -> list[str]:
    """Return the protocols that the words of --protocol name, of `PROTOCOLS`."""
    if words == ["tta"]:
        return ["xd", "dg"]
    return [NAMES[name] for name in (NAMES if "all" in words else words)]


def wrong_sweep(args: argparse.Namespace) -> str:
    """Return a message for a setting that contradicts --sweep; "" for none."""
    key, *values = args.sweep
    if not KEY.fullmatch(key) or key in (*BY_FLAGS, "TEST.SPLIT"):
        return f"--sweep {key} is no key to sweep: give a key of the method or of its training, for example OPTIM.LR"
    if len(set(values)) < max(2, len(values)):
        return f"--sweep {key} needs two or more different values (got {' '.join(values) or 'none'})"
    for other in ("TEST.SPLIT", key):
        if other in args.opts[::2]:
            return f"{other} is set by --sweep: leave it out of the KEY VALUE pairs"
    if args.protocol not in (["all"], ["few_shot"], ["base2new"]):
        return "--sweep takes one of --protocol few_shot, which is its default, and base2new"
    if args.strength:
        return "--strength is no part of a sweep: leave it out"
    if args.cutout:
        return "--cutout is no part of a sweep: leave it out"
    if args.shots != list(SHOTS) and len(args.shots) > 1:
        return f"--sweep takes one number of shots (got {' '.join(map(str, args.shots))})"
    return ""


def count(word: str) -> int:
    """Return a word of the command line as a number of at least 1."""
    if not word.isdigit() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more (got {word})")
    return int(word)


def strength(word: str) -> str:
    """Return a word of the command line if it is a strength."""
    if word != "auto" and not re.fullmatch(r"0|1|[01]?\.\d+|1\.0*", word) or word != "auto" and float(word) > 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, or auto (got {word})")
    return word
