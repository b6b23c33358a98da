"""Download benchmarks into CoOp's layout. A repeated command does only what is left to do.

    python -m datasets.tools.prepare --list
    python -m datasets.tools.prepare Caltech101 OxfordPets --root DATA
    python -m datasets.tools.prepare all --root DATA --dry-run

A name is the registered one (DescribableTextures) or that of the config (dtd). Files that need an account or cannot be
downloaded are listed with their place; the others are downloaded. No existing file is overwritten.
"""

import argparse
import os
import os.path as osp
import shutil
import sys
from pathlib import Path

from tabulate import tabulate

from dassl.infrastructure.command import command
from dassl.infrastructure.download import (
    DRIVE,
    DamagedArchive,
    check_file,
    download_gdrive,
    download_url,
    extract_archive,
)
from dassl.utils import atomic_write, locked, read_json
from datasets.catalogue import Benchmark, Item, downloads

SCRATCH = ".prepare"  # in the data set's folder: unpacked files, before they are moved in place


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m datasets.tools.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="data sets, or: all")
    parser.add_argument("--root", default="data", help="folder of the data sets, default: data")
    parser.add_argument("--list", action="store_true", help="only list the data sets, their sizes and their hosts")
    parser.add_argument("--dry-run", action="store_true", help="only list the steps")
    parser.add_argument("--keep-archives", action="store_true", help="keep the archives after unpacking")
    args = parser.parse_intermixed_args(argv)
    if not args.names and not args.list:
        parser.error("which data set? Give names, all, or --list")
    return args


def table() -> str:
    """Return the table of --list."""
    rows = []
    for benchmark in downloads(["all"]):
        items = benchmark.items
        hosts = dict.fromkeys(item.url.split("/")[2] for item in items if item.url and not item.unless)
        drive = ["Google Drive"] if any(item.drive for item in items) else []
        manual_steps = any(item.by_hand for item in items)
        origin = "by hand, with an account" if manual_steps else ", ".join([*hosts, *drive])
        size = f"{sum(item.megabytes for item in items) / 1000:.2f}"
        rows.append([benchmark.name, benchmark.stem, benchmark.folder + "/", size, origin])
    heads, align = ["data set", "config", "folder", "GB", "from"], ["left", "left", "left", "right", "left"]
    return tabulate(rows, heads, disable_numparse=True, colalign=align)


# ------------------------------------------------------------------ one data set


def prepare(benchmark: Benchmark, root: str, keep: bool = False, dry_run: bool = False) -> list[str]:
    """Complete the benchmark's folder below `root`.

    Args:
        benchmark: the data set.
        root: folder of the data sets.
        keep: keep the archives after unpacking.
        dry_run: only print the steps.

    Returns:
        The necessary paths that are still missing.

    Raises:
        OSError: another `prepare` is at work there, or the folder cannot be written to.
    """
    folder = osp.join(root, benchmark.folder)
    print(f"{benchmark.name}: {folder}")
    has_content(folder)  # raises for a broken link
    if dry_run:
        promised_bytes = set()
        for item in benchmark.items:
            print("    or," if promised_bytes.issuperset(item.gives) else "   ", describe(item, folder, root))
            promised_bytes.update(item.gives)
        return []
    os.makedirs(folder, exist_ok=True)
    with locked(folder, f"another prepare is at work in {folder}: wait for it"):
        for item in benchmark.items:
            if missing_paths(item, folder) and not item.by_hand:
                try:
                    fetch(item, folder, root, keep)
                except OSError as error:  # go on: another item may give the same path
                    print(f"warning: {error}", file=sys.stderr)
    return report(benchmark, folder)


def has_content(path: str) -> bool:
    """Return whether a path is a file, or a folder that is not empty.

    Raises:
        OSError: it is a broken link.
    """
    if osp.islink(path) and not osp.exists(path):
        raise OSError(f"{path} is a link to {os.readlink(path)}, which is not there: mend or remove it")
    return any(os.scandir(path)) if osp.isdir(path) else osp.exists(path)


def missing_paths(item: Item, folder: str) -> list[str]:
    """Return the paths of an item that do not exist."""
    if item.unless and has_content(osp.join(folder, item.unless)):
        return []
    return [path for path in item.gives if not has_content(osp.join(folder, path))]


def describe(item: Item, folder: str, root: str) -> str:
    """Return a line about the step for an item."""
    paths = ", ".join(missing_paths(item, folder))
    if not paths:
        return f"there already: {', '.join(item.gives)}"
    if item.by_hand:
        return f"by hand: {paths}: {item.by_hand.format(folder)}"
    if item.copy and osp.exists(osp.join(root, item.copy)):
        return f"copy {osp.join(root, item.copy)}: {paths}"
    size = f", {item.megabytes:,.0f} MB" if item.megabytes else ""
    return f"download {item.url or DRIVE.format(item.drive)}{size}: {paths}"


