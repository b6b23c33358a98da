"""The state of an unfinished evaluation. The same command resumes from it, and the result is bit-identical.

It is used for methods that adapt to the test images, because their evaluation may take hours. The state is written to
the output directory at intervals, and removed at the end of the evaluation.
"""

import contextlib
import hashlib
import json
import os
import os.path as osp
import time
from functools import cached_property

import torch

from dassl.infrastructure import distributed
from dassl.infrastructure.console import say
from dassl.infrastructure.files import sha256
from dassl.utils import load_checkpoint
from dassl.utils.torchtools import save_sealed

from .checkpoint import rng_state, set_rng_state

FILE = "evaluation.pth.tar"  # in the output directory


class EvaluationState:
    """The state of an evaluation: its scored images, the adaptation of the model, and the seeds of its views.

    Args:
        trainer: a `SimpleTrainer`, before the first image.
        loader: DataLoader of the images.
    """

    def __init__(self, trainer, loader):
        self.trainer, self.loader = trainer, loader
        self.path = osp.join(trainer.output_dir, FILE)
        self.rng = rng_state()  # the views of all images are drawn from it
        self.saved_at = time.time()

    @cached_property
    def identity(self):
        """The checksum of the settings, the weights, the images and their order."""
        trainer, cfg = self.trainer, self.trainer.cfg.clone()
        cfg.defrost()
        cfg.OUTPUT_DIR, cfg.VERBOSE, cfg.DATALOADER.NUM_WORKERS = "", False, 0  # they change no score
        images = [[item.impath, item.label, size_of(item.impath)] for item in self.loader.dataset.data_source]
        evaluator = [getattr(trainer.evaluator, name, None) for name in ("temperature", "keep_scores")]
        names = sorted(trainer.lab2cname.items())
        content = [cfg.dump(), hash_weights(trainer.model), images, names, evaluator]
        return sha256(json.dumps(content).encode())

    def restore(self):
        """Restore the state of this evaluation and return the number of scored images; 0 if there is no state.

        Raises:
            ValueError: the content of the file does not fit.
        """
        state = distributed.from_first(self.read)
        if not state:
            return 0
        trainer = self.trainer
        try:
            tensors = {k: v.to(trainer.device) if torch.is_tensor(v) else v for k, v in state["evaluator"].items()}
            trainer.evaluator.load_state_dict(tensors)
            trainer.set_adaptation_state(state["adaptation"])
            self.rng, images = state["rng"], int(state["images"])
            set_rng_state(self.rng)
        except Exception as error:  # a dozen types, depending on the content of the file
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise ValueError(f'the evaluation cannot go on from "{self.path}" ({reason}): remove that file') from error
        say(f'Found the state of this evaluation in "{self.path}": {images:,} images are done')
        return images

    def read(self):
        """Return the content of the file; {} if there is none, if it is damaged, or if it is of another evaluation."""
        if not osp.lexists(self.path):
            return {}
        problem = "is of an evaluation with other settings, weights or images"
        try:
            state = load_checkpoint(self.path)
            if state.get("identity") == self.identity:
                return state
        except (OSError, ValueError):
            problem = "is damaged or cannot be read"
        say(f"{self.path} {problem}: this evaluation starts from the first image")
        return {}

    def save_if_due(self, images):
        """Save the state after this number of images, if the last one is older than `trainer.resume_interval`."""
        if time.time() - self.saved_at >= self.trainer.resume_interval and distributed.is_first():
            self.save(images)
            self.saved_at = time.time()

    def save(self, images):
        trainer = self.trainer
        state = {"identity": self.identity, "images": images, "rng": self.rng}
        state["evaluator"] = trainer.evaluator.state_dict()
        state["adaptation"] = trainer.get_adaptation_state()
        save_sealed(state, self.path)

    def remove(self):
        if distributed.is_first():
            with contextlib.suppress(FileNotFoundError):
                os.remove(self.path)


def size_of(path):
    """Return the bytes of a file; None if it cannot be read."""
    try:
        return osp.getsize(path)
    except OSError:
        return None


def hash_weights(model):
    """Return the SHA-256 of the tensors in a model's state dict, hexadecimal."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
