"""The role of each config key: whether two runs may differ in it, and whether it describes the method.

A key is named by its beginning, or by its end if the name here begins with a dot. A key that is not here is a setting
of the method and of its training.
"""

# of one process on one machine: not compared between runs
MACHINE = (
    "OUTPUT_DIR",
    "RESUME",
    "VERBOSE",
    "USE_CUDA",
    "DATASET.ROOT",
    "DATASET.FEATURE_CACHE",  # and DATASET.FEATURE_CACHE_GIB
    "DATALOADER.NUM_WORKERS",
    "TRAIN.CHECKPOINT_FREQ",
    "TRAIN.PRINT_FREQ",
    "TRAIN.TRACKER",
)
# of the evaluation at the end of a training: the trained model does not depend on them
EVALUATION = (
    "TEST.EVALUATOR",
    "TEST.PER_CLASS_RESULT",
    "TEST.COMPUTE_CMAT",
    "TEST.NO_TEST",
    "TEST.CALIBRATE",
    "TEST.SPLIT",
)
# of the method: an evaluation may have another value than the training of its model
MAY_DIFFER_FROM_MODEL = (
    ".PREC",
    ".MONITOR",
    ".STRENGTH",
    ".REACH",
    ".N_ITERS",
    ".DESCRIPTIONS",
    ".DESCRIPTIONS_SHA256",
)
# paths of files, which are compared by the checksums in other keys
BY_CHECKSUM = ("DATASET.FEW_SHOT_SPLIT", ".DESCRIPTIONS")
# not of the method: the machine, the data, the evaluation, and the fields of a report's `Run`
NOT_OF_METHOD = (
    *MACHINE,
    "SEED",
    "VERSION",
    "DATASET.",
    "DATALOADER.TEST.",
    "TRAIN.",
    "TEST.",
    "TRAINER.NAME",
    "MODEL.BACKBONE.NAME",
    ".PREC",
    ".MONITOR",
    ".DESCRIPTIONS_SHA256",
)
# of the method, although NOT_OF_METHOD has the beginning of their names
OF_METHOD = ("TEST.FINAL_MODEL", "DATASET.FEW_SHOT_SPLIT", "DATASET.SAMPLING")


def is_one_of(key: str, names: tuple[str, ...]) -> bool:
    """Return whether a key has one of the names: beginnings, or ends with a dot in front."""
    ends = tuple(name for name in names if name.startswith("."))
    beginnings = tuple(name for name in names if not name.startswith("."))
    return key.startswith(beginnings) or key.endswith(ends)


def describes_method(key: str) -> bool:
    """Return whether runs that differ in a key are of different methods."""
    return key in OF_METHOD or not is_one_of(key, NOT_OF_METHOD)
