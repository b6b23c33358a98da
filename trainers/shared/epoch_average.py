"""The Gaussian average of the learner over the epochs of a training (PromptSRC, equation 2, GPA)."""

import torch


def gaussian_weights(epochs: int, mean: float, std: float) -> list[float]:
    """Return w_1 ... w_N with w_e ~ exp(-(e - mean)^2 / (2 std^2)) and sum 1."""
    e = torch.arange(1, epochs + 1, dtype=torch.float64)
    return torch.softmax(-(((e - mean) / std) ** 2) / 2, dim=0).tolist()


class EpochAverage:
    """A mixin for a `ClipTrainer`: after the last epoch the average is the model that is saved and tested.

    Attributes:
        average: the weighted sum of the learner's tensors over the epochs so far.
        average_settings: its number of epochs, mean and standard deviation; [] before a training.
    """

    average: dict[str, torch.Tensor] = {}
    average_settings: list = []

    def gaussian(self) -> tuple[str, float, float] | None:
        """Return the name of the config node, and the mean and the standard deviation in epochs; None: no average."""
        return self.key(), self.node.GPA_MEAN, self.node.GPA_STD

    def before_train(self):
        super().before_train()
        if self.gaussian() is None:
            return
        node, mean, std = self.gaussian()
        epochs, *_ = settings = [self.max_epoch, mean, std]
        if 0 < self.start_epoch < epochs and self.average_settings != settings:
            raise ValueError(
                f"the checkpoint of epoch {self.start_epoch} has no running average of {epochs} epochs with "
                f"{node}.GPA_MEAN {mean} and GPA_STD {std}: go on with its own settings, or start afresh"
            )
        self.average_settings = settings

    def after_epoch(self):
        if self.average_settings:
            self.take_average()
        super().after_epoch()

    def take_average(self) -> None:
        """Add this epoch to the average. After the last epoch, load it into the learner."""
        learner = self.model.get_submodule(self.learner)
        weight = gaussian_weights(*self.average_settings)[self.epoch]
        parameters = {name for name, p in learner.named_parameters()}
        for name, tensor in learner.state_dict().items():
            if name in parameters:
                self.average = self.average | {name: self.average.get(name, 0) + weight * tensor}
        if self.epoch + 1 == self.max_epoch:
            learner.load_state_dict(learner.state_dict() | self.average)

    def get_extra_state(self):
        return super().get_extra_state() | {"average": self.average, "averaged": self.average_settings}

    def set_extra_state(self, state):
        super().set_extra_state(state)
        self.average = {name: tensor.to(self.device) for name, tensor in state.get("average", {}).items()}
        self.average_settings = state.get("averaged", [])
