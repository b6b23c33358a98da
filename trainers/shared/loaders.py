"""What originals that are not made with Dassl have otherwise in their data loader."""

from torch.utils.data import DataLoader


def keep_last_batch(loader: DataLoader | None) -> None:
    """The incomplete last batch of an epoch is trained on, too, which Dassl drops; None: there is no training data."""
    if loader is not None:
        loader.batch_sampler.drop_last = False
