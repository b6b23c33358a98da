"""Words of tables and pictures; the names of the data sets are in datasets/catalogue.py."""

AVERAGE = "average"


def images(shots: int | None) -> str:
    """Return the number of training images of a class in words; None and numbers below 0 are all images."""
    if shots is None or shots < 0:
        return "all images"
    return "1 shot" if shots == 1 else f"{shots} shots"
