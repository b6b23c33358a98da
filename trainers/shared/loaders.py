"""What methods ask of their data loader."""

from torch.utils.data import DataLoader

try:
    from dassl.data.transforms import is_fixed

    BY_ITEM = {"draws_by_item": True}  # for build_transform and build_data_loader
except ImportError:  # beside the original Dassl, which knows one way to draw
    BY_ITEM = {}

    def is_fixed(transform) -> bool:
        return False


def keep_last_batch(loader: DataLoader | None) -> None:
    """The incomplete last batch of an epoch is trained on, too, as by originals that are not made with Dassl.

    None: there is no training data.
    """
    if loader is not None:
        loader.batch_sampler.drop_last = False
