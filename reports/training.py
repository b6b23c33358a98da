"""What a training was like, from its TensorBoard files."""

from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dassl.files import read_json
from dassl.palette import styles_of

from .pictures import plt


def curves(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """{tag: (steps, values)} of a run; of a step written twice the later value."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    read = {}
    for tag in events.Tags()["scalars"]:
        last = {e.step: e.value for e in events.Scalars(tag)}
        read[tag] = (np.array(sorted(last)), np.array([last[s] for s in sorted(last)]))
    return read


def loss_and_accuracy(folders: dict[str, list[Path]]):
    """Loss and training accuracy of each epoch, mean over seeds with the range between them.

    Args: folders: of the trainings, by method.
    """
    fig, axes = plt.subplots(1, 2, figsize=(11, 4))
    styles = styles_of(folders)
    for method, own in folders.items():
        colour = styles[method]["color"]
        results = read_json(own[0] / "results.json")
        if not results["trained"]:
            continue
        runs, epochs = [curves(folder) for folder in own], results["config"]["OPTIM.MAX_EPOCH"]
        for ax, tag in zip(axes, ("train/loss", "train/acc"), strict=True):
            values = np.stack([run[tag][1] for run in runs])
            batches = values.shape[1] // epochs
            values = values[:, batches - 1 :: batches]  # what is written is the mean of the epoch so far
            steps = np.linspace(0, 100, epochs + 1)[1:]
            ax.plot(steps, values.mean(0), color=colour, label=method)
            ax.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.2, lw=0)
    axes[0].set(xlabel="% of training", ylabel="loss", ylim=(0, None))
    axes[1].set(xlabel="% of training", ylabel="training accuracy, %", ylim=(0, 100))
    axes[0].legend()
    return fig


def orthogonality(folders: list[Path]):
    """How far R is from orthogonal, and how much the hyperspherical energy of a weight's rows has changed."""
    fig, axes = plt.subplots(1, 2, figsize=(11, 4))
    titles = r"largest $|R^\top R - I|$", "largest relative change of\nhyperspherical energy"
    for ax, tag, label in zip(axes, ("orthogonality_error", "energy_drift"), titles, strict=True):
        for folder in folders:
            steps, values = curves(folder)[f"orthcr/{tag}"]
            ax.semilogy(steps, np.maximum(values, 1e-10), "o-", ms=3, label=folder.name)
        ax.axhline(np.finfo(np.float32).eps, color="k", ls=":", lw=1, label="fp32 rounding")
        ax.set(xlabel="epoch", ylabel=label, ylim=(1e-10, 1e-2))
    axes[0].legend(ncol=2)
    return fig
