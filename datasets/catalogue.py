"""The data sets of configs/datasets, a row each: names, folder, size, addresses of the files, source of a variant.

Folders are CoOp's (its DATASETS.md). Checksums and megabytes are those of torchvision, TensorFlow Datasets or the host.
A file without a published checksum has none here.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "datasets"
# archives of PromptKD's authors, in CoOp's layout, for files that are gone from their own site
MIRROR = "https://huggingface.co/zhengli97/prompt_learning_dataset/resolve/ceb3112337fb6e1bf71534e355ca5569b63f19a6/"
OXFORD = "https://www.robots.ox.ac.uk/~vgg/data/"


@dataclass(frozen=True)
class Size:
    """Number of classes, and of images in each split; None where a data set has no such split."""

    classes: int
    train: int | None
    val: int | None
    test: int | None

    @classmethod
    def of(cls, train: list, val: list, test: list) -> "Size":
        """Return the size of three lists of `Datum`."""
        labels = {item.label for items in (train, val, test) for item in items}
        return cls(len(labels), len(train) or None, len(val) or None, len(test) or None)

    def __str__(self):
        parts = [f"{getattr(self, part) or 0:,} {part}" for part in ("train", "val", "test")]
        return f"{self.classes:,} classes, {' / '.join(parts)} images"


@dataclass(frozen=True)
class Item:
    """A file to download: a file of the layout, or an archive with parts of it.

    Several items may give the same path. A later one is downloaded if an earlier one failed.
    """

    gives: tuple[str, ...]  # paths in the data set's folder; if all exist, the item is not downloaded
    url: str = ""
    drive: str = ""  # id on Google Drive, instead of a URL
    archive: str = ""  # file name of the archive; "": the item is no archive
    take: dict[str, str] = field(default_factory=dict)  # glob in the archive -> path in the data set's folder
    inner: str = ""  # path of an archive in the archive; `take` refers to this one
    checksum: str | None = None  # MD5 or SHA-256
    megabytes: float = 0
    copy: str = ""  # the same file of another data set, below the root
    by_hand: str = ""  # instructions, if it cannot be downloaded; {} is replaced by the data set's folder
    unless: str = ""  # if this path exists, the item is not needed
    spare: str = ""  # effect of its absence; "": the item is necessary


@dataclass(frozen=True)
class Benchmark:
    """A data set: its names, its size and its files."""

    stem: str  # configs/datasets/<stem>.yaml, the name in CoOp's scripts
    name: str  # in the registry
    short: str  # in tables and pictures
    folder: str  # below --root
    size: Size | None = None  # None: embedded, drawn into its folder at first use
    items: tuple[Item, ...] = field(default=(), hash=False)  # downloads of `datasets.tools.prepare`
    variant_of: str = ""  # name of the source of which it is a domain-generalization variant

    @property
    def embedded(self) -> bool:
        return self.size is None

    @property
    def layout(self) -> list[str]:
        """The paths of the complete folder, as in CoOp's DATASETS.md."""
        return list(dict.fromkeys(path for item in self.items if not item.unless for path in item.gives))


def split(name: str, drive: str) -> Item:
    rebuild_note = "a split is then built from the annotations by the same rule, but it is not the published one"
    return Item((f"split_zhou_{name}.json",), drive=drive, spare=rebuild_note)


def classnames() -> Item:
    return Item(("classnames.txt",), copy="imagenet/classnames.txt", drive="1-61f_ol79pViBFDG_IDlUQSwoLcn2XXF")


