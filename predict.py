"""Classifies images with a trained model, from its output directory alone: no data set is needed.

    python predict.py --model-dir OUT image1.jpg folder/ ...           class, probability and the five likeliest
    python predict.py --model-dir OUT photos/ --json > out.json
    python predict.py --model-dir OUT photos/ --classes "a cat,a dog"   other classes, seen in training or not

In Python, after `pip install -e .` from any directory:

    from orthcr import Predictor
    predictor = Predictor("OUT")
    for p in predictor(["image1.jpg"]): print(p.image, p.classname, p.probability, p.top)
"""

import argparse
import csv
import os
import os.path as osp
import sys

from experiments.command import command


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", help="images, or folders with images")
    parser.add_argument("--model-dir", required=True, help="output directory of the training")
    parser.add_argument("--load-epoch", type=int, help="of the checkpoint; default: the best on val, else the last")
    parser.add_argument("--classes", help='other class names, separated by commas: "a,b,c"')
    parser.add_argument("--template", default="", help='prompt of the classes, e.g. "a photo of a {}."')
    parser.add_argument("--strength", help='of the change of weights, from 0 to 1, or "auto"; default: the training\'s')
    parser.add_argument("--top", type=int, default=5, help="how many classes to name, default: 5")
    parser.add_argument("--json", action="store_true", help="one JSON list on the standard output")
    parser.add_argument("--picture", help="PNG file for a contact sheet of at most 24 images with their classes")
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> None:
    """Raises ValueError or OSError for what would be noticed only when all images have been classified."""
    if args.top < 1:
        raise ValueError(f"--top is {args.top}: name at least one class")
    if args.picture:
        folder = osp.dirname(osp.abspath(args.picture))
        if not args.picture.lower().endswith(".png"):
            raise ValueError(f"--picture is {args.picture}: give the name of a .png file")
        if not os.access(folder, os.W_OK):
            raise OSError(f"--picture cannot be written: there is no {folder}, or nothing may be written there")


def predict(args: argparse.Namespace) -> list[str]:
    """Prints what the images show; returns a line for each that could not be read."""
    check(args)
    from experiments.predictor import Predictor  # not above: with PyTorch, which takes seconds
    from reports.predictions import as_json, as_table, contact_sheet, titled

    classes = None
    if args.classes is not None:
        classes = [name.strip() for row in csv.reader([args.classes]) for name in row if name.strip()]
    predictor = Predictor(args.model_dir, classes, args.load_epoch, args.template, strength=args.strength)
    predictions = list(predictor(args.images, args.top))
    read = [p for p in predictions if not p.error]
    if args.json:
        print(as_json(predictions))
    elif read:
        print(as_table(read))
    if args.picture and read:
        contact_sheet(titled(read), args.picture)
    seen = sum(bool(p.seen) for p in read)
    if seen:
        told = f"the model has seen {seen:,} of these {len(read):,} images in training: they say nothing of new ones"
        print(told, file=sys.stderr)
    return [f"{p.image}: {p.error}" for p in predictions if p.error]


def main(argv: list[str] | None = None) -> int:
    return command(lambda: predict(parse(argv)))


def __getattr__(name: str):
    """`from predict import Predictor`, as it was before there was `orthcr`."""
    import orthcr

    return getattr(orthcr, name)


if __name__ == "__main__":
    sys.exit(main())
