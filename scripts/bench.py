"""CPU seconds (one thread) and memory of a training step on ViT-B/16 with random weights; ratios taken in one run.

    python scripts/bench.py [--batch 4] [--classes 50] [--steps 3] [--prec fp32]

Each case runs in a process of its own, after one step of warm-up; where there is CUDA, on it, by the clock.
"CoOp, 77 tokens" is CoOp with every prompt padded to CLIP's 77 tokens, as upstream encodes them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
CASES = {
    "CoOp, 77 tokens": ("CoOp", []),
    "CoOp": ("CoOp", []),
    "OrthCR, no regularizer": ("OrthCR", ["TRAINER.ORTHCR.REG", "none"]),
    "OrthCR": ("OrthCR", []),
    "OrthCR, image side only": ("OrthCR", ["TRAINER.ORTHCR.ENCODERS", "['image']"]),
}


def random_vit_b16(path: Path) -> None:
    """Writes the state dict of a ViT-B/16 CLIP with random weights."""
    import torch
    from clip.model import CLIP

    torch.manual_seed(0)
    model = CLIP(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12)  # in the order of clip.model.build_model
    torch.save(model.half().state_dict(), path)


def measure(case: str, args) -> dict:
    """Trains and evaluates one case on noise: seconds of a step, and of classifying a batch."""
    import torch
    from clip import clip
    from PIL import Image

    from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
    from dassl.engine import build_trainer
    from experiments.config import parse, setup_cfg
    from experiments.run import peak_memory
    from trainers.shared import prompts

    torch.set_num_threads(1)

    if "77" in case:
        prompts.tokenize = clip.tokenize
    trainer_name, opts = CASES[case]
    with tempfile.TemporaryDirectory() as folder:
        image = Path(folder) / "noise.png"
        Image.effect_noise((224, 224), 80).convert("RGB").save(image)

        @DATASET_REGISTRY.register()
        class Noise(DatasetBase):
            def __init__(self, cfg):
                items = [Datum(str(image), k, classname=f"class number {k}") for k in range(args.classes)]
                super().__init__(train_x=items, test=items)

        files = f"--config-file {ROOT}/configs/trainers/{trainer_name}/vit_b16.yaml --output-dir {folder}"
        sizes = f"DATALOADER.TRAIN_X.BATCH_SIZE {args.batch} DATALOADER.TEST.BATCH_SIZE {args.batch}"
        rest = f"DATASET.NAME Noise DATALOADER.NUM_WORKERS 0 TRAINER.{trainer_name.upper()}.PREC {args.prec}"
        words = f"--trainer {trainer_name} --backbone {args.weights} {files} {sizes} {rest}"
        cfg = setup_cfg(parse([*words.split(), *opts]))
        trainer = build_trainer(cfg)
        batch = next(iter(trainer.train_loader_x))

    def seconds(work):
        """Median over the steps, after one of warm-up: of the CPU, or on a GPU of the clock."""
        clock, taken = time.perf_counter if cfg.USE_CUDA else time.process_time, []
        for _ in range(args.steps + 1):
            start = clock()
            work()
            if cfg.USE_CUDA:
                torch.cuda.synchronize()
            taken.append(clock() - start)
        return median(taken[1:])

    trainer.epoch, trainer.num_batches, trainer.batch_idx = 0, 10**9, 0
    trainer.set_model_mode("train")
    step = seconds(lambda: trainer.forward_backward(batch))
    memory = peak_memory(cfg)
    trainer.set_model_mode("eval")
    with torch.no_grad():
        image = batch["img"].to(trainer.device)
        kept = seconds(lambda: trainer.model_inference(image))
        again = seconds(lambda: (trainer.set_model_mode("eval"), trainer.model_inference(image)))
    device = torch.cuda.get_device_name() if cfg.USE_CUDA else "CPU seconds, one thread"
    return {
        "case": case,
        "step": step,
        "memory": memory,
        "eval": kept,
        "recomputed": again,
        "params": sum(p.numel() for p in trainer.model.parameters() if p.requires_grad),
        "where": f"{device}, torch {torch.__version__}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--prec", default="fp32", help="fp32, amp or bf16")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    parser.add_argument("--weights", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print("\n" + json.dumps(measure(args.case, args)))
        return

    results = []
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "vit_b16.pt"
        random_vit_b16(weights)
        for case in CASES:
            print(f"measuring {case} ...", flush=True)
            command = [sys.executable, __file__, *sys.argv[1:], "--case", case, "--weights", str(weights)]
            out = subprocess.run(command, capture_output=True, text=True)
            if out.returncode:
                sys.exit(f"{case} failed:\n{out.stderr}")
            results.append(json.loads(out.stdout.splitlines()[-1]))
    first = results[0]["step"]
    rows = [
        [
            r["case"],
            f"{r['params']:,}",
            f"{r['step']:.3f}",
            f"{first / r['step']:.2f}",
            f"{r['memory']:.0f}",
            f"{r['eval']:.3f}",
            f"{r['recomputed'] / r['eval']:.2f}",
        ]
        for r in results
    ]
    heads = [
        "case",
        "trained",
        "s / step",
        f"faster than {results[0]['case']}",
        "peak MiB",
        "s / test batch",
        "slower if text were recomputed",
    ]
    print(tabulate(rows, heads, "github", colalign=("left", *["right"] * 6)))
    print(f"\nViT-B/16, batch {args.batch}, {args.classes} classes, {args.prec}; {results[0]['where']}")


if __name__ == "__main__":
    main()
