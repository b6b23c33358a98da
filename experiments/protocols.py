"""The protocols of CoOp, CoCoOp and MaPLe: their stages as runs to be made, and where each run lies.

base2new: 16 shots of the base classes; then that model on the new classes.
fewshot: 1, 2, 4, 8, 16 shots of all classes.
xd: 16 shots of all classes of a source; then that model on other data sets.
dg: the same model on the variants of its source.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dassl.utils import check_availability
from datasets import benchmarks

from .config import CONFIGS, is_foreign, owner_of
from .flags import PROTOCOLS, SEEDS, SHOTS  # noqa: F401  PROTOCOLS
from .plans import PlannedRun

STAGES = ("base2new_train", "base2new_test", "fewshot", "xd_train", "xd_test", "dg_test")


@dataclass(frozen=True)
class Method:
    """A trainer with its settings."""

    trainer: str
    cfg: str = ""  # of configs/trainers/TRAINER; "": that of the published figures, for embedded data tiny
    opts: tuple[str, ...] = ()  # KEY VALUE ...


@dataclass(frozen=True)
class Settings:
    """A YAML file of a method, and the folder below the output whose name says which it is."""

    folder: Path
    file: Path | None  # None: of a trainer written for Dassl, which has its defaults


def without_file(trainer: str, backbone: str) -> Settings:
    """Return the settings of a method without a YAML: its defaults, and the backbone's file."""
    file = None if is_foreign(trainer) else CONFIGS / "backbones" / f"{backbone}.yaml"
    return Settings(Path(trainer, f"{backbone}_defaults"), file)


@dataclass(frozen=True)
class Stages:
    """Every stage of the protocols for one method; data sets are called by their files in configs/datasets.

    Raises ValueError for a data set that is not there or not of that protocol.
    """

    method: Method
    data: str | Path = "data"
    out: Path = Path("output")

    def base2new_train(self, dataset: str, seed: int) -> PlannedRun:
        return self.planned("base2new_train", self.base_dir(dataset, seed), dataset, seed, "base")

    def base2new_test(self, dataset: str, seed: int) -> PlannedRun:
        model = self.base_dir(dataset, seed)
        return self.planned("base2new_test", model / "new", dataset, seed, "new", model=model)

    def fewshot(self, dataset: str, seed: int, shots: int) -> PlannedRun:
        settings = self.settings(dataset, "fewshot", shots)
        folder = self.out / "fewshot" / dataset / settings.folder / f"shots{shots}" / f"seed{seed}"
        return self.planned("fewshot", folder, dataset, seed, shots=shots, settings=settings)

    def xd_train(self, dataset: str, seed: int, opts: Iterable[str] = ()) -> PlannedRun:
        settings = self.settings(dataset, "xd")
        return self.planned("xd_train", self.source_dir(dataset, seed), dataset, seed, settings=settings, opts=opts)

    def xd_test(self, dataset: str, seed: int, stage: str = "xd_test") -> PlannedRun:
        model = self.source_dir(source_of(dataset), seed)
        return self.planned(stage, model / "eval" / dataset, dataset, seed, model=model)

    def dg_test(self, dataset: str, seed: int) -> PlannedRun:
        source = source_of(dataset)
        if dataset not in variants(source):
            raise ValueError(f"{dataset} is no variant of {source}, as {', '.join(variants(source))} are: use xd_test")
        return self.xd_test(dataset, seed, "dg_test")

    # ---------------------------------------------------------------- where, and how

    def settings(self, dataset: str, protocol: str = "base2new", shots: int | None = None) -> Settings:
        """Return the method's settings for a data set; `shots`: of the few-shot protocol."""
        trainer, cfg, row = self.method.trainer, self.method.cfg, row_of(dataset)
        tiny = cfg == "tiny" or bool(not cfg and row and row.embedded)
        if cfg and not tiny:
            return Settings(Path(trainer, cfg), CONFIGS / "trainers" / trainer / f"{cfg}.yaml")
        owner = owner_of("tiny" if tiny else "vit_b16*", trainer)
        if not owner:
            return without_file(trainer, "tiny" if tiny else "vit_b16")
        cfg = "tiny" if tiny else published(owner, dataset, protocol, shots)
        folder = Path(trainer, cfg if owner == trainer else f"{cfg}_of_{owner}")
        return Settings(folder, CONFIGS / "trainers" / owner / f"{cfg}.yaml")

    def base_dir(self, dataset: str, seed: int) -> Path:
        return self.out / "base2new" / dataset / "shots16" / self.settings(dataset).folder / f"seed{seed}"

    def source_dir(self, dataset: str, seed: int) -> Path:
        return self.out / "xd" / dataset / "shots16" / self.settings(dataset, "xd").folder / f"seed{seed}"

    def planned(
        self,
        stage: str,
        folder: Path,
        dataset: str,
        seed: int,
        classes: str = "all",
        shots: int = 16,
        settings: Settings | None = None,
        model: Path | None = None,
        opts: Iterable[str] = (),
    ) -> PlannedRun:
        """A training in `folder`; with `model`, the folder of one, its evaluation with the settings that it had."""
        if model:
            how = ("--eval-only", "--model-dir", str(model))
        else:
            file = (settings or self.settings(dataset)).file
            how = ("--config-file", str(file)) if file else ()
            opts = ("DATASET.NUM_SHOTS", str(shots), *opts)
        argv = ("--trainer", self.method.trainer, "--root", str(self.data), "--output-dir", str(folder))
        argv += ("--dataset-config-file", str(CONFIGS / "datasets" / f"{dataset}.yaml"), "--seed", str(seed), *how)
        argv += ("DATASET.SUBSAMPLE_CLASSES", classes, *opts, *self.method.opts)
        name = f"{self.method.trainer} {stage} {dataset} {seed}" + f" {shots}" * (stage == "fewshot")
        return PlannedRun(name, folder, argv, model)


