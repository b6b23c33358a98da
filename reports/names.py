"""How tables and pictures call things, and in which order."""

from collections.abc import Iterable

# the order of CoOp's tables; other data sets follow by name
SHORT = {
    "ImageNet": "ImageNet",
    "Caltech101": "Caltech101",
    "OxfordPets": "Pets",
    "StanfordCars": "Cars",
    "OxfordFlowers": "Flowers",
    "Food101": "Food101",
    "FGVCAircraft": "Aircraft",
    "SUN397": "SUN397",
    "DescribableTextures": "DTD",
    "EuroSAT": "EuroSAT",
    "UCF101": "UCF101",
    "ImageNetV2": "-V2",
    "ImageNetSketch": "-Sketch",
    "ImageNetA": "-A",
    "ImageNetR": "-R",
    "ShapesFog": "Fog",
    "ShapesNight": "Night",
    "ShapesNeon": "Neon",
    "ShapesScribble": "Scribble",
}
AVERAGE = "average"


def short(dataset: str) -> str:
    """In a table's head."""
    return SHORT.get(dataset, dataset)


def in_order(datasets: Iterable[str]) -> list[str]:
    order = list(SHORT)
    return sorted(set(datasets), key=lambda d: (order.index(d) if d in order else len(order), d))


def images(shots: int | None) -> str:
    """Of each class."""
    return "all images" if shots is None or shots < 0 else f"{shots} shot{'s' * (shots != 1)}"