BENCHMARKS = (  # in the order of CoOp's tables; then the embedded ones
    Benchmark("imagenet", "ImageNet", "ImageNet", "imagenet", Size(1_000, 1_281_167, None, 50_000), (
        classnames(),
        Item(("images/train", "images/val"), by_hand=(
            "register at https://image-net.org/download-images, download ILSVRC2012_img_train.tar (138 GB), "
            "ILSVRC2012_img_val.tar (6.3 GB) and ILSVRC2012_devkit_t12.tar.gz to {0}/images, and unpack them there "
            "with python -c \"from torchvision.datasets import ImageNet as I; I('{0}/images', 'train'); "
            "I('{0}/images', 'val')\": train/ and val/ then hold 1,000 folders each, n01440764 and so on; "
            "links to a copy of yours do as well"), megabytes=144_300),
    )),
    Benchmark("caltech101", "Caltech101", "Caltech101", "caltech-101", Size(100, 4_128, 1_649, 2_465), (
        split("Caltech101", "1hyarUivQE36mY6jSomru6Fjd-JzwcCzN"),
        Item(("101_ObjectCategories",), "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
             archive="caltech-101.zip", inner="caltech-101/101_ObjectCategories.tar.gz",
             take={"**/101_ObjectCategories": "101_ObjectCategories"},
             checksum="3138e1922a9193bfa496528edbbc45d0", megabytes=137),
    )),
    Benchmark("oxford_pets", "OxfordPets", "Pets", "oxford_pets", Size(37, 2_944, 736, 3_669), (
        split("OxfordPets", "1501r8Ber4nNKvmlFVQZ8SeUHTcdTTEqs"),
        Item(("annotations",), OXFORD + "pets/data/annotations.tar.gz", archive="annotations.tar.gz",
             take={"annotations": "annotations"}, checksum="95a8c909bbe2e81eed6a22bccdf3f68f", megabytes=19),
        Item(("images",), OXFORD + "pets/data/images.tar.gz", archive="images.tar.gz", take={"images": "images"},
             checksum="5c4f3ee8e5d25df40f4fd59a7f44e54c", megabytes=792),
    )),
    Benchmark("stanford_cars", "StanfordCars", "Cars", "stanford_cars", Size(196, 6_509, 1_635, 8_041), (
        split("StanfordCars", "1ObCFbaAgVu0I-k_Au-gIUcefirdAuizT"),
        Item(("cars_train", "cars_test", "devkit", "cars_test_annos_withlabels.mat"), MIRROR + "stanford_cars.zip",
             archive="stanford_cars.zip",
             take={f"**/{name}": name for name in ("cars_train", "cars_test", "devkit",
                                                   "cars_test_annos_withlabels.mat", "split_zhou_StanfordCars.json")},
             checksum="50812812f33534ef2906b992762f96e8a5bb57b0eedc53800e91b7ed599abf8e", megabytes=1959),
    )),
    Benchmark("oxford_flowers", "OxfordFlowers", "Flowers", "oxford_flowers", Size(102, 4_093, 1_633, 2_463), (
        split("OxfordFlowers", "1Pp0sRXzZFZq15zVOzKjKBu4A9i01nozT"),
        Item(("cat_to_name.json",), drive="1AkcxCXeK_RCGCEC_GvmWxjcjaNhu-at0",
             spare="it is read only where there is no split file"),
        Item(("imagelabels.mat",), OXFORD + "flowers/102/imagelabels.mat",
             checksum="e0620be6f572b9609742df49c70aed4d"),
        Item(("jpg",), OXFORD + "flowers/102/102flowers.tgz", archive="102flowers.tgz", take={"jpg": "jpg"},
             checksum="52808999861908f626f3c1f4e79d11fa", megabytes=345),
    )),
    Benchmark("food101", "Food101", "Food101", "food-101", Size(101, 50_500, 20_200, 30_300), (
        split("Food101", "1QK0tGi096I0Ba6kggatX1ee6dJFIcEJl"),
        Item(("images", "meta", "license_agreement.txt", "README.txt"),
             "https://data.vision.ee.ethz.ch/cvl/food-101.tar.gz", archive="food-101.tar.gz",
             take={"food-101/*": "."}, checksum="85eeb15f3717b99a5da872d97d918f87", megabytes=4996),
    )),
    Benchmark("fgvc_aircraft", "FGVCAircraft", "Aircraft", "fgvc_aircraft", Size(100, 3_334, 3_333, 3_333), (
        Item(("images", "variants.txt", *(f"images_variant_{part}.txt" for part in ("train", "val", "test"))),
             OXFORD + "fgvc-aircraft/archives/fgvc-aircraft-2013b.tar.gz", archive="fgvc-aircraft-2013b.tar.gz",
             take={"fgvc-aircraft-2013b/data/*": "."}, megabytes=2754),
    )),
    Benchmark("sun397", "SUN397", "SUN397", "sun397", Size(397, 15_880, 3_970, 19_850), (
        split("SUN397", "1y2RD81BYuiyvebdN-JymPfyWYcd8_MUq"),
        Item(("SUN397",), MIRROR + "sun397.zip", archive="sun397.zip",
             take={"**/SUN397": "SUN397", "**/split_zhou_SUN397.json": "split_zhou_SUN397.json",
                   "sun397/*.txt": "."},
             checksum="ce6dee6685c9f1d592c8297e193dde885aa9c50d008fd998a38ccc57a3dda722", megabytes=39183),
    )),
    Benchmark("dtd", "DescribableTextures", "DTD", "dtd", Size(47, 2_820, 1_128, 1_692), (
        split("DescribableTextures", "1u3_QfB467jqHgNXC00UIzbLZRQCg2S7x"),
        Item(("images", "imdb", "labels"), OXFORD + "dtd/download/dtd-r1.0.1.tar.gz", archive="dtd-r1.0.1.tar.gz",
             take={"dtd/*": "."}, checksum="fff73e5086ae6bdbea199a49dfb8a4c1", megabytes=625),
    )),
    Benchmark("eurosat", "EuroSAT", "EuroSAT", "eurosat", Size(10, 13_500, 5_400, 8_100), (
        split("EuroSAT", "1Ip7yaCWFi0eaOFUGga0lUdVi_DDQth1o"),
        Item(("2750",), "https://huggingface.co/datasets/torchgeo/eurosat/resolve/"
                         "c877bcd43f099cd0196738f714544e355477f3fd/EuroSAT.zip", archive="EuroSAT.zip",
             take={"2750": "2750"}, checksum="c8fa014336c82ac7804f0398fcb19387", megabytes=94),
    )),
    Benchmark("ucf101", "UCF101", "UCF101", "ucf101", Size(101, 7_639, 1_898, 3_783), (
        split("UCF101", "1I0S0q91hJfsV9Gf4xDIjgDq4AqBNJb1y"),
        Item(("UCF-101-midframes",), drive="10Jqome3vtUA2keJkNanAiFpgbyC9Hc2O", archive="UCF-101-midframes.zip",
             take={"UCF-101-midframes": "UCF-101-midframes"}, megabytes=140),
        Item(("UCF-101-midframes",), MIRROR + "ucf101.zip", archive="ucf101.zip",
             take={f"**/{name}": name for name in ("UCF-101-midframes", "split_zhou_UCF101.json")},
             checksum="2fe1bd40e64408d02ff173badf744da557033ae6c75dd4ea51519366551f3ae6"),
        Item(("ucfTrainTestlist",),
             "https://www.crcv.ucf.edu/data/UCF101/UCF101TrainTestSplits-RecognitionTask.zip",
             archive="UCF101TrainTestSplits-RecognitionTask.zip", take={"ucfTrainTestlist": "ucfTrainTestlist"},
             unless="split_zhou_UCF101.json"),
    )),
    Benchmark("imagenetv2", "ImageNetV2", "-V2", "imagenetv2", Size(1_000, None, None, 10_000), (
        classnames(),
        Item(("imagenetv2-matched-frequency-format-val",),
             "https://huggingface.co/datasets/vaishaal/ImageNetV2/resolve/main/imagenetv2-matched-frequency.tar.gz",
             archive="imagenetv2-matched-frequency.tar.gz",
             take={"**/imagenetv2-matched-frequency-format-val": "imagenetv2-matched-frequency-format-val"},
             checksum="f0c37fdf925916b19ea1323cd9a2208cdb6959ba2c32eef2a7fc393835c9ca7c", megabytes=1264),
    ), variant_of="ImageNet"),
    Benchmark("imagenet_sketch", "ImageNetSketch", "-Sketch", "imagenet-sketch", Size(1_000, None, None, 50_889), (
        classnames(),
        Item(("images",), "https://huggingface.co/datasets/songweig/imagenet_sketch/resolve/main/data/"
                           "ImageNet-Sketch.zip", archive="ImageNet-Sketch.zip", take={"sketch": "images"},
             megabytes=7594),
        Item(("images",), drive="1Mj0i5HBthqH1p_yeXzsg22gZduvgoNeA", archive="ImageNet-Sketch.zip",
             take={"sketch": "images"}),
    ), variant_of="ImageNet"),
    Benchmark("imagenet_a", "ImageNetA", "-A", "imagenet-adversarial", Size(200, None, None, 7_500), (
        classnames(),
        Item(("imagenet-a",), "https://people.eecs.berkeley.edu/~hendrycks/imagenet-a.tar",
             archive="imagenet-a.tar", take={"imagenet-a": "imagenet-a"},
             checksum="3bb3632277e6ba6392ea64c02ddbf4dd2266c9caffd6bc09c9656d28f012589e", megabytes=688),
    ), variant_of="ImageNet"),
    Benchmark("imagenet_r", "ImageNetR", "-R", "imagenet-rendition", Size(200, None, None, 30_000), (
        classnames(),
        Item(("imagenet-r",), "https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
             archive="imagenet-r.tar", take={"imagenet-r": "imagenet-r"},
             checksum="18c6bf493b39a0d975d48e587437f562caab9c52ae6327dcfa9dd8eb54aa1b52", megabytes=2191),
    ), variant_of="ImageNet"),
    Benchmark("colours", "Colours", "Colours", "colours"),
    Benchmark("compositions", "Compositions", "Compositions", "compositions"),
    Benchmark("digits", "Digits", "Digits", "digits"),
    Benchmark("outlines", "Outlines", "Outlines", "outlines"),
    Benchmark("patterns", "Patterns", "Patterns", "patterns"),
    Benchmark("shapes", "Shapes", "Shapes", "shapes"),
    Benchmark("shapes_fog", "ShapesFog", "Fog", "shapes_fog", variant_of="Shapes"),
    Benchmark("shapes_night", "ShapesNight", "Night", "shapes_night", variant_of="Shapes"),
    Benchmark("shapes_neon", "ShapesNeon", "Neon", "shapes_neon", variant_of="Shapes"),
    Benchmark("shapes_scribble", "ShapesScribble", "Scribble", "shapes_scribble", variant_of="Shapes"),
)  # fmt: skip


