"""The four protocols of CoOp, CoCoOp and MaPLe for any trainer; what scripts/<method>/*.sh call.

    python scripts/run.py TRAINER base2new_train DATASET [SEED] [KEY VALUE ...]   16 shots of the base classes
    python scripts/run.py TRAINER base2new_test DATASET [SEED] [KEY VALUE ...]    that model on the new classes
    python scripts/run.py TRAINER fewshot DATASET [SEED [SHOTS]] [KEY VALUE ...]  1, 2, 4, 8, 16 shots, all classes
    python scripts/run.py TRAINER xd_train [DATASET [SEED]] [KEY VALUE ...]       16 shots, all classes of the source
    python scripts/run.py TRAINER xd_test [DATASET [SEED]] [KEY VALUE ...]        that model on another data set
    python scripts/run.py TRAINER dg_test [DATASET [SEED]] [KEY VALUE ...]        that model on a variant of the source

DATASET is a file of configs/datasets; "all" is all of the benchmark: its 11 data sets, 10 targets or 4 variants. SEED
and SHOTS may be "all" too (1 2 3; 1 2 4 8 16), as they are when left out. From the environment: DATA, the folder of the
data sets (data); CFG, a file of configs/trainers/TRAINER, for tests that of the training (vit_b16, for embedded data
tiny, for CoOp those of the published tables); OUTPUT (output).
Finished runs are skipped, unfinished ones go on where they were. Tables of all: python report.py output
"""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import datasets  # noqa: E402
import trainers  # noqa: E402
from dassl.data.datasets import DATASET_REGISTRY  # noqa: E402
from dassl.engine import TRAINER_REGISTRY  # noqa: E402
from dassl.utils import check_availability, read_json  # noqa: E402
from datasets import benchmarks  # noqa: E402
from datasets.base import DrawnDataset  # noqa: E402
from datasets.benchmarks import stems as dataset_names  # noqa: E402
from train import MAY_DIFFER, USER_ERRORS, check_same_run, discover, parse, run, setup_cfg  # noqa: E402

for package in (trainers, datasets):
    discover(package)
SEEDS, SHOTS = (1, 2, 3), (1, 2, 4, 8, 16)
BENCHMARK = (
    "imagenet caltech101 oxford_pets stanford_cars oxford_flowers food101 fgvc_aircraft sun397 dtd eurosat ucf101"
).split()
EMBEDDED = "shapes digits colours patterns outlines compositions".split()
SOURCES = {"imagenet": BENCHMARK[1:], "shapes": EMBEDDED[1:]}  # of cross-dataset transfer: its targets
BY_WORDS = ("SEED", "OUTPUT_DIR", "DATASET.NAME", "DATASET.NUM_SHOTS", "DATASET.SUBSAMPLE_CLASSES", "TRAINER.NAME")
PROTOCOLS = ("base2new_train", "base2new_test", "fewshot", "xd_train", "xd_test", "dg_test")


def is_embedded(dataset: str) -> bool:
    check_availability(dataset, list(dataset_names()))
    return issubclass(DATASET_REGISTRY.get(dataset_names()[dataset]), DrawnDataset)


def source_of(dataset: str) -> str:
    """On what the models that are tested on `dataset` are trained."""
    return "shapes" if is_embedded(dataset) else "imagenet"


def variants(source: str) -> list[str]:
    return [benchmark.stem for benchmark in benchmarks.variants(dataset_names()[source])]


def coop_cfg(dataset: str, shots: int | None) -> str:
    """What CoOp was published with: few-shot, its paper's epochs; else, the start "a photo of a" of CoCoOp's paper."""
    epochs = "_ep50" if dataset == "imagenet" or shots == 1 else "_ep100" if shots in (2, 4) else ""
    return f"vit_b16{epochs}" + "_ctxv1" * (shots is None)


