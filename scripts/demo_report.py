"""The pictures of `make demo`, as PNG files and in one self-contained report.html."""

import base64
import html
import json
from pathlib import Path
from statistics import mean

import numpy as np
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from reports.pictures import COLOURS, plt, save

PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>OrthCR demo</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}}
img{{max-width:100%}} table{{border-collapse:collapse}} td,th{{padding:.3rem .9rem;border-bottom:1px solid #ddd}}
figure{{margin:2rem 0}} figcaption{{color:#555}}</style>
<h1>Base-to-new on Shapes</h1>
<p>Each method adapts the tiny CLIP from 16 images of each of 20 base classes and is tested on these classes and on 20
classes that it never saw. Mean ± standard deviation over seeds {seeds}; accuracy in percent; {device}, PyTorch {torch}.
</p>{table}{figures}</html>"""


def curves(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{tag: (steps, values)} of the TensorBoard files of a run; of a step written twice the later value."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    read = {}
    for tag in events.Tags()["scalars"]:
        last = {e.step: e.value for e in events.Scalars(tag)}
        read[tag] = (np.array(sorted(last)), np.array([last[s] for s in sorted(last)]))
    return read


def pictures(summary: list[dict], out: Path) -> Path:
    """Some images of the base and of the new classes, as the methods get them."""
    split = json.loads((Path(__file__).resolve().parents[1] / "data/shapes/split.json").read_text())["test"]
    names = list(dict.fromkeys(name for _, _, name in split))
    half, folder = len(names) // 2, Path(__file__).resolve().parents[1] / "data/shapes/images"
    fig, axes = plt.subplots(4, 7, figsize=(11, 7.4))
    for row, line in enumerate(axes):
        for k, ax in enumerate(line):
            name = names[(0 if row < 2 else half) + (row % 2) * 7 + k]
            path = next(p for p, _, n in split if n == name)
            ax.imshow(Image.open(folder / path), interpolation="nearest")
            ax.set_title(name.replace(" ", "\n", 1), fontsize=9)
            ax.axis("off")
    axes[0, 0].text(-0.3, 0.5, "base", rotation=90, weight="bold", transform=axes[0, 0].transAxes, va="center")
    axes[2, 0].text(-0.3, 0.5, "new", rotation=90, weight="bold", transform=axes[2, 0].transAxes, va="center")
    return save(fig, out / "shapes.png")


def bars(summary: list[dict], out: Path) -> Path:
    """Accuracy of each method on base and new classes, and the harmonic mean; dots are the seeds."""
    methods = list(dict.fromkeys(s["trainer"] for s in summary))
    fig, ax = plt.subplots(figsize=(8, 4))
    width = 0.8 / len(methods)
    for m, method in enumerate(methods):
        for g, key in enumerate(("base", "new", "hm")):
            values, x = [s[key] for s in summary if s["trainer"] == method], g + (m - (len(methods) - 1) / 2) * width
            ax.bar(x, mean(values), width * 0.92, color=COLOURS[m], label=method if g == 0 else None)
            ax.plot([x] * len(values), values, "k.", markersize=4)
            ax.text(x, max(values) + 1.2, f"{mean(values):.1f}", ha="center", fontsize=9)
    ax.set_xticks(range(3), ["base classes", "new classes", "harmonic mean"])
    ax.set(ylabel="accuracy, %", ylim=(0, 100))
    ax.grid(axis="x", visible=False)
    ax.legend(ncol=len(methods), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return save(fig, out / "base_new.png")


def training(summary: list[dict], out: Path) -> Path:
    """Loss and training accuracy of each epoch, mean over seeds with the range between them."""
    fig, axes = plt.subplots(1, 2, figsize=(11, 4))
    for m, method in enumerate(dict.fromkeys(s["trainer"] for s in summary)):
        if not any(s["trainable_params"] for s in summary if s["trainer"] == method):
            continue
        folders = [out / method / f"seed{s['seed']}" for s in summary if s["trainer"] == method]
        runs = [curves(folder) for folder in folders]
        epochs = yaml.safe_load((folders[0] / "config.yaml").read_text())["OPTIM"]["MAX_EPOCH"]
        for ax, tag in zip(axes, ("train/loss", "train/acc"), strict=True):
            values = np.stack([r[tag][1] for r in runs])
            batches = values.shape[1] // epochs
            values = values[:, batches - 1 :: batches]  # what is written is the mean of the epoch so far
            steps = np.linspace(0, 100, epochs + 1)[1:]
            ax.plot(steps, values.mean(0), color=COLOURS[m], label=method)
            ax.fill_between(steps, values.min(0), values.max(0), color=COLOURS[m], alpha=0.2, lw=0)
    axes[0].set(xlabel="% of training", ylabel="loss", ylim=(0, None))
    axes[1].set(xlabel="% of training", ylabel="training accuracy, %", ylim=(0, 100))
    axes[0].legend()
    return save(fig, out / "training.png")


def orthogonality(summary: list[dict], out: Path) -> Path:
    """How far R is from orthogonal, and how much the hyperspherical energy of a weight's rows has changed."""
    fig, axes = plt.subplots(1, 2, figsize=(11, 4))
    titles = {
        "orthcr/orthogonality_error": r"largest $|R^\top R - I|$",
        "orthcr/energy_drift": "largest relative change of\nhyperspherical energy",
    }
    for ax, (tag, label) in zip(axes, titles.items(), strict=True):
        for s in (s for s in summary if s["trainer"] == "OrthCR"):
            steps, values = curves(out / "OrthCR" / f"seed{s['seed']}")[tag]
            ax.semilogy(steps, np.maximum(values, 1e-10), "o-", ms=3, label=f"seed {s['seed']}")
        ax.axhline(np.finfo(np.float32).eps, color="k", ls=":", lw=1, label="fp32 rounding")
        ax.set(xlabel="epoch", ylabel=label, ylim=(1e-10, 1e-2))
    axes[0].legend(ncol=2)
    return save(fig, out / "orthogonality.png")


def write(summary: list[dict], out: Path, table: str) -> None:
    """Draws the pictures into `out` and writes `out`/report.html, which holds them all."""
    figures = ""
    for draw in (bars, training, orthogonality, pictures):
        data = base64.b64encode(draw(summary, out).read_bytes()).decode()
        caption = html.escape(draw.__doc__)
        image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
        figures += f"<figure>{image}<figcaption>{caption}</figcaption></figure>\n"
    run = json.loads((out / summary[-1]["trainer"] / f"seed{summary[-1]['seed']}" / "results.json").read_text())
    seeds = ", ".join(str(s) for s in dict.fromkeys(s["seed"] for s in summary))
    page = PAGE.format(seeds=seeds, device=run["device"], torch=run["versions"]["torch"], table=table, figures=figures)
    (out / "report.html").write_text(page, encoding="utf-8")