def fetch(item: Item, folder: str, root: str, keep: bool) -> None:
    """Download an item, and unpack it into the folder if it is an archive.

    Args:
        item: the file.
        folder: folder of the data set.
        root: folder of the data sets.
        keep: keep the archive after unpacking.

    Raises:
        OSError: it cannot be downloaded or unpacked; the message has one line.
    """
    dst = osp.join(folder, item.archive or item.gives[0])
    mark = dst + ".fetched"  # marks an archive as downloaded here; one that a user has put there is not removed
    if not osp.exists(dst):
        download(item, dst, root)
        if not item.archive:
            return
        Path(mark).touch()
    elif not osp.exists(mark):
        check_file(dst, item.checksum)
    try:
        unpack(item, dst, folder)
    except DamagedArchive:
        if osp.exists(mark):  # the next run downloads it again
            os.remove(dst)
            os.remove(mark)
        raise
    if osp.exists(mark) and not keep:
        os.remove(dst)
    else:
        print(f"{dst} is kept")
    Path(mark).unlink(missing_ok=True)


def download(item: Item, dst: str, root: str) -> None:
    copy = item.copy and osp.join(root, item.copy)
    if copy and osp.exists(copy) and not osp.exists(dst):
        with open(copy, "rb") as original, atomic_write(dst) as f:
            shutil.copyfileobj(original, f)
        return
    if item.drive:
        download_gdrive(item.drive, dst, item.checksum)
    else:
        download_url(item.url, dst, item.checksum)
    if dst.endswith(".json"):
        try:
            read_json(dst)
        except ValueError as error:  # for example a page that asks to log in
            os.remove(dst)
            address = DRIVE.format(item.drive) if item.drive else item.url
            advice = f"open {address} in a browser, and save the file as {dst}"
            raise OSError(f"what came as {osp.basename(dst)} is no JSON ({error.__cause__}): {advice}") from None


def unpack(item: Item, archive: str, folder: str) -> None:
    """Unpack an archive into a scratch folder, then move each part in place in one step.

    An interruption leaves no part that looks complete but is not.

    Args:
        item: the archive's description.
        archive: the file.
        folder: folder of the data set.

    Raises:
        OSError: the archive is damaged, or lacks a part.
    """
    scratch = osp.join(folder, SCRATCH)
    shutil.rmtree(scratch, ignore_errors=True)  # left by a process that was killed
    os.mkdir(scratch)
    try:
        extract_archive(archive, scratch)
        if item.inner:
            members = osp.join(scratch, item.inner)
            if not osp.exists(members):
                raise OSError(f"{archive} holds no {item.inner}: it is another archive than expected")
            extract_archive(members, osp.dirname(members))
        for pattern, place in item.take.items():
            paths = sorted(Path(scratch).glob(pattern), key=lambda path: (len(path.parts), path))
            if place != ".":
                paths = paths[:1]  # the outermost of several with that name
            for path in paths:
                target = osp.join(folder, path.name if place == "." else place)
                if not has_content(target):
                    os.rename(path, target)
        missing_names = missing_paths(item, folder)
        if missing_names:
            raise OSError(f"{archive} holds no {', '.join(missing_names)}: it is another archive than expected")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def report(benchmark: Benchmark, folder: str) -> list[str]:
    """Print the missing paths of a folder, and return the necessary ones."""
    name, needed_bytes = benchmark.name, {}
    for item in benchmark.items:
        for path in missing_paths(item, folder):
            if item.spare:
                print(f"warning: {name} has no {osp.join(folder, path)}: {item.spare}", file=sys.stderr)
            else:
                needed_bytes[osp.join(folder, path)] = item.by_hand.format(folder) if item.by_hand else ""
    for advice in dict.fromkeys(needed_bytes.values()):
        line = f"{name} lacks " + ", ".join(path for path in needed_bytes if needed_bytes[path] == advice)
        if advice:
            line += f": {advice}"
        print(line, file=sys.stderr)
    if needed_bytes:
        layout = ", ".join(osp.join(folder, path) for path in benchmark.layout)
        print(f"The whole of {name} is {layout}", file=sys.stderr)
    else:
        print(f"{name} is there. Check it: python -m datasets.tools.verify {name} --root {osp.dirname(folder) or '.'}")
    return list(needed_bytes)


def main(argv: list[str] | None = None) -> int:
    """Return 0 if every data set in the command is complete, 1 if not, 130 after Ctrl-C."""

    def work() -> list[str]:
        args = parse(argv)
        if args.list:
            print(table())
            return []
        root = osp.expanduser(args.root)
        if osp.exists(root) and not osp.isdir(root):
            raise ValueError(f"{root} is a file: give the folder of the data sets with --root")
        failures = []
        for benchmark in downloads(args.names):
            try:
                missing_names = prepare(benchmark, root, args.keep_archives, args.dry_run)
            except OSError as error:  # go on with the other data sets
                failures.append(f"{benchmark.name}: {error}")
                continue
            if missing_names:
                failures.append(f"{benchmark.name} is not complete, see above")
        return failures

    return command(work, "interrupted: the finished downloads are kept; the same command goes on with the others")


if __name__ == "__main__":
    sys.exit(main())