@dataclass
class Method:
    """A trainer with a config, ready for any run of any protocol; each method returns what its `results.json` holds.

    Raises ValueError or OSError as `train.run`; FileNotFoundError if the model to be tested is not there.
    """

    trainer: str
    cfg: str = ""  # "": vit_b16, of CoOp `coop_cfg`, for embedded data tiny
    data: str = "data"
    out: Path = Path("output")
    opts: tuple[str, ...] = ()  # KEY VALUE ...
    quiet: bool = False

    def base2new_train(self, dataset: str, seed: int) -> dict:
        return self.train(self.base_dir(dataset, seed), self.name(dataset), dataset, seed, 16, "base")

    def base2new_test(self, dataset: str, seed: int) -> dict:
        model = self.base_dir(dataset, seed)
        return self.test(model / "new", model, dataset, seed, "new")

    def fewshot(self, dataset: str, seed: int, shots: int) -> dict:
        name = self.name(dataset, shots)
        folder = self.out / "fewshot" / dataset / name / f"shots{shots}" / f"seed{seed}"
        return self.train(folder, name, dataset, seed, shots)

    def xd_train(self, dataset: str, seed: int) -> dict:
        return self.train(self.source_dir(dataset, seed), self.name(dataset), dataset, seed, 16)

    def xd_test(self, dataset: str, seed: int) -> dict:
        model = self.source_dir(source_of(dataset), seed)
        return self.test(model / "eval" / dataset, model, dataset, seed)

    def dg_test(self, dataset: str, seed: int) -> dict:
        known = variants(source_of(dataset))
        if dataset not in known:
            raise ValueError(f"{dataset} is no variant of {source_of(dataset)}, as {', '.join(known)} are: use xd_test")
        return self.xd_test(dataset, seed)

    # ---------------------------------------------------------------- where, and how

    def name(self, dataset: str, shots: int | None = None) -> Path:
        """TRAINER/CFG, below configs/trainers and below the output; `shots` in the few-shot protocol only."""
        cfg = "tiny" if is_embedded(dataset) else coop_cfg(dataset, shots) if self.trainer == "CoOp" else "vit_b16"
        return Path(self.trainer) / (self.cfg or cfg)

    def base_dir(self, dataset: str, seed: int) -> Path:
        return self.out / "base2new" / dataset / "shots16" / self.name(dataset) / f"seed{seed}"

    def source_dir(self, dataset: str, seed: int) -> Path:
        return self.out / "xd" / dataset / "shots16" / self.name(dataset) / f"seed{seed}"

    def train(self, folder: Path, name: Path, dataset: str, seed: int, shots: int, classes: str = "all") -> dict:
        config = str(ROOT / "configs" / "trainers" / f"{name}.yaml")
        return self.run(folder, dataset, seed, classes, ["--config-file", config], ["DATASET.NUM_SHOTS", str(shots)])

    def test(self, folder: Path, model: Path, dataset: str, seed: int, classes: str = "all") -> dict:
        if not (model / "results.json").exists():
            raise FileNotFoundError(f"there is no finished training in {model}: train it first")
        how = ["--eval-only", "--model-dir", str(model)]  # the settings are the model's
        return self.run(folder, dataset, seed, classes, how, newer=model / "results.json")

    def run(
        self,
        folder: Path,
        dataset: str,
        seed: int,
        classes: str,
        how: list[str],
        opts: Iterable[str] = (),
        newer: Path | None = None,
    ) -> dict:
        """`train.run`, or what it left in `folder` if that is finished and not older than `newer`."""
        check_availability(dataset, list(dataset_names()))
        done = folder / "results.json"
        config = ROOT / "configs" / "datasets" / f"{dataset}.yaml"
        argv = [
            "--trainer",
            self.trainer,
            "--root",
            self.data,
            "--seed",
            str(seed),
            "--output-dir",
            str(folder),
            "--dataset-config-file",
            str(config),
            *how,
        ]
        args = parse([*argv, "DATASET.SUBSAMPLE_CLASSES", classes, *opts, *self.opts])
        with open(os.devnull, "w") as null, redirect_stdout(null if self.quiet else sys.stdout):  # log.txt has it all
            if not done.exists() or newer and done.stat().st_mtime < newer.stat().st_mtime:
                return run(args)
            check_same_run(setup_cfg(args), tuple(key for key in MAY_DIFFER if key != "TEST."))
        try:
            return read_json(done)
        except ValueError as error:
            raise ValueError(f"{done} is damaged ({error}): remove it, and the run is finished again") from error


