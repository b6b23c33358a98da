"""Words for tables and pictures. The names of the data sets are in datasets/catalogue.py."""

AVERAGE = "average"


def format_shots(shots: int | None) -> str:
    """Return the number of shots in words; None and negative numbers mean all images."""
    if shots is None or shots < 0:
        return "all images"
    return "1 shot" if shots == 1 else f"{shots} shots"
