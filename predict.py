"""Classifies images with a trained model, from its output directory alone: no data set is needed.

    python predict.py --model-dir OUT image1.jpg folder/ ...           class, probability and the five likeliest
    python predict.py --model-dir OUT photos/ --json > out.json
    python predict.py --model-dir OUT photos/ --csv out.csv            the probabilities of all classes
    python predict.py --model-dir OUT photos/ --threshold 0.7          "unsure" where the model is less sure
    python predict.py --model-dir OUT photos/ --classes "a cat,a dog"   other classes, seen in training or not
    python predict.py --model-dir OUT --serve                          a local web page: drop a picture

In Python, after `pip install -e .` from any directory:

    from orthcr import Predictor
    predictor = Predictor("OUT")
    for p in predictor(["image1.jpg"]): print(p.image, p.classname, p.probability, p.top)
"""

import argparse
import contextlib
import os
import os.path as osp
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from dassl.command import command
from dassl.files import atomic_write, visible
from experiments.packages import check_installed


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", help="images, or folders with images")
    parser.add_argument("--model-dir", required=True, help="output directory of the training")
    parser.add_argument("--load-epoch", type=int, help="of the checkpoint; default: the best on val, else the last")
    parser.add_argument("--classes", help='other class names, separated by commas: "a,b,c"')
    parser.add_argument("--template", default="", help='prompt of the classes, e.g. "a photo of a {}."')
    parser.add_argument("--strength", help='of the change of weights, from 0 to 1, or "auto"; default: the training\'s')
    parser.add_argument("--top", type=int, default=5, help="how many classes to name, default: 5")
    parser.add_argument("--threshold", type=float, default=0.0, help='"unsure" below this probability, default: 0')
    parser.add_argument("--json", action="store_true", help="one JSON list on the standard output")
    parser.add_argument(
        "--csv", metavar="FILE", help="probabilities of all classes, a row an image; -: standard output"
    )
    parser.add_argument("--picture", help="PNG file for a contact sheet of at most 24 images with their classes")
    parser.add_argument("--serve", action="store_true", help="a web page on this machine, for this machine alone")
    parser.add_argument("--port", type=int, default=7860, help="of the page, default: 7860")
    args = parser.parse_intermixed_args(argv)
    if not args.images and not args.serve:
        parser.error("give images, or folders with images; or --serve")
    return args


def check(args: argparse.Namespace) -> None:
    """Raises ValueError or OSError for what would be noticed only when all images have been classified."""
    if args.top < 1:
        raise ValueError(f"--top is {args.top}: name at least one class")
    if not 0 <= args.threshold <= 1:
        raise ValueError(f"--threshold is {args.threshold:g}: give a probability, from 0 to 1")
    if args.serve and (args.images or args.json or args.csv or args.picture):
        raise ValueError("--serve gets its images from the page: give no images, --json, --csv or --picture with it")
    if args.csv == "-" and args.json:
        raise ValueError("--json and --csv - are both for the standard output: give --csv a file")
    if args.picture and not args.picture.lower().endswith(".png"):
        raise ValueError(f"--picture is {args.picture}: give the name of a .png file")
    for flag, path in outputs(args).items():
        folder = osp.dirname(osp.abspath(path))
        if not os.access(folder, os.W_OK):
            raise OSError(f"{flag} cannot be written: there is no {folder}, or nothing may be written there")
        if osp.isdir(path) or not path:
            raise OSError(f'{flag} cannot be written: "{path}" is no name of a file')


def outputs(args: argparse.Namespace) -> dict[str, str]:
    """Return the files that are to be written, by their flags."""
    paths = {"--picture": args.picture, "--csv": args.csv}
    return {flag: path for flag, path in paths.items() if path is not None and path != "-"}


def check_output(flag: str, path: str, images: list[str]) -> None:
    """Raise ValueError if an output file would replace an image."""
    from dassl.utils.images import is_image  # with PyTorch

    if flag == "--csv" and is_image(path):
        raise ValueError(f"--csv must name a table, not an image (got {path}): give the name of a .csv file")
    inputs = {osp.realpath(osp.expanduser(image)) for image in images}
    target = osp.realpath(path)
    inside = any(osp.isdir(image) and target.startswith(osp.join(image, "")) for image in inputs)
    if target in inputs or inside and is_image(path) and osp.exists(path):
        raise ValueError(f"{flag} would replace {path}, one of the images: give another name")


def predict(args: argparse.Namespace) -> list[str]:
    """Prints what the images show; returns a line for each that could not be read."""
    check(args)
    if args.serve:
        check_installed(("gradio",), "--serve", "serve")
    if osp.exists(osp.join(args.model_dir, "model.onnx")):
        check_installed(("onnxruntime",), args.model_dir, "onnx")
    from experiments.predictor import Predictor, names_in  # not above: with PyTorch, which takes seconds
    from reports.predictions import as_json, as_table, contact_sheet, csv_row, titled

    for flag, path in outputs(args).items():
        check_output(flag, path, args.images)
    classes = None if args.classes is None else names_in(args.classes)
    how = {"epoch": args.load_epoch, "template": args.template, "strength": args.strength}
    if args.serve:
        from experiments.serve import serve

        serve(args.model_dir, classes, args.threshold, args.port, **how)
        return []
    with contextlib.redirect_stdout(sys.stderr):  # what a trainer of somebody's own prints is no answer
        predictor = Predictor(args.model_dir, classes, **how)
    predictions, start = [], time.perf_counter()
    with table_file(args.csv, predictor.classnames) as write:
        for p in predictor(args.images, args.top, args.threshold, every=bool(args.csv)):
            if args.csv:
                write(csv_row(p))
            predictions.append(replace(p, every=()))
    seconds = time.perf_counter() - start
    read = [p for p in predictions if not p.error]
    if args.json:
        print(as_json(predictions))
    elif read and args.csv != "-":
        print(as_table(read))
    if args.picture and read:
        contact_sheet(titled(read), args.picture)
    tell(read, seconds)
    return [visible(f"{p.image}: {p.error}") for p in predictions if p.error]


@contextlib.contextmanager
def table_file(path: str | None, classnames: list[str]) -> Iterator[Callable[[str], None]]:
    """A function that writes lines into a CSV file, which is there when all are written; "-": prints them."""
    from reports.predictions import csv_head, printable

    if path and path != "-":
        stream = osp.exists(path) and not osp.isfile(path)  # /dev/null, /dev/stdout, a named pipe
        with open(path, "wb") if stream else atomic_write(path) as f:
            f.write(csv_head(classnames).encode())
            yield lambda line: f.write(line.encode())
        return
    if path:
        print(printable(csv_head(classnames)), end="")
    yield lambda line: print(printable(line), end="")


def tell(read: list, seconds: float) -> None:
    """On the standard error: how fast it was, and how many of the images the model has seen."""
    if len(read) > 1:
        told = f"{len(read):,} images in {seconds:.1f} s: {len(read) / seconds:,.1f} images/s, reading and classifying"
        print(told, file=sys.stderr)
    seen = sum(bool(p.seen) for p in read)
    if seen:
        told = f"the model has seen {seen:,} of these {len(read):,} images in training: they say nothing of new ones"
        print(told, file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    return command(lambda: predict(parse(argv)))


def __getattr__(name: str):
    """`from predict import Predictor`, as it was before there was `orthcr`."""
    import orthcr

    return getattr(orthcr, name)


if __name__ == "__main__":
    sys.exit(main())