def published(trainer: str, dataset: str, protocol: str, shots: int | None) -> str:
    """The file of configs/trainers/TRAINER that its published figures were made with on ViT-B/16.

    Of several the one that is named after the protocol or the data set, as MaPLe's, PromptSRC's and MMRL's are, else
    vit_b16, else one from the words "a photo of a" (_ctxv1), as CoCoOp's, else the first.
    CoOp's few-shot has its paper's epochs, everything else of it the start "a photo of a" of CoCoOp's paper.
    """
    if trainer == "CoOp":
        epochs = "_ep50" if dataset == "imagenet" or shots == 1 else "_ep100" if shots in (2, 4) else ""
        return f"vit_b16{epochs}" + "_ctxv1" * (protocol != "fewshot")
    files = sorted(path.stem for path in (CONFIGS / "trainers" / trainer).glob("vit_b16*.yaml"))
    files = [file for file in files if protocol == "fewshot" or "_few_shot" not in file]
    ends = {"xd": ["_cross_datasets"], "fewshot": [f"_few_shot_{dataset}", f"_{dataset}", "_few_shot"]}
    own = [file for end in ends.get(protocol, [f"_{dataset}"]) for file in files if file.endswith(end)]
    common = [file for file in files if not re.search("_(cross_datasets|imagenet|few_shot)", file)]
    words = [file for file in common if file.endswith("_ctxv1")]
    return next(iter([*own, *["vit_b16"] * ("vit_b16" in common), *words, *common]), "vit_b16")


# ------------------------------------------------------------------ what is all of a benchmark


def row_of(dataset: str) -> benchmarks.Benchmark | None:
    """Its facts; None: a user's own. Raises ValueError, with the nearest, if there is no such file."""
    check_availability(dataset, list(benchmarks.stems()))
    return benchmarks.get(benchmarks.stems()[dataset])


def source_of(dataset: str) -> str:
    """On what the models that are tested on `dataset` are trained."""
    row = row_of(dataset)
    return benchmarks.find(benchmarks.source_of(row) if row else "ImageNet").stem


def variants(source: str) -> list[str]:
    return [row.stem for row in benchmarks.variants(benchmarks.stems()[source])]


def targets(source: str) -> list[str]:
    return [row.stem for row in benchmarks.targets(benchmarks.stems()[source])]


def arguments(stage: str, dataset: str, seed: str, shots: str, trained: bool) -> Iterator[tuple]:
    """Those of each run where any may be "all"; without training each seed and number of shots gives the same."""
    of = {"xd_train": ["imagenet"], "xd_test": targets("imagenet"), "dg_test": variants("imagenet")}
    names = of.get(stage, ["imagenet", *targets("imagenet")]) if dataset == "all" else [dataset]
    seeds = (SEEDS if trained else SEEDS[:1]) if seed == "all" else [int(seed)]
    for name in names:
        for s in seeds:
            if stage == "fewshot":
                yield from ((name, s, k) for k in ((SHOTS if trained else [16]) if shots == "all" else [int(shots)]))
            else:
                yield name, s
