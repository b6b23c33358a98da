"""The stages of the protocols for any trainer. The scripts scripts/<method>/*.sh call this one.

    python -m scripts.run TRAINER base2new_train DATASET [SEED] [KEY VALUE ...]   16 shots of the base classes
    python -m scripts.run TRAINER base2new_test DATASET [SEED] [KEY VALUE ...]    the same model on the new classes
    python -m scripts.run TRAINER fewshot DATASET [SEED [SHOTS]] [KEY VALUE ...]  1, 2, 4, 8, 16 shots, all classes
    python -m scripts.run TRAINER xd_train [DATASET [SEED]] [KEY VALUE ...]       16 shots, all classes of the source
    python -m scripts.run TRAINER xd_test [DATASET [SEED]] [KEY VALUE ...]        the same model on another data set
    python -m scripts.run TRAINER dg_test [DATASET [SEED]] [KEY VALUE ...]        the same model on its variants

DATASET is a name in configs/datasets; "all" is the whole benchmark: its 11 data sets, 10 targets or 4 variants.
SEED and SHOTS may be "all", which is their default: 1 2 3 and 1 2 4 8 16.

From the environment, with the default in parentheses:
    DATA      folder of the data sets (data)
    CFG       name of a file in configs/trainers/TRAINER; a test takes the one of its training
              (published settings; for embedded data tiny, in the transfers tiny_cross_datasets if there is one)
    OUTPUT    (output)

Finished runs are skipped, unfinished ones go on where they were. Tables of all: python report.py output
"""

import argparse
import os
import sys
from pathlib import Path

import datasets
import trainers
from dassl.engine import TRAINER_REGISTRY
from dassl.infrastructure.command import command
from dassl.utils import check_availability
from datasets.catalogue import stems
from orthcr.compare.plans import Job, execute, format_accuracy
from orthcr.compare.stages import STAGES, Method, Stages, arguments_of_runs
from orthcr.run.declarations import discover

BY_WORDS = ("SEED", "OUTPUT_DIR", "DATASET.NAME", "DATASET.NUM_SHOTS", "DATASET.SUBSAMPLE_CLASSES", "TRAINER.NAME")


def parse(argv: list[str] | None) -> tuple[argparse.Namespace, list[str], tuple[str, ...]]:
    """Parse the command line.

    Returns:
        The trainer and stage; DATASET, SEED and SHOTS, with "all" in place of missing ones; KEY VALUE ...
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trainer")
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="DATASET [SEED [SHOTS]] [KEY VALUE ...]")
    args = parser.parse_args(argv)
    first = next(
        (k for k, word in enumerate(args.words) if word.split(".")[0].isupper()), len(args.words)
    )  # KEYs are in capitals
    words, opts = args.words[:first], tuple(args.words[first:])
    usage = "DATASET [SEED [SHOTS]]" if args.stage == "fewshot" else "DATASET [SEED]"
    if len(words) > len(usage.split()) or not all(word == "all" or word.isdigit() for word in words[1:]):
        parser.error(f"{args.stage} takes {usage}, not {words}")
    if words[2:] == ["0"]:
        parser.error("SHOTS is 0: give 1 or more; zero-shot CLIP is the trainer ZeroshotCLIP")
    for key in opts[::2]:
        if key in BY_WORDS:  # the results would lie in a directory of another name
            parser.error(f"{key} is set by the words before it: leave it out of the KEY VALUE pairs")
    if args.stage.startswith(("xd", "dg")):
        if words[:1] and words[0].isdigit():  # a seed comes first, as in CoCoOp's xd_train.sh
            words.insert(0, "all")
    elif not words:
        parser.error(f'{args.stage} needs a DATASET of {", ".join(stems())}, or "all"')
    return args, [*words, *["all"] * (3 - len(words))], opts


def main(argv: list[str] | None = None) -> list[str]:
    """Make the runs of a stage; return a line for each run that failed."""
    args, words, opts = parse(argv)
    for package in (trainers, datasets):
        discover(package)
    check_availability(args.trainer, TRAINER_REGISTRY.registered_names())
    has_training = bool(getattr(TRAINER_REGISTRY.get(args.trainer), "learner", True))
    method = Method(args.trainer, os.environ.get("CFG", ""), opts)
    stages = Stages(method, os.environ.get("DATA", "data"), Path(os.environ.get("OUTPUT", "output")))
    stage = getattr(stages, args.stage)
    plan = [Job((stage(*stage_args),)) for stage_args in arguments_of_runs(args.stage, *words, has_training)]
    lines = []

    def on_job_done(job: Job, results: list[dict]) -> None:
        lines.append(f"{job.runs[0].name}: {format_accuracy(results[0])}")

    try:
        failures = execute(plan, on_job_done=on_job_done)
    except KeyboardInterrupt:
        failures = ["interrupted: give the same command again to resume"]
    print("\n".join(["", *lines]))
    if any("--root" in line or "--output-dir" in line for line in failures):
        failures[-1] += "\n(here DATA in the environment stands for --root, OUTPUT for --output-dir)"
    return failures


if __name__ == "__main__":
    sys.exit(command(main))