# ------------------------------------------------------------------ the command


def jobs(protocol: str, dataset: str, seed: str, shots: str, trained: bool) -> Iterator[tuple]:
    """The arguments of each run; a method without training gives the same for every seed and number of shots."""
    whole = {"xd_test": SOURCES["imagenet"], "dg_test": variants("imagenet"), "xd_train": ["imagenet"]}
    seeds = (SEEDS if trained else SEEDS[:1]) if seed == "all" else [int(seed)]
    for name in whole.get(protocol, BENCHMARK) if dataset == "all" else [dataset]:
        for s in seeds:
            if protocol == "fewshot":
                yield from ((name, s, k) for k in ((SHOTS if trained else [16]) if shots == "all" else [int(shots)]))
            else:
                yield name, s


def told(results: dict) -> str:
    return f"{results['accuracy']:.1f}" if "accuracy" in results else "trained, not tested"


def split_opts(words: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """Positional words, and KEY VALUE ... from the first KEY on, which is in capitals."""
    first = next((k for k, word in enumerate(words) if word.isupper()), len(words))
    return words[:first], tuple(words[first:])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trainer")
    parser.add_argument("protocol", choices=PROTOCOLS)
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="DATASET [SEED [SHOTS]] [KEY VALUE ...]")
    args = parser.parse_args(argv)
    words, opts = split_opts(args.words)
    if len(words) > 2 + (args.protocol == "fewshot") or not all(w == "all" or w.isdigit() for w in words[1:]):
        parser.error(
            f"{args.protocol} takes DATASET [SEED{' [SHOTS]' if args.protocol == 'fewshot' else ''}], not {words}"
        )
    if words[2:] == ["0"]:
        parser.error("SHOTS is 0: give 1 or more; zero-shot CLIP is the trainer ZeroshotCLIP")
    if not words and args.protocol in ("base2new_train", "base2new_test", "fewshot"):
        parser.error(f'{args.protocol} needs a DATASET of {", ".join(dataset_names())}, or "all"')
    taken = next((key for key in opts[::2] if key in BY_WORDS), None)
    if taken:  # the results would lie in a directory of another name
        parser.error(f"{taken} is what the words before say: {args.protocol} DATASET [SEED ...]")
    if args.protocol.startswith(("xd", "dg")) and words[:1] and words[0].isdigit():  # as CoCoOp's xd_train.sh: a seed
        words.insert(0, "all")
    dataset, seed, shots = [*words, *["all"] * (3 - len(words))]

    failed, done = [], []
    try:
        check_availability(args.trainer, TRAINER_REGISTRY.registered_names())
        method = Method(
            args.trainer,
            os.environ.get("CFG", ""),
            os.environ.get("DATA", "data"),
            Path(os.environ.get("OUTPUT", "output")),
            opts,
        )
        trained = getattr(TRAINER_REGISTRY.get(args.trainer), "learner", True)
        for job in jobs(args.protocol, dataset, seed, shots, bool(trained)):
            what = " ".join(map(str, (args.trainer, args.protocol, *job)))
            try:
                done.append(f"{what}: {told(getattr(method, args.protocol)(*job))}")
            except USER_ERRORS as error:  # the others of "all" still run
                failed.append(f"{what}: {error}")
    except USER_ERRORS as error:
        failed.append(str(error))
    except KeyboardInterrupt:
        failed.append("interrupted: the same command goes on where it was")
    print("\n".join(["", *done]))
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    if any("--root" in line or "--output-dir" in line for line in failed):
        print("(here DATA in the environment stands for --root, OUTPUT for --output-dir)", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
