"""The data sets of a benchmark: sources, on which models are trained, with their targets and variants.

A data set has the name of its file in configs/datasets, its stem.
"""

from dassl.utils import check_availability
from datasets import catalogue


def row_of(dataset: str) -> catalogue.Benchmark | None:
    """Return the facts of a data set; None for a user's own. Raises ValueError, with the nearest, if it has no file."""
    check_availability(dataset, list(catalogue.stems()))
    return catalogue.get(catalogue.stems()[dataset])


def source_of(dataset: str) -> str:
    """Return the data set on which models are trained that are tested on `dataset`."""
    row = row_of(dataset)
    return catalogue.find(catalogue.source_of(row) if row else "ImageNet").stem


def variants_of(source: str) -> list[str]:
    """Return the variants of a source, on which dg tests."""
    return [row.stem for row in catalogue.variants(catalogue.stems()[source])]


def targets_of(source: str) -> list[str]:
    """Return the other data sets of a source's benchmark, on which xd tests."""
    return [row.stem for row in catalogue.targets(catalogue.stems()[source])]


# the part of the embedded data that each protocol trains or tests on
EMBEDDED = {"base2new": ["shapes"], "fewshot": ["digits"], "xd": targets_of("shapes"), "dg": variants_of("shapes")}


def datasets_of(protocol: str, words: list[str]) -> list[str]:
    """Return the data sets that the words name: of trainings in base2new and fewshot, of tests in xd and dg.

    In xd and dg, a source stands for all its targets or variants.
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
    """Return the number of classes of a data set, to estimate costs; of a user's own data set 40."""
    row = row_of(dataset)
    return row.size.classes if row and row.size else 40
