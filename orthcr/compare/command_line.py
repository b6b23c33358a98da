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


def parse_arguments(argv: list[str], description: str | None = None) -> argparse.Namespace:
    """Parse the command line of benchmark.py.

    Args:
        argv: words of the command line.
        description: for --help.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    protocols = "default: all; tta: cross_dataset and domain_generalization for the methods that train nothing"
    parser.add_argument("--protocol", nargs="+", default=["all"], choices=[*NAMES, "tta", "all"], help=protocols)
    parser.add_argument("--trainers", nargs="+", default=["all"], help="names, or all; default: all")
    datasets_help = 'names in configs/datasets; "all": the 15 benchmarks; default: "embedded", drawn on this machine'
    parser.add_argument("--datasets", nargs="+", default=["embedded"], help=datasets_help)
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), help="default: 1 2 3")
    shots_help = "for few_shot; default: 1 2 4 8 16"
    parser.add_argument("--shots", nargs="+", type=parse_count, default=list(SHOTS), help=shots_help)
    strength_help = "also test the methods that change weights at these strengths: numbers from 0 to 1, or auto"
    parser.add_argument("--strength", nargs="+", type=parse_strength, default=[], metavar="S", help=strength_help)
    cutout_help = "train each method with Cutout, without it, or both; default: the method's settings"
    parser.add_argument("--cutout", nargs="+", choices=["with", "without"], default=[], help=cutout_help)
    cfg_help = "name of a file in configs/trainers/TRAINER; default: the file with the published settings"
    parser.add_argument("--cfg", default="", help=cfg_help)
    parser.add_argument("--root", default="data", help="folder of the data sets; embedded ones are drawn into it")
    parser.add_argument("--output-dir", type=Path, default=Path("output", "bench"))
    parser.add_argument("--engine", choices=["local", "ray"], default="local", help="processes here, or a Ray cluster")
    parser.add_argument("--address", default="", help="address of the Ray cluster; default: this machine")
    workers_help = "number of runs at a time; default: as many as cores, GPUs and memory allow"
    parser.add_argument("--workers", type=parse_count, help=workers_help)
    memory_help = "memory of a run in GiB; default: an estimate for the backbone"
    parser.add_argument("--memory", type=float, metavar="GIB", help=memory_help)
    per_gpu_help = "number of runs that share a GPU; default: as many as fit into its memory; on Ray 1"
    parser.add_argument("--per-gpu", type=parse_count, help=per_gpu_help)
    sweep_help = "train with each value of a key, and test the model that is best on val"
    parser.add_argument("--sweep", nargs="+", default=[], metavar=("KEY", "VALUE"), help=sweep_help)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config keys for all runs; they come last")
    pairs = list(enumerate(zip(argv, ["", *argv], strict=False)))  # each word with the one before it
    keys = (k for k, (word, previous_word) in pairs if KEY.fullmatch(word) and previous_word != "--sweep")
    first = next(keys, len(argv))
    args = parser.parse_args(argv[:first])
    if args.opts:
        parser.error(f"{args.opts[0]} is no config key: give keys like OPTIM.LR, after all flags")
    args.opts = tuple(argv[first:])
    if len(args.opts) % 2:
        words = f"{len(args.opts)} words: {' '.join(args.opts)}"
        parser.error(f"config keys come as KEY VALUE pairs (got {words}): give each key one value")
    for key in args.opts[::2]:
        if key in BY_FLAGS:
            parser.error(f"{key} is set by a flag: leave it out of the KEY VALUE pairs")
        if key == "DATASET.FEW_SHOT_SPLIT":
            parser.error(f"{key} is for one data set, seed and number of shots: give --few-shot-split to train.py")
    if "tta" in args.protocol and len(args.protocol) > 1:
        parser.error("--protocol tta already has both transfers: leave the other protocols out")
    if args.cutout and "INPUT.TRANSFORMS" in args.opts[::2]:
        parser.error("INPUT.TRANSFORMS is set by --cutout: leave one of them out")
    if args.sweep:
        problem = sweep_problem(args)
        if problem:
            parser.error(problem)
    return args


def protocols_of(words: list[str]) -> list[str]:
    """Return the names from `PROTOCOLS` for the words of --protocol."""
    if words == ["tta"]:
        return ["xd", "dg"]
    return [NAMES[name] for name in (NAMES if "all" in words else words)]


def sweep_problem(args: argparse.Namespace) -> str:
    """Return an error message if a setting contradicts --sweep; else ""."""
    key, *values = args.sweep
    if not KEY.fullmatch(key) or key in (*BY_FLAGS, "TEST.SPLIT"):
        return f"--sweep cannot vary {key}: give a key of the method or of its training, for example OPTIM.LR"
    if len(set(values)) < max(2, len(values)):
        return f"--sweep {key} needs two or more different values (got {' '.join(values) or 'none'})"
    for excluded_key in ("TEST.SPLIT", key):
        if excluded_key in args.opts[::2]:
            return f"{excluded_key} is set by --sweep: leave it out of the KEY VALUE pairs"
    if args.protocol not in (["all"], ["few_shot"], ["base2new"]):
        return "--sweep has no other protocols than few_shot, its default, and base2new: give one of them"
    if args.strength:
        return "--strength has no effect with --sweep: leave it out"
    if args.cutout:
        return "--cutout has no effect with --sweep: leave it out"
    if args.shots != list(SHOTS) and len(args.shots) > 1:
        return f"--sweep takes one number of shots (got {' '.join(map(str, args.shots))}): leave the others out"
    return ""


def parse_count(word: str) -> int:
    """Return a word of the command line as a whole number; raise an error if it is below 1."""
    if not word.isdigit() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more (got {word})")
    return int(word)


def parse_strength(word: str) -> str:
    """Return a word of the command line; raise an error if it is neither a number from 0 to 1 nor auto."""
    if word != "auto" and not re.fullmatch(r"0|1|[01]?\.\d+|1\.0*", word) or word != "auto" and float(word) > 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, or auto (got {word})")
    return word
