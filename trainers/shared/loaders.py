"""An option of the training loader."""

from torch.utils.data import DataLoader


def keep_last_batch(loader: DataLoader | None) -> None:
    """Keep the last batch of an epoch if it is incomplete, like originals that do not use Dassl.

    Args:
        loader: the training loader; None: there is no training data.
    """
    if loader is not None:
        loader.batch_sampler.drop_last = False
