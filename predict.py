"""Classification of images with a trained model. It needs the output directory of the training and no data set.

    python predict.py --model-dir OUT image1.jpg folder/ ...           class, probability and the five likeliest
    python predict.py --model-dir OUT photos/ --json > out.json
    python predict.py --model-dir OUT photos/ --csv out.csv            the probabilities of all classes
    python predict.py --model-dir OUT photos/ --threshold 0.7          "unsure" below this probability
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

from dassl.infrastructure.command import command
from dassl.infrastructure.files import atomic_write, visible
from orthcr.packages import check_installed


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", help="images, or folders with images")
    parser.add_argument("--model-dir", required=True, help="output directory of the training")
    parser.add_argument("--load-epoch", type=int, help="checkpoint's epoch; default: the best on val, else the last")
    parser.add_argument("--classes", help='other class names, separated by commas: "a,b,c"')
    parser.add_argument("--template", default="", help='prompt of the classes, e.g. "a photo of a {}."')
    parser.add_argument("--strength", help='fraction of the update, 0 to 1, or "auto"; default: as in the training')
    parser.add_argument("--top", type=int, default=5, help="number of classes to name, default: 5")
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
    """Check the flags before long work: without this, some errors would come after all images are classified.

    Raises:
        ValueError: a flag is wrong, or contradicts another.
        OSError: an output file cannot be written.
    """
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
            raise OSError(f"{flag} cannot be written: there is no {folder}, or it is read-only: give another path")
        if osp.isdir(path) or not path:
            raise OSError(f'{flag} cannot be written: "{path}" is no name of a file: give another')


def outputs(args: argparse.Namespace) -> dict[str, str]:
    """Return the output files by their flags."""
    paths = {"--picture": args.picture, "--csv": args.csv}
    return {flag: path for flag, path in paths.items() if path is not None and path != "-"}


def check_output(flag: str, path: str, images: list[str]) -> None:
    """Raise ValueError if an output file would replace an image.

    Args:
        flag: flag of the output file.
        path: path of the output file.
        images: images and folders on the command line.
    """
    from dassl.infrastructure.images import is_image  # not above: it imports PyTorch

    if flag == "--csv" and is_image(path):
        raise ValueError(f"--csv must name a table, not an image (got {path}): give the name of a .csv file")
    inputs = {osp.realpath(osp.expanduser(image)) for image in images}
    target = osp.realpath(path)
    inside = any(osp.isdir(image) and target.startswith(osp.join(image, "")) for image in inputs)
    if target in inputs or inside and is_image(path) and osp.exists(path):
        raise ValueError(f"{flag} would replace {path}, one of the images: give another name")


def predict(args: argparse.Namespace) -> list[str]:
    """Print the predictions; return a line for each image that cannot be read."""
    check(args)
    if args.serve:
        check_installed(("gradio",), "--serve", "serve")
    if osp.exists(osp.join(args.model_dir, "model.onnx")):
        check_installed(("onnxruntime",), args.model_dir, "onnx")
    from orthcr.deploy.predictor import Predictor, parse_names  # not above: it imports PyTorch, which takes seconds
    from orthcr.reports.predictions import csv_row, draw_contact_sheet, format_json, format_table, titles_of

    for flag, path in outputs(args).items():
        check_output(flag, path, args.images)
    classes = None if args.classes is None else parse_names(args.classes)
    options = {"epoch": args.load_epoch, "template": args.template, "strength": args.strength}
    if args.serve:
        from orthcr.deploy.web_page import serve

        serve(args.model_dir, classes, args.threshold, args.port, **options)
        return []
    with contextlib.redirect_stdout(sys.stderr):  # a user's own trainer may print: the standard output has answers only
        predictor = Predictor(args.model_dir, classes, **options)
    predictions, start = [], time.perf_counter()
    with table_file(args.csv, predictor.classnames) as write:
        for p in predictor(args.images, args.top, args.threshold, every=bool(args.csv)):
            if args.csv:
                write(csv_row(p))
            predictions.append(replace(p, every=()))
    seconds = time.perf_counter() - start
    answers = [p for p in predictions if not p.error]
    if args.json:
        print(format_json(predictions))
    elif answers and args.csv != "-":
        print(format_table(answers))
    if args.picture and answers:
        draw_contact_sheet(titles_of(answers), args.picture)
    tell(answers, seconds)
    return [visible(f"{p.image}: {p.error}") for p in predictions if p.error]


@contextlib.contextmanager
def table_file(path: str | None, classnames: list[str]) -> Iterator[Callable[[str], None]]:
    """Yield a function that writes lines into a CSV file, or prints them for "-".

    The file appears when all lines are written.

    Args:
        path: path of the file; None: the function is not called.
        classnames: for the head.
    """
    from orthcr.reports.predictions import csv_head, escape_unprintable

    if path and path != "-":
        is_stream = osp.exists(path) and not osp.isfile(path)  # /dev/null, /dev/stdout, a named pipe
        with open(path, "wb") if is_stream else atomic_write(path) as f:
            f.write(csv_head(classnames).encode())
            yield lambda line: f.write(line.encode())
        return
    if path:
        print(escape_unprintable(csv_head(classnames)), end="")
    yield lambda line: print(escape_unprintable(line), end="")


def tell(answers: list, seconds: float) -> None:
    """Print the speed and the number of images that the model has seen in training, on the standard error."""
    n = len(answers)
    if n > 1:
        speed = f"{n:,} images in {seconds:.1f} s: {n / seconds:,.1f} images/s, reading and classifying"
        print(speed, file=sys.stderr)
    seen = sum(bool(p.seen) for p in answers)
    if seen:
        warning = f"the model has seen {seen:,} of these {n:,} images in training: they say nothing of new ones"
        print(warning, file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    return command(lambda: predict(parse(argv)))


def __getattr__(name: str):
    """Return a name of `orthcr`: older programs have `from predict import Predictor`."""
    import orthcr

    return getattr(orthcr, name)


if __name__ == "__main__":
    sys.exit(main())
