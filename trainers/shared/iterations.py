"""Training for a number of steps per shot, with a learning rate that changes after each batch, as in some originals."""

from .keys import DecidingKey, Key
from .loaders import keep_last_batch


class Iterations:
    """A base class, before `ClipTrainer`, for such methods. N_ITERS steps a shot are rounded to whole epochs."""

    keys = {
        "N_ITERS": Key(0, low=0),  # number of steps per shot, for any number of classes; 0 = OPTIM.MAX_EPOCH
        "LR_MIN": Key(1e-6, low=0),  # learning rate at the end of the cosine
    }
    deciding_keys = {"N_ITERS": DecidingKey(("OPTIM.MAX_EPOCH",))}
    lr_per_batch = True

    def build_data_loader(self):
        super().build_data_loader()
        keep_last_batch(self.train_loader_x)
        if self.node.N_ITERS and self.train_loader_x is not None:  # predict.py has no training data
            steps = self.node.N_ITERS * max(self.cfg.DATASET.NUM_SHOTS, 1)
            self.max_epoch = max(1, round(steps / len(self.train_loader_x)))

    def build_model(self):
        super().build_model()
        getattr(self.sched, "successor", self.sched).eta_min = self.node.LR_MIN

    def optim_cfg(self):
        optim = super().optim_cfg()
        if self.node.N_ITERS and self.train_loader_x is not None:
            optim.MAX_EPOCH = self.max_epoch * len(self.train_loader_x)
        return optim
