"""Check the benchmarks on disk: compare the classes and images with the expected sizes, and decode every image.

    python -m datasets.tools.verify --root DATA                       all that exist
    python -m datasets.tools.verify OxfordPets sun397 --root DATA     these, by registered name or YAML
    python -m datasets.tools.verify --fast --root DATA                without decoding

It writes no file. The exit status is 1 if a data set is wrong, or was named and does not exist.
"""

import argparse
import importlib
import os
import os.path as osp
import sys
from collections import Counter
from dataclasses import dataclass, field

from tabulate import tabulate

from dassl.data.datasets import DATASET_REGISTRY, Datum
from dassl.infrastructure.command import command
from dassl.infrastructure.files import visible
from datasets.base import PARTS, SplitDataset
from datasets.catalogue import Benchmark, Size, downloads
from datasets.imagenet import CLASSNAMES
from datasets.shared.image_files import find_unreadable, listing, of_all

HEADERS = ["data set", "present", "classes", *PARTS, "missing", "unreadable", "same name", "verdict"]


@dataclass
class Report:
    """The result of the check of a data set."""

    benchmark: Benchmark
    present: bool = True
    error: str = ""  # reason why it cannot be read
    size: Size | None = None
    missing: list[str] = field(default_factory=list)  # images of the splits that do not exist
    unreadable: dict[str, str] | None = None  # {image: problem}; None: not decoded
    same_name: list[str] = field(default_factory=list)  # class names of several labels

    @property
    def name(self) -> str:
        return self.benchmark.name

    @property
    def ok(self) -> bool:
        """The verdict: True if the data set is complete. Several classes may have one name, as in ImageNet."""
        return self.size == self.benchmark.size and not self.missing and not self.unreadable

    def row(self) -> list[str]:
        if not self.present:
            present = "no"
        else:
            present = "incomplete" if self.error else "yes"
        if self.size is None:
            return [self.name, present, *["-"] * 7, "wrong" if self.present else "not there"]
        expected = self.benchmark.size
        counts = [format_count(getattr(self.size, part), getattr(expected, part)) for part in ("classes", *PARTS)]
        unreadable = "not checked" if self.unreadable is None else f"{len(self.unreadable):,}"
        verdict = "ok" if self.ok else "wrong"
        return [self.name, present, *counts, f"{len(self.missing):,}", unreadable, f"{len(self.same_name):,}", verdict]

    def details(self) -> list[str]:
        """Return the lines below the table."""
        lines = [f"{self.name}: {self.error}"] if self.error else []
        if self.same_name:
            lines.append(f"{self.name}, several classes of the same name: {', '.join(self.same_name)}")
        if self.missing:
            lines += [f"{self.name}, images that are not there:", *listing(self.missing)]
        if self.unreadable:
            problems = [f"{path}: {problem}" for path, problem in self.unreadable.items()]
            lines += [f"{self.name}, images that cannot be read:", *listing(problems)]
        return lines


def format_count(count: int | None, expected: int | None) -> str:
    if count is None and expected is None:
        return "-"
    return f"{count or 0:,}/{expected or 0:,}"


def locate(benchmark: Benchmark, root: str) -> SplitDataset:
    """Return the data set with its paths, without reading any file."""
    importlib.import_module(f"datasets.{benchmark.stem}")
    cls = DATASET_REGISTRY.get(benchmark.name)
    dataset = cls.__new__(cls)
    dataset.set_paths(root)
    return dataset


def verify(benchmark: Benchmark, root: str, fast: bool = False) -> Report:
    """Check a benchmark.

    Args:
        benchmark: the data set.
        root: folder of the data sets.
        fast: decode no image.
    """
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
        has_folder = of_all(osp.exists, paths, f"{name}, looking for")
        report.missing = [path for path in paths if not has_folder[path]]
        paths = [path for path in paths if has_folder[path]]
    if not fast:
        report.unreadable = find_unreadable(paths, f"{name}, decoding")
    return report


def main(argv: list[str] | None = None) -> int:
    """Return 0 if the data sets are complete, 1 if not."""
    return command(lambda: work(argv))


def work(argv: list[str] | None) -> list[str]:
    """Check the data sets, print the problems, and return a line if there are any."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.tools.verify",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets, default: all that exist")
    parser.add_argument("--root", default="data", help="folder of the data sets, default: data")
    parser.add_argument("--fast", action="store_true", help="do not decode the images, only look for their files")
    args = parser.parse_intermixed_args(argv)
    benchmarks = downloads(args.names or ["all"])
    if not osp.isdir(osp.expanduser(args.root)):
        raise FileNotFoundError(f"there is no {args.root}: give the folder that holds the data sets with --root")
    reports = [verify(benchmark, args.root, args.fast) for benchmark in benchmarks]
    shown_rows = [report for report in reports if report.present or args.names]
    if shown_rows:
        print(tabulate([report.row() for report in shown_rows], HEADERS, disable_numparse=True))
    for line in (line for report in shown_rows for line in report.details()):
        print(visible(line))
    absent = [report.name for report in reports if report not in shown_rows]
    if absent:
        print(f"not there: {', '.join(absent)}")
    problems = [report.name for report in shown_rows if not report.ok]
    return [f"incomplete or damaged: {', '.join(problems)}"] if problems else []


if __name__ == "__main__":
    sys.exit(main())
