"""Export of a trained model into a folder that needs nothing of this project: a plain CLIP, or a classifier.

    python export.py --model-dir OUT --to transformers --output DIR    for CLIPModel.from_pretrained("DIR")
    python export.py --model-dir OUT --to open_clip --output DIR       for create_model_and_transforms("local-dir:DIR")
    python export.py --model-dir OUT --to openai --output DIR          for clip.load("DIR/model.pt")
    python export.py --model-dir OUT --to peft --output DIR            for PeftModel.from_pretrained(CLIPModel, "DIR")
    python export.py --model-dir OUT --to onnx --output DIR            image to logits, for onnxruntime; any method

Each folder has a README.md with the model's accuracies and the code to load it. `predict.py --model-dir DIR` takes
it, too, and so does `train.py --backbone DIR` (not ONNX). `--to onnx` needs packages that `make demo` installs;
elsewhere: pip install -e '.[onnx]'.
"""

import argparse
import sys

from dassl.infrastructure.command import command
from orthcr.deploy.card import FORMATS
from orthcr.packages import ONNX, PEFT, check_installed


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-dir", required=True, help="output directory of the training")
    parser.add_argument("--to", required=True, choices=FORMATS)
    parser.add_argument("--output", required=True, help="folder to be made")
    parser.add_argument("--load-epoch", type=int, help="checkpoint's epoch; default: the best on val, else the last")
    parser.add_argument("--strength", type=float, help="fraction of the update, 0 to 1; default: as in the training")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    def work() -> None:
        args = parse(argv)
        if args.to == "onnx":
            check_installed(ONNX, "--to onnx", "onnx")
        if args.to == "peft":
            check_installed(PEFT, "--to peft", "export")
        from orthcr.deploy.exporter import export  # not above: it imports PyTorch, which takes seconds

        export(args.model_dir, args.to, args.output, args.load_epoch, args.strength)

    return command(work)


if __name__ == "__main__":
    sys.exit(main())