# ------------------------------------------------------------------ looking them up


def get(name: str) -> Benchmark | None:
    """Return the row of a registered name; None for a user's own data set."""
    return next((b for b in BENCHMARKS if b.name == name), None)


def find(word: str) -> Benchmark:
    """Return the row of a registered name, stem or folder, whatever its case and dashes.

    Raises:
        ValueError: no row has this name; the message has the nearest one.
    """

    def fold(text):
        return text.lower().replace("-", "").replace("_", "")

    rows = {fold(text): b for b in BENCHMARKS for text in (b.name, b.stem, b.folder)}
    if fold(word) not in rows:
        nearest_name = rows[get_close_matches(fold(word), rows, 1, 0)[0]].name
        names = ", ".join(b.name for b in BENCHMARKS)
        raise ValueError(f'no data set "{word}", do you mean "{nearest_name}"? There are: {names}')
    return rows[fold(word)]


def downloads(words: Iterable[str]) -> list[Benchmark]:
    """Return the data sets of some names, each once.

    Args:
        words: names, as `find` takes them, or "all" for all that are not embedded.

    Raises:
        ValueError: no data set has a name, or it is embedded.
    """
    rows = []
    for word in words:
        if word.lower() == "all":
            rows += [b for b in BENCHMARKS if not b.embedded]
        else:
            rows.append(find(word))
    for b in rows:
        if b.embedded:
            raise ValueError(f"{b.name} is embedded: it is drawn at first use, and has no files to get or check")
    return list(dict.fromkeys(rows))


