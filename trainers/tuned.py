"""TunedTrainer: the base class of the methods that change weights. It adds the strength, the fraction of the update.

The strength is always 1 in training. In evaluation it is a number or "auto", and may change without a new training.
"""

from collections.abc import Iterable, Iterator

import torch
from tqdm import tqdm

from .base import ClipTrainer
from .shared import strength
from .shared.beside_dassl import is_first, say
from .shared.keys import Key

CHUNK_BYTES = 2**30  # size of the images in memory on which all strengths are tried before the next ones are read


class TunedTrainer(ClipTrainer):
    """A ClipTrainer whose classifier is a `TunedCLIP`."""

    defaults = ClipTrainer.defaults | {
        # strength in evaluation; "auto" is selected on val at the end of training, see shared/strength.py
        "STRENGTH": Key(1.0, of=float, low=0, high=1, word=strength.AUTO)
    }
    selection: dict | None = None  # the content of strength.json, with STRENGTH "auto"

    def after_train(self):
        if self.node.STRENGTH == strength.AUTO:  # selected before the test, for the model that will be tested
            best_epoch = self.cfg.TEST.FINAL_MODEL == "best_val" and not self.cfg.TEST.NO_TEST
            if best_epoch:
                super().load_model(self.output_dir)
            self.selection = self.select_strength(None if best_epoch else self.max_epoch)
            if is_first():
                strength.write_selection(self.selection, self.output_dir)
        self.model.strength = self.strength_of(self.output_dir)
        super().after_train()

    def load_model(self, directory, epoch=None):
        super().load_model(directory, epoch)
        self.model.strength = self.strength_of(directory, epoch)

    def strength_of(self, directory: str, epoch: int | None = None) -> float:
        """Return the strength of the config; for "auto" the one that was selected for the model of `directory`.

        Raises:
            ValueError: none was selected.
        """
        if self.node.STRENGTH != strength.AUTO:
            return float(self.node.STRENGTH)
        if not directory:  # the model is evaluated as it was built
            return 1.0
        self.selection = strength.read_selection(directory, epoch) or self.selection  # the latter: selected in this run
        if not self.selection:
            checkpoint = f" for epoch {epoch}" if epoch is not None else ""
            problem = f'{self.key("STRENGTH")} is "auto", but none was selected{checkpoint} in {directory}'
            command = f"python train.py --eval-only --model-dir {directory} --strength auto"
            raise ValueError(f"{problem}: give a number from 0 to 1, or run {command} once")
        return float(self.selection["strength"])

    def facts(self) -> dict:
        """Return the entries of `results.json` about the strength."""
        facts = {"strength": self.model.strength}
        if self.selection:
            facts["strength_choice"] = self.selection
        return facts

    def select_strength(self, epoch: int | None) -> dict:
        """Select the strength for the current weights on the val images, and print it."""
        if self.val_loader is None:
            selection = strength.without_val(epoch)
        else:
            selection = strength.select(*self.count_correct(strength.TRIED, self.val_loader), epoch)
        say(strength.format_selection(selection))
        return selection

    @torch.no_grad()
    def count_correct(self, strengths: Iterable[float], loader: Iterable[dict]) -> tuple[dict[float, int], int]:
        """Return {strength: number of correctly classified images} and the number of images, which are read once."""
        self.set_model_mode("eval")
        initial_strength, n_correct, n = self.model.strength, dict.fromkeys(strengths, 0), 0
        batches = map(self.parse_batch_test, tqdm(loader, "reading", leave=False, disable=None))
        for images, labels in chunks(batches):
            for s in tqdm(n_correct, "strengths", leave=False, disable=None):
                self.model.strength = s
                for image, label in zip(images, labels, strict=True):
                    n_correct[s] += int((self.model_inference(image).argmax(1) == label).sum())
            n += sum(map(len, labels))
        self.model.strength = initial_strength
        return n_correct, n


def chunks(batches: Iterable[tuple]) -> Iterator[tuple[list, list]]:
    """Yield the images and the labels of consecutive batches, as many at once as `CHUNK_BYTES` allows."""
    images, labels = [], []
    for image, label in batches:
        if images and sum(batch.nbytes for batch in images) + image.nbytes > CHUNK_BYTES:
            yield images, labels
            images, labels = [], []
        images.append(image)
        labels.append(label)
    if images:
        yield images, labels
