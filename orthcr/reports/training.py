"""The curves of trainings, read from their TensorBoard files."""

from pathlib import Path

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dassl.infrastructure.files import read_json
from orthcr.reports.palette import styles_of
from orthcr.reports.pictures import plt


def read_curves(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return {tag: (steps, values)} of a run. If a step was written twice, the later value counts."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    scalars = {}
    for tag in events.Tags()["scalars"]:
        values = {e.step: e.value for e in events.Scalars(tag)}
        scalars[tag] = (np.array(sorted(values)), np.array([values[s] for s in sorted(values)]))
    return scalars


def draw_loss_and_accuracy(folders: dict[str, list[Path]]):
    """Draw the loss and the training accuracy of each epoch, with mean and range over the seeds.

    Args:
        folders: {method: folders of its trainings}.
    """
    fig, axes = plt.subplots(1, 2, figsize=(11, 4))
    styles = styles_of(folders)
    for method, trainings in folders.items():
        colour = styles[method]["color"]
        results = read_json(trainings[0] / "results.json")
        if not results["trained"]:
            continue
        runs = [read_curves(folder) for folder in trainings]
        epochs = results["config"]["OPTIM.MAX_EPOCH"]
        for ax, tag in zip(axes, ("train/loss", "train/acc"), strict=True):
            values = np.stack([run[tag][1] for run in runs])
            batches = values.shape[1] // epochs
            values = values[:, batches - 1 :: batches]  # each value is the mean of its epoch up to this batch
            steps = np.linspace(0, 100, epochs + 1)[1:]
            ax.plot(steps, values.mean(0), color=colour, label=method)
            ax.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.2, lw=0)
    axes[0].set(xlabel="% of training", ylabel="loss", ylim=(0, None))
    axes[1].set(xlabel="% of training", ylabel="training accuracy, %", ylim=(0, 100))
    axes[0].legend()
    return fig


def draw_orthogonality(folders: list[Path]):
    """Draw the distance of R from orthogonality, and the change of the hyperspherical energy of the weights' rows."""
    fig, axes = plt.subplots(1, 2, figsize=(11, 4))
    titles = r"largest $|R^\top R - I|$", "largest relative change of\nhyperspherical energy"
    for ax, tag, label in zip(axes, ("orthogonality_error", "energy_drift"), titles, strict=True):
        for folder in folders:
            steps, values = read_curves(folder)[f"orthcr/{tag}"]
            ax.semilogy(steps, np.maximum(values, 1e-10), "o-", ms=3, label=folder.name)
        ax.axhline(np.finfo(np.float32).eps, color="k", ls=":", lw=1, label="fp32 rounding")
        ax.set(xlabel="epoch", ylabel=label, ylim=(1e-10, 1e-2))
    axes[0].legend(ncol=2)
    return fig
