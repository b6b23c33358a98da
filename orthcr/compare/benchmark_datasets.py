"""The data sets of a benchmark: the sources that models are trained on, with their targets and variants.

Each data set is named by the stem of its file in configs/datasets.
"""

from dassl.utils import check_availability
from datasets import catalogue


def row_of(dataset: str) -> catalogue.Benchmark | None:
    """Return the catalogue's row of a data set; None for a user's own.

    Raises:
        ValueError: configs/datasets has no such file; the message has the nearest name.
    """
    check_availability(dataset, list(catalogue.stems()))
    return catalogue.get(catalogue.stems()[dataset])


def source_of(dataset: str) -> str:
    """Return the source that models are trained on before their test on `dataset`."""
    row = row_of(dataset)
    return catalogue.find(catalogue.source_of(row) if row else "ImageNet").stem


def variants_of(source: str) -> list[str]:
    """Return the variants of a source: the data sets that dg tests on."""
    return [row.stem for row in catalogue.variants(catalogue.stems()[source])]


def targets_of(source: str) -> list[str]:
    """Return the targets of a source: the data sets that xd tests on."""
    return [row.stem for row in catalogue.targets(catalogue.stems()[source])]


# the part of the embedded data that each protocol trains or tests on
EMBEDDED = {"base2new": ["shapes"], "fewshot": ["digits"], "xd": targets_of("shapes"), "dg": variants_of("shapes")}


def datasets_of(protocol: str, words: list[str]) -> list[str]:
    """Return the data sets for the words of --datasets.

    In base2new and fewshot these are the data sets of the trainings; in xd and dg, those of the tests. There, a source
    stands for all its targets or variants.
    """
    names = []
    for word in words:
        source = "imagenet" if word == "all" else word
        if word == "embedded":
            names += EMBEDDED[protocol]
        elif protocol in ("base2new", "fewshot"):
            if word == "all":
                names += [source, *targets_of(source)]
            elif word not in variants_of(source_of(word)):
                names.append(word)
        elif source_of(source) == source:
            names += targets_of(source) if protocol == "xd" else variants_of(source)
        elif (word in variants_of(source_of(word))) == (protocol == "dg"):
            names.append(word)
    return list(dict.fromkeys(names))


def number_of_classes(dataset: str) -> int:
    """Return the number of classes of a data set, for estimates of the cost; 40 for a user's own data set."""
    row = row_of(dataset)
    return row.size.classes if row and row.size else 40
