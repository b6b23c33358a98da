import numpy as np
import torch

from trainers.shared.epoch_average import gaussian_weights

from . import ivlp

WEIGHTS = ("TEXT_LOSS_WEIGHT", "IMAGE_LOSS_WEIGHT", "LOGIT_LOSS_WEIGHT")


class Golden(ivlp.Golden):
    """In a variant with `weights` every step is an epoch, and the model after the last one is their average."""

    trainer = "PromptSRC"

    def figures(self):
        if self.name == "weights":  # no case: those of epochs_mean_std
            return {name: np.array(gaussian_weights(*map(int, name.split("_")))) for name in self.golden}
        out = super().figures()
        trainer = self.build(self.inputs["classnames"])
        if "weights" in self.golden:
            out["weights"] = np.array(gaussian_weights(*self.of(trainer)))
        out["frozen_text"] = trainer.model.frozen_text.numpy()
        lengths = np.linalg.norm(self.golden["frozen_text"], axis=-1, keepdims=True)
        self.golden = self.golden | {"frozen_text": self.golden["frozen_text"] / lengths}  # when the original uses it
        return out

    def of(self, trainer) -> list:
        """Epochs, mean and deviation of the average."""
        return [trainer.cfg.OPTIM.MAX_EPOCH, trainer.node.GPA_MEAN, trainer.node.GPA_STD]

    def terms(self, trainer, terms):
        own = {key: trainer.node[key] for key in WEIGHTS}
        trainer.node.update(dict.fromkeys(WEIGHTS, 1.0))
        unweighted, _ = trainer.losses(self.image, self.label)
        trainer.node.update(own)
        return super().terms(trainer, terms) | unweighted

    @torch.no_grad()
    def after_step(self, trainer, step):
        if "weights" in self.golden:
            trainer.average_settings = self.of(trainer)
            trainer.epoch, trainer.max_epoch = step, trainer.average_settings[0]
            trainer.take_average()
