"""The description of a run as data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RunSpec:
    """One training or evaluation.

    `flags.parse` makes it from the command line of train.py; the protocols and other programs make it directly. ""
    and None stand for a setting that is not given.
    """

    trainer: str = ""
    root: str | None = None  # folder of the data sets
    dataset_config_file: str = ""
    images: str | None = None  # own images, in place of a data set
    val: float | None = None  # of own images: share, or number of each class
    skip_unreadable: bool = False
    few_shot_split: str | None = None  # JSON lines file with the training images
    seed: int | None = None
    shots: int | None = None  # no flag of train.py, like `classes` and `split`: programs set it
    classes: str = ""  # all, base or new
    source_domains: tuple[str, ...] | None = None
    target_domains: tuple[str, ...] | None = None
    transforms: tuple[str, ...] | None = None
    config_file: str = ""  # of the method
    backbone: str = ""
    head: str = ""
    template: str | None = None
    descriptions: str | None = None  # JSON file with sentences of the classes
    strength: str | None = None  # a number from 0 to 1, or auto
    eval_only: bool = False
    model_dir: str = ""  # output directory of the training to be evaluated
    load_epoch: int | None = None
    split: str = ""  # val or test
    output_dir: str = ""
    resume: str = ""
    no_train: bool = False
    print_config: bool = False
    opts: tuple[str, ...] = ()  # KEY VALUE ...
