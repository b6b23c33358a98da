"""Checks the benchmarks on disk: classes and images against the expected sizes, every image decoded. Writes nothing.

    python -m datasets.tools.verify --root DATA                       all that are there
    python -m datasets.tools.verify OxfordPets sun397 --root DATA     these, by registered name or YAML
    python -m datasets.tools.verify --fast --root DATA                without decoding

The exit status is 1 if one of those named, or found, is wrong.
"""

import argparse
import importlib
import os
import os.path as osp
import sys
from collections import Counter
from dataclasses import dataclass, field

from tabulate import tabulate

from dassl.command import command
from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.files import visible
from datasets.base import PARTS, SplitDataset
from datasets.benchmarks import Benchmark, Size, downloads
from datasets.imagenet import CLASSNAMES
from datasets.shared.image_files import listing, of_all, unreadable

HEADERS = ["data set", "present", "classes", *PARTS, "missing", "unreadable", "same name", "verdict"]


@dataclass
class Report:
    """What was found of one data set; `error` is why it could not be read."""

    benchmark: Benchmark
    present: bool = True
    error: str = ""
    size: Size | None = None
    missing: list[str] = field(default_factory=list)  # images that the splits name
    unreadable: dict[str, str] | None = None  # {image: what is wrong}; None: not decoded
    same_name: list[str] = field(default_factory=list)  # class names that several labels have

    @property
    def name(self) -> str:
        return self.benchmark.name

    @property
    def ok(self) -> bool:
        """Classes of the same name do not count: ImageNet's own list has some."""
        return self.size == self.benchmark.size and not self.missing and not self.unreadable

    def row(self) -> list[str]:
        present = "incomplete" if self.error and self.present else "yes" if self.present else "no"
        if self.size is None:
            return [self.name, present, *["-"] * 7, "wrong" if self.present else "not there"]
        want = self.benchmark.size
        counts = [against(getattr(self.size, part), getattr(want, part)) for part in ("classes", *PARTS)]
        unreadable = "not checked" if self.unreadable is None else f"{len(self.unreadable):,}"
        verdict = "ok" if self.ok else "wrong"
        return [self.name, present, *counts, f"{len(self.missing):,}", unreadable, f"{len(self.same_name):,}", verdict]

    def details(self) -> list[str]:
        """Lines for below the table."""
        lines = [f"{self.name}: {self.error}"] if self.error else []
        if self.same_name:
            lines.append(f"{self.name}, several classes of the same name: {', '.join(self.same_name)}")
        if self.missing:
            lines += [f"{self.name}, images that are not there:", *listing(self.missing)]
        if self.unreadable:
            problems = [f"{path}: {problem}" for path, problem in self.unreadable.items()]
            lines += [f"{self.name}, images that cannot be read:", *listing(problems)]
        return lines


def against(found: int | None, expected: int | None) -> str:
    return "-" if found == expected is None else f"{found or 0:,}/{expected or 0:,}"


def locate(benchmark: Benchmark, root: str) -> SplitDataset:
    """The data set with its paths, of which nothing is read yet."""
    importlib.import_module(f"datasets.{benchmark.stem}")
    cls = DATASET_REGISTRY.get(benchmark.name)
    dataset = cls.__new__(cls)
    dataset.set_paths(root)
    return dataset


def verify(benchmark: Benchmark, root: str, fast: bool = False) -> Report:
    """Checks the benchmark in `root`; `fast` decodes no image."""
    dataset = locate(benchmark, root)
    name, report = benchmark.name, Report(benchmark, present=osp.isdir(dataset.dataset_dir))
    try:  # imagenet/ may hold nothing but the list of class names, for its variants
        report.present = report.present and os.listdir(dataset.dataset_dir) != [CLASSNAMES]
        if not report.present:
            report.error = f"there are no files in {dataset.dataset_dir}"
            return report
        splits = dataset.read_splits(keep=False)
    except (OSError, ValueError) as error:
        report.error = str(error)
        return report
    items: list[Datum] = [item for part in splits for item in part]
    report.size = Size.of(*splits)
    names = Counter(name for _, name in {(item.label, item.classname) for item in items})
    report.same_name = sorted(name for name, count in names.items() if count > 1)
    paths = list(dict.fromkeys(item.impath for item in items))
    if not dataset.listed:
        there = of_all(osp.exists, paths, f"{name}, looking for")
        report.missing = [path for path in paths if not there[path]]
        paths = [path for path in paths if there[path]]
    if not fast:
        report.unreadable = unreadable(paths, f"{name}, decoding")
    return report


def main(argv: list[str] | None = None) -> int:
    """Return 0 if all is as it should be, 1 if something is not."""
    return command(lambda: work(argv))


def work(argv: list[str] | None) -> list[str]:
    """Check the data sets and print what is wrong; return a line if something is."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.tools.verify",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets, default: all that are there")
    parser.add_argument("--root", default="data", help="folder of the data sets, default: data")
    parser.add_argument("--fast", action="store_true", help="do not decode the images, only look for their files")
    args = parser.parse_intermixed_args(argv)
    benchmarks = downloads(args.names or ["all"])
    if not osp.isdir(osp.expanduser(args.root)):
        raise FileNotFoundError(f"there is no {args.root}: give the folder that holds the data sets with --root")
    reports = [verify(benchmark, args.root, args.fast) for benchmark in benchmarks]
    shown = [report for report in reports if report.present or args.names]
    if shown:
        print(tabulate([report.row() for report in shown], HEADERS, disable_numparse=True))
    for line in (line for report in shown for line in report.details()):
        print(visible(line))
    absent = [report.name for report in reports if report not in shown]
    if absent:
        print(f"not there: {', '.join(absent)}")
    wrong = [report.name for report in shown if not report.ok]
    return [f"not as they should be: {', '.join(wrong)}"] if wrong else []


if __name__ == "__main__":
    sys.exit(main())
