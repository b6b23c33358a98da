"""How many classes and images the benchmarks have, and what they are called."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml

from dassl.utils import check_availability

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "datasets"


@dataclass(frozen=True)
class Size:
    """Number of classes, and of images in each split; None where a data set has no such split."""

    classes: int
    train: int | None
    val: int | None
    test: int | None

    @classmethod
    def of(cls, train: list, val: list, test: list) -> "Size":
        """The size of three lists of `Datum`."""
        labels = {item.label for items in (train, val, test) for item in items}
        return cls(len(labels), len(train) or None, len(val) or None, len(test) or None)

    def __str__(self):
        parts = [f"{getattr(self, part) or 0:,} {part}" for part in ("train", "val", "test")]
        return f"{self.classes:,} classes, {' / '.join(parts)} images"


SIZES = {
    "Caltech101": Size(100, 4_128, 1_649, 2_465),
    "OxfordPets": Size(37, 2_944, 736, 3_669),
    "StanfordCars": Size(196, 6_509, 1_635, 8_041),
    "OxfordFlowers": Size(102, 4_093, 1_633, 2_463),
    "Food101": Size(101, 50_500, 20_200, 30_300),
    "FGVCAircraft": Size(100, 3_334, 3_333, 3_333),
    "SUN397": Size(397, 15_880, 3_970, 19_850),
    "DescribableTextures": Size(47, 2_820, 1_128, 1_692),
    "EuroSAT": Size(10, 13_500, 5_400, 8_100),
    "UCF101": Size(101, 7_639, 1_898, 3_783),
    "ImageNet": Size(1_000, 1_281_167, None, 50_000),
    "ImageNetV2": Size(1_000, None, None, 10_000),
    "ImageNetSketch": Size(1_000, None, None, 50_889),
    "ImageNetA": Size(200, None, None, 7_500),
    "ImageNetR": Size(200, None, None, 30_000),
}


def config_names() -> dict[str, str]:
    """{stem of the YAML in configs/datasets: registered name} of the benchmarks."""
    names = {path.stem: yaml.safe_load(path.read_text())["DATASET"]["NAME"] for path in sorted(CONFIGS.glob("*.yaml"))}
    return {stem: name for stem, name in names.items() if name in SIZES}


def benchmark_names(words: Iterable[str]) -> list[str]:
    """Registered names for registered names or YAML stems, in any case.

    Raises ValueError, with the nearest name, for one that is neither.
    """
    known = {name.lower(): name for name in SIZES}
    known |= {stem.lower(): name for stem, name in config_names().items()}
    for word in words:
        if word.lower() not in known:
            check_availability(word, [*SIZES, *config_names()])
    return [known[word.lower()] for word in words]