def source_of(benchmark: Benchmark) -> str:
    """Return the name of the source data set of transfers to a data set."""
    return "Shapes" if benchmark.embedded else "ImageNet"


def variants(source: str) -> list[Benchmark]:
    """Return the targets of domain generalization from a source, given by its registered name."""
    return [b for b in BENCHMARKS if b.variant_of == source]


def targets(source: str) -> list[Benchmark]:
    """Return the targets of cross-dataset transfer from a source, given by its registered name."""
    return [b for b in BENCHMARKS if source_of(b) == source != b.name and not b.variant_of]


@cache
def stems() -> dict[str, str]:
    """Return the registered name of each stem of a YAML in configs/datasets: the table's, then a user's own."""
    import yaml  # here, so that the table can be imported without PyYAML

    names = {b.stem: b.name for b in BENCHMARKS}
    for path in sorted(CONFIGS.glob("*.yaml")):
        if path.stem not in names:
            names[path.stem] = yaml.safe_load(path.read_text())["DATASET"]["NAME"]
    return names


# ------------------------------------------------------------------ showing them


def short(name: str) -> str:
    """Return a data set's name in tables and pictures, from its registered name."""
    benchmark = get(name)
    return benchmark.short if benchmark else name


def in_order(names: Iterable[str]) -> list[str]:
    """Return each name once, in the table's order; a user's own data sets follow by name."""
    order = {b.name: k for k, b in enumerate(BENCHMARKS)}
    return sorted(set(names), key=lambda name: (order.get(name, len(order)), name))
