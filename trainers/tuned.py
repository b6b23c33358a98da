"""TunedTrainer: what the methods that change weights share beside `TunedCLIP`, the strength of the change.

It is 1 in training always, and a number or "auto" in evaluation; changing it needs no training.
"""

from collections.abc import Iterable, Iterator

import torch
from tqdm import tqdm

from .base import ClipTrainer
from .shared import strength
from .shared.console import say
from .shared.keys import Key
from .shared.processes import is_first

HELD = 2**30  # bytes of images that are kept while several strengths are tried on them


class TunedTrainer(ClipTrainer):
    """A ClipTrainer whose classifier is a `TunedCLIP`."""

    defaults = ClipTrainer.defaults | {
        # of the change, in evaluation; "auto" is chosen on val at the end of training: see shared/strength.py
        "STRENGTH": Key(1.0, of=float, low=0, high=1, word=strength.AUTO)
    }
    chosen: dict | None = None  # under "auto", as in strength.json

    def after_train(self):
        if self.node.STRENGTH == strength.AUTO:  # before the test, for the model that will be tested
            best = self.cfg.TEST.FINAL_MODEL == "best_val" and not self.cfg.TEST.NO_TEST
            if best:
                super().load_model(self.output_dir)
            self.chosen = self.choose(None if best else self.max_epoch)
            if is_first():
                strength.keep(self.chosen, self.output_dir)
        self.model.strength = self.strength_of(self.output_dir)
        super().after_train()

    def load_model(self, directory, epoch=None):
        super().load_model(directory, epoch)
        self.model.strength = self.strength_of(directory, epoch)

    def strength_of(self, directory: str, epoch: int | None = None) -> float:
        """That of the config; "auto": what was chosen for the model of `directory`.

        Raises:
            ValueError: nothing was.
        """
        if self.node.STRENGTH != strength.AUTO:
            return float(self.node.STRENGTH)
        if not directory:  # the model as it was built
            return 1.0
        self.chosen = strength.kept(directory, epoch) or self.chosen  # else one that was chosen now
        if not self.chosen:
            of = f" for epoch {epoch}" if epoch is not None else ""
            told = f'{self.key("STRENGTH")} is "auto", but none was chosen{of} in {directory}'
            once = f"python train.py --eval-only --model-dir {directory} --strength auto"
            raise ValueError(f"{told}: give a number from 0 to 1, or once {once}")
        return float(self.chosen["strength"])

    def facts(self) -> dict:
        """What `results.json` says of the strength."""
        return {"strength": self.model.strength} | ({"strength_choice": self.chosen} if self.chosen else {})

    def choose(self, epoch: int | None) -> dict:
        """The strength for the weights as they are, on the val images, which is also printed."""
        if self.val_loader is None:
            chosen = strength.without_val(epoch)
        else:
            chosen = strength.choice(*self.right_at(strength.TRIED, self.val_loader), epoch)
        say(strength.told(chosen))
        return chosen

    @torch.no_grad()
    def right_at(self, strengths: Iterable[float], loader: Iterable[dict]) -> tuple[dict[float, int], int]:
        """{strength: how many images are classified rightly}, and how many there are; the images are read once."""
        self.set_model_mode("eval")
        before, right, n = self.model.strength, dict.fromkeys(strengths, 0), 0
        for images, label in held(map(self.parse_batch_test, tqdm(loader, "reading", leave=False, disable=None))):
            for s in tqdm(right, "strengths", leave=False, disable=None):
                self.model.strength = s
                for image, wanted in zip(images, label, strict=True):
                    right[s] += int((self.model_inference(image).argmax(1) == wanted).sum())
            n += sum(map(len, label))
        self.model.strength = before
        return right, n


def held(batches: Iterable[tuple]) -> Iterator[tuple[list, list]]:
    """The images and the labels of as many batches as `HELD` allows, or of one."""
    images, labels = [], []
    for image, label in batches:
        if images and sum(some.nbytes for some in images) + image.nbytes > HELD:
            yield images, labels
            images, labels = [], []
        images.append(image)
        labels.append(label)
    if images:
        yield images, labels
