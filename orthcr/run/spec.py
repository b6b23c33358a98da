"""The description of a run as data."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RunSpec:
    """The description of one training or evaluation.

    `flags.parse` makes it from the command line of train.py. Protocols and other programs make it directly. "" and None
    mean that a setting is not given.
    """

    trainer: str = ""
    root: str | None = None  # folder of the data sets
    dataset_config_file: str = ""
    images: str | None = None  # folder, CSV or JSON of own images, instead of a data set
    val: float | None = None  # val images of own images: a fraction, or a number of each class
    skip_unreadable: bool = False
    few_shot_split: str | None = None  # JSON lines file with the training images
    seed: int | None = None
    shots: int | None = None  # for programs: train.py has no flags for `shots`, `classes` and `split`
    classes: str = ""  # all, base or new
    source_domains: tuple[str, ...] | None = None
    target_domains: tuple[str, ...] | None = None
    transforms: tuple[str, ...] | None = None
    config_file: str = ""  # config file of the method
    backbone: str = ""
    head: str = ""
    template: str | None = None
    descriptions: str | None = None  # JSON file with sentences about the classes
    strength: str | None = None  # a number from 0 to 1, or auto
    eval_only: bool = False
    model_dir: str = ""  # output directory of the training that is evaluated
    load_epoch: int | None = None
    split: str = ""  # val or test
    output_dir: str = ""
    resume: str = ""
    no_train: bool = False
    print_config: bool = False
    opts: tuple[str, ...] = ()  # KEY VALUE ...
