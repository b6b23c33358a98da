"""How tables and pictures call what is no data set; those are in datasets/benchmarks.py."""

AVERAGE = "average"


def images(shots: int | None) -> str:
    """Of each class."""
    return "all images" if shots is None or shots < 0 else f"{shots} shot{'s' * (shots != 1)}"
