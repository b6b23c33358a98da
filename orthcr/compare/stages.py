"""The stages of the protocols of CoOp, CoCoOp and MaPLe as planned runs, each with its output directory.

- base2new: train on 16 shots of the base classes, then test this model on the new classes.
- fewshot: train and test on all classes, with 1, 2, 4, 8 and 16 shots.
- xd: train on 16 shots of all classes of a source, then test this model on other data sets.
- dg: test the model of xd on the variants of its source.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import trainers
from orthcr.compare.benchmark_datasets import row_of, source_of, targets_of, variants_of
from orthcr.compare.command_line import SEEDS, SHOTS
from orthcr.compare.plans import PlannedRun
from orthcr.run.config_files import CONFIGS, owner_of
from orthcr.run.declarations import discover, is_foreign
from orthcr.run.spec import RunSpec

STAGES = ("base2new_train", "base2new_test", "fewshot", "xd_train", "xd_test", "dg_test")


@dataclass(frozen=True)
class Method:
    """A trainer with its settings."""

    trainer: str
    cfg: str = ""  # name of a file in configs/trainers/TRAINER; "": tiny for embedded data, else the published settings
    opts: tuple[str, ...] = ()  # KEY VALUE ...


@dataclass(frozen=True)
class Settings:
    """The YAML file of a method, and the output folder named after it."""

    folder: Path  # relative to the folder of the protocol
    file: Path | None  # None: the defaults of a trainer written for Dassl


def default_settings(trainer: str, backbone: str) -> Settings:
    """Return the settings of a method without a YAML file: its defaults, with the file of the backbone."""
    file = None if is_foreign(trainer) else CONFIGS / "backbones" / f"{backbone}.yaml"
    return Settings(Path(trainer, f"{backbone}_defaults"), file)


@dataclass(frozen=True)
class Stages:
    """The stages of the protocols for one method.

    A data set is named by its file in configs/datasets. The functions raise ValueError for a data set that does not
    exist or that the protocol does not use.
    """

    method: Method
    data: str | Path = "data"
    out: Path = Path("output")

    def __post_init__(self):
        discover(trainers)  # `settings` looks for the files of a trainer's parent classes

    def base2new_train(self, dataset: str, seed: int) -> PlannedRun:
        return self.plan_run("base2new_train", self.base_dir(dataset, seed), dataset, seed, "base")

    def base2new_test(self, dataset: str, seed: int) -> PlannedRun:
        model = self.base_dir(dataset, seed)
        return self.plan_run("base2new_test", model / "new", dataset, seed, "new", model=model)

    def fewshot(self, dataset: str, seed: int, shots: int) -> PlannedRun:
        settings = self.settings(dataset, "fewshot", shots)
        folder = self.out / "fewshot" / dataset / settings.folder / f"shots{shots}" / f"seed{seed}"
        return self.plan_run("fewshot", folder, dataset, seed, shots=shots, settings=settings)

    def xd_train(self, dataset: str, seed: int, opts: Iterable[str] = ()) -> PlannedRun:
        settings = self.settings(dataset, "xd")
        return self.plan_run("xd_train", self.source_dir(dataset, seed), dataset, seed, settings=settings, opts=opts)

    def xd_test(self, dataset: str, seed: int, stage: str = "xd_test") -> PlannedRun:
        model = self.source_dir(source_of(dataset), seed)
        return self.plan_run(stage, model / "eval" / dataset, dataset, seed, model=model)

    def dg_test(self, dataset: str, seed: int) -> PlannedRun:
        source = source_of(dataset)
        if dataset not in variants_of(source):
            raise ValueError(
                f"{dataset} is no variant of {source} (these are: {', '.join(variants_of(source))}): use xd_test"
            )
        return self.xd_test(dataset, seed, "dg_test")

    # ---------------------------------------------------------------- folders and settings

    def settings(self, dataset: str, protocol: str = "base2new", shots: int | None = None) -> Settings:
        """Return the method's settings for a data set.

        Args:
            dataset: its file in configs/datasets.
            protocol: one of `command_line.PROTOCOLS`.
            shots: number of training images of each class, for the few-shot protocol.
        """
        trainer, cfg, row = self.method.trainer, self.method.cfg, row_of(dataset)
        is_tiny = cfg == "tiny" or bool(not cfg and row and row.embedded)
        if cfg and not is_tiny:
            return Settings(Path(trainer, cfg), CONFIGS / "trainers" / trainer / f"{cfg}.yaml")
        owner = owner_of("tiny" if is_tiny else "vit_b16*", trainer)
        if not owner:
            return default_settings(trainer, "tiny" if is_tiny else "vit_b16")
        if is_tiny:
            cfg = cfg or embedded_file(owner, protocol)
        else:
            cfg = published_file(owner, dataset, protocol, shots)
        folder = Path(trainer, cfg if owner == trainer else f"{cfg}_of_{owner}")
        return Settings(folder, CONFIGS / "trainers" / owner / f"{cfg}.yaml")

    def base_dir(self, dataset: str, seed: int) -> Path:
        return self.out / "base2new" / dataset / "shots16" / self.settings(dataset).folder / f"seed{seed}"

    def source_dir(self, dataset: str, seed: int) -> Path:
        return self.out / "xd" / dataset / "shots16" / self.settings(dataset, "xd").folder / f"seed{seed}"

    def plan_run(
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
        """Return a planned training, or a planned evaluation of a model with the settings of its training.

        Args:
            stage: name of the stage, for the name of the run.
            folder: output directory.
            dataset: its file in configs/datasets.
            seed: seed of the training.
            classes: all, base or new.
            shots: number of training images of each class, for a training.
            settings: settings of a training; None: those of base2new.
            model: output directory of the model to evaluate; None: train a model.
            opts: KEY VALUE ...
        """
        spec = RunSpec(
            trainer=self.method.trainer,
            root=str(self.data),
            output_dir=str(folder),
            dataset_config_file=str(CONFIGS / "datasets" / f"{dataset}.yaml"),
            seed=seed,
            classes=classes,
            opts=(*opts, *self.method.opts),
        )
        if model:
            spec = replace(spec, eval_only=True, model_dir=str(model))
        else:
            file = (settings or self.settings(dataset)).file
            spec = replace(spec, shots=shots, config_file=str(file or ""))
        name = f"{self.method.trainer} {stage} {dataset} {seed}"
        if stage == "fewshot":
            name += f" {shots}"
        return PlannedRun(name, spec)


def embedded_file(trainer: str, protocol: str) -> str:
    """Return the stem of the file in configs/trainers/TRAINER for the embedded data and a protocol."""
    name = "tiny_cross_datasets"
    return name if protocol == "xd" and (CONFIGS / "trainers" / trainer / f"{name}.yaml").exists() else "tiny"


def published_file(trainer: str, dataset: str, protocol: str, shots: int | None) -> str:
    """Return the stem of the file in configs/trainers/TRAINER with the published settings for ViT-B/16.

    Of several files, the first in this list is taken:

    1. a file with the protocol or the data set in its name (MaPLe, PromptSRC, MMRL);
    2. vit_b16;
    3. a file for a context that starts from the words "a photo of a", _ctxv1 (CoCoOp);
    4. the first in the order of the names.

    CoOp's few-shot protocol has the epochs of its paper. In the other protocols CoOp starts from "a photo of a", as in
    CoCoOp's paper.
    """
    if trainer == "CoOp":
        name = "vit_b16"
        if dataset == "imagenet" or shots == 1:
            name += "_ep50"
        elif shots in (2, 4):
            name += "_ep100"
        return name if protocol == "fewshot" else f"{name}_ctxv1"
    files = sorted(path.stem for path in (CONFIGS / "trainers" / trainer).glob("vit_b16*.yaml"))
    files = [file for file in files if protocol == "fewshot" or "_few_shot" not in file]
    suffixes = {"xd": ["_cross_datasets"], "fewshot": [f"_few_shot_{dataset}", f"_{dataset}", "_few_shot"]}
    for suffix in suffixes.get(protocol, [f"_{dataset}"]):
        for file in files:
            if file.endswith(suffix):
                return file
    general_files = [file for file in files if not re.search("_(cross_datasets|imagenet|few_shot)", file)]
    if "vit_b16" in general_files or not general_files:
        return "vit_b16"
    word_files = [file for file in general_files if file.endswith("_ctxv1")]
    return word_files[0] if word_files else general_files[0]


# ------------------------------------------------------------------ the command line of scripts/run.py


def arguments_of_runs(stage: str, dataset: str, seed: str, shots: str, has_training: bool) -> Iterator[tuple]:
    """Yield the arguments of each run of a stage: data set, seed and, in the few-shot protocol, shots.

    Args:
        stage: one of `STAGES`.
        dataset: its file in configs/datasets, or "all".
        seed: a number, or "all".
        shots: a number, or "all".
        has_training: whether the method is trained; if not, one seed and one number of shots are enough.
    """
    all_names = {"xd_train": ["imagenet"], "xd_test": targets_of("imagenet"), "dg_test": variants_of("imagenet")}
    names, seeds, numbers = [dataset], [seed], [shots]
    if dataset == "all":
        names = all_names.get(stage, ["imagenet", *targets_of("imagenet")])
    if seed == "all":
        seeds = SEEDS if has_training else SEEDS[:1]
    if shots == "all":
        numbers = SHOTS if has_training else [16]
    for name in names:
        for s in map(int, seeds):
            if stage == "fewshot":
                for number in map(int, numbers):
                    yield name, s, number
            else:
                yield name, s
