"""The options and functions of Dassl's data loaders that methods use."""

from torch.utils.data import DataLoader

try:
    from dassl.data.transforms import is_fixed

    BY_ITEM = {"draws_by_item": True}  # for build_transform and build_data_loader
except ImportError:  # the original Dassl has one way to draw random numbers
    BY_ITEM = {}

    def is_fixed(transform) -> bool:
        return False


def keep_last_batch(loader: DataLoader | None) -> None:
    """Keep the last batch of an epoch if it is incomplete, like originals that do not use Dassl.

    Args:
        loader: the training loader; None: there is no training data.
    """
    if loader is not None:
        loader.batch_sampler.drop_last = False
