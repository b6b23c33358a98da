import contextlib
import math
import random

import numpy as np
import torch
from tabulate import tabulate
from torch.utils.data import Dataset
from torchvision import transforms as T

from dassl.infrastructure import distributed
from dassl.infrastructure.console import say
from dassl.utils import decoded_copies, read_image, read_photo

from .datasets import build_dataset
from .item_samplers import Seeded, SeededIndex
from .samplers import build_sampler
from .transforms import INTERPOLATION_MODES, build_transform, is_fixed
from .workers import WorkerLoader, workers_that_fit

COPIES = 2**30  # largest size of the decoded images that a DatasetWrapper keeps in memory, in bytes


def build_data_loader(
    cfg,
    sampler_type="SequentialSampler",
    data_source=None,
    batch_size=64,
    n_domain=0,
    n_ins=2,
    tfm=None,
    is_train=True,
    dataset_wrapper=None,
    draws_by_item=False,
):
    """Build a DataLoader over a list of `Datum`; its batches are dicts with the keys of `DatasetWrapper`.

    In training an incomplete last batch is dropped, unless it is the only one.

    By default everything random is drawn as in Dassl: from the global generators, which DataLoader seeds in its workers
    from torch's. The workers end with the epoch.

    With `draws_by_item`, the random numbers of an item depend only on the seed of the epoch, which torch's global
    generator draws, and on the item's number in the epoch: see `Seeded`. They are equal for any number of workers. The
    workers live for all epochs, because they have no state to resume. A `dataset_wrapper` that is no `DatasetWrapper`
    draws as in Dassl.

    Raises ValueError if there are no items, or the sampler cannot fill a single batch from them.
    """
    if not data_source:
        raise ValueError(f"No items to build the {'training' if is_train else 'test'} data loader from")
    dataset = (dataset_wrapper or DatasetWrapper)(cfg, data_source, transform=tfm, is_train=is_train)
    sampler = build_sampler(sampler_type, cfg, data_source, batch_size, n_domain, n_ins, draws_by_item)
    seeded = draws_by_item and isinstance(dataset, DatasetWrapper)
    workers = cfg.DATALOADER.NUM_WORKERS
    if isinstance(dataset, DatasetWrapper):
        workers = workers_that_fit(workers, dataset.item_bytes * batch_size, -(-len(sampler) // batch_size))
    loader = Loader(
        dataset,
        batch_size=batch_size,
        sampler=Seeded(sampler) if seeded else sampler,
        num_workers=workers,
        drop_last=is_train and len(data_source) >= batch_size,
        pin_memory=cfg.USE_CUDA and torch.cuda.is_available(),
        persistent_workers=seeded and dataset.every_epoch and workers > 0,
        generator=torch.Generator() if seeded else None,  # else workers that start would move the global one
    )
    if len(loader) == 0:
        batch = f"one batch of {batch_size} from {len(data_source)} items"
        raise ValueError(f"{sampler_type} cannot form {batch}: lower the batch size")
    return loader


class Loader(WorkerLoader):
    """A loader whose data set decodes the images to keep before the first batch, and before workers are forked."""

    def __iter__(self):
        if isinstance(self.dataset, DatasetWrapper):
            self.dataset.keep_copies()
        return super().__iter__()


class DataManager:
    """The data set that the config names, with `train_loader_x`, `train_loader_u`, `val_loader` and `test_loader`.

    Each of the last three is None if the data set has no such items. `custom_tfm_train` and `custom_tfm_test`
    replace `build_transform`; `dataset_wrapper` replaces `DatasetWrapper`. For `draws_by_item` see
    `build_data_loader`.
    """

    def __init__(self, cfg, custom_tfm_train=None, custom_tfm_test=None, dataset_wrapper=None, draws_by_item=False):
        # only the first process reads the annotations and draws the images; the others receive the result
        self.dataset = dataset = distributed.from_first(lambda: build_dataset(cfg))
        tfm_train, tfm_test = custom_tfm_train, custom_tfm_test
        if tfm_train is None:
            tfm_train = build_transform(cfg, is_train=True, draws_by_item=draws_by_item)
        if tfm_test is None:
            tfm_test = build_transform(cfg, is_train=False, draws_by_item=draws_by_item)

        def loader(data_source, options, tfm, is_train):
            n_domain, n_ins = (options.N_DOMAIN, options.N_INS) if is_train else (0, 2)
            return build_data_loader(
                cfg,
                options.SAMPLER,
                data_source,
                options.BATCH_SIZE,
                n_domain,
                n_ins,
                tfm,
                is_train,
                dataset_wrapper,
                draws_by_item,
            )

        options_x, options_u = cfg.DATALOADER.TRAIN_X, cfg.DATALOADER.TRAIN_U
        if options_u.SAME_AS_X:
            options_u = options_x
        self.train_loader_x = loader(dataset.train_x, options_x, tfm_train, True)
        self.train_loader_u = loader(dataset.train_u, options_u, tfm_train, True) if dataset.train_u else None
        self.val_loader = loader(dataset.val, cfg.DATALOADER.TEST, tfm_test, False) if dataset.val else None
        self.test_loader = loader(dataset.test, cfg.DATALOADER.TEST, tfm_test, False) if dataset.test else None

        self._num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    num_classes = property(lambda self: self.dataset.num_classes)
    num_source_domains = property(lambda self: self._num_source_domains)
    lab2cname = property(lambda self: self.dataset.lab2cname)

    def show_dataset_summary(self, cfg):
        """Print a table of the data set's name, domains, and numbers of classes and images."""
        node = cfg.DATASET
        rows = [["Dataset", node.NAME], ["Source", node.SOURCE_DOMAINS], ["Target", node.TARGET_DOMAINS]]
        rows.append(["# classes", f"{self.num_classes:,}"])
        splits = {split: getattr(self.dataset, split) for split in ("train_x", "train_u", "val", "test")}
        rows += [[f"# {split}", f"{len(items):,}"] for split, items in splits.items() if items]
        say(tabulate([row for row in rows if row[1]]))


class DatasetWrapper(Dataset):
    """A data set that reads and transforms the images of a list of `Datum`.

    An item is a dict: label, domain, index (int), impath (str), img, and with ``DATALOADER.RETURN_IMG0`` also
    img0, the image resized to ``INPUT.SIZE`` without augmentation. With a list of transforms there are img, img2,
    img3, ... In training ``DATALOADER.K_TRANSFORMS`` = K > 1 makes each of them a list of K augmented images.

    With ``INPUT.EXIF_TRANSPOSE`` the images are photographs, read by `read_photo`: for training at `needed_side`, for
    testing with all their pixels, as the Predictor reads them. Without it they are read as Dassl reads them. Images
    that every epoch asks for are decoded once and kept, up to `COPIES` bytes.

    Raises ValueError if K > 1 and there is no transform, and OSError with the path for an unreadable image.
    """

    def __init__(self, cfg, data_source, transform=None, is_train=False):
        self.cfg = cfg
        self.data_source = data_source
        self.transform = transform
        self.is_train = is_train
        self.k_tfm = cfg.DATALOADER.K_TRANSFORMS if is_train else 1
        self.return_img0 = cfg.DATALOADER.RETURN_IMG0
        if self.k_tfm > 1 and transform is None:
            raise ValueError(f"DATALOADER.K_TRANSFORMS={self.k_tfm} needs a transform, but there is none")

        self.every_epoch = is_train or cfg.TEST.FINAL_MODEL == "best_val"
        self.side = needed_side(cfg) if is_train else 0
        self.copies, self.kept = {}, not self.every_epoch

        steps = [T.Resize(cfg.INPUT.SIZE, INTERPOLATION_MODES[cfg.INPUT.INTERPOLATION]), T.ToTensor()]
        if "normalize" in cfg.INPUT.TRANSFORMS:
            steps.append(T.Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD))
        self.to_tensor = T.Compose(steps)

    def __getstate__(self):
        return self.__dict__ | {"copies": {}}  # forked workers share the copies; each spawned worker would have its own

    def __len__(self):
        return len(self.data_source)

    @property
    def item_bytes(self):
        """The approximate size of an item's tensors in bytes."""
        images = len(self.transform) if isinstance(self.transform, (list, tuple)) else 1
        return 4 * 3 * math.prod(self.cfg.INPUT.SIZE) * (images * self.k_tfm + int(self.return_img0))

    def keep_copies(self):
        """Decode the images that are kept in memory. Called at the first use, because an evaluation may need none."""
        if not self.kept:
            paths = list(dict.fromkeys(item.impath for item in self.data_source))
            self.copies, self.kept = decoded_copies(paths, self.decode, COPIES // distributed.size()), True

    def __getitems__(self, indices):
        """Return the items of a batch, for DataLoader. The random parts of a `SeededIndex` depend only on its seed."""
        if not isinstance(indices[0], SeededIndex):  # another program's DataLoader
            return [self[index] for index in indices]
        with own_generators():
            return [self[index.seeded()] for index in indices]

    def __getitem__(self, idx):
        item = self.data_source[idx]
        output = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": idx}
        img0 = self.read(item.impath)
        if self.transform is not None:
            tfms = self.transform if isinstance(self.transform, (list, tuple)) else [self.transform]
            for i, tfm in enumerate(tfms, start=1):
                output["img" if i == 1 else f"img{i}"] = self._transform_image(tfm, img0)
        if self.return_img0:
            output["img0"] = self.to_tensor(img0)
        return output

    def read(self, path):
        return self.copies[path].copy() if path in self.copies else self.decode(path)

    def decode(self, path):
        if not self.cfg.INPUT.EXIF_TRANSPOSE:
            return read_image(path)
        photo = read_photo(path, self.side)
        resize = None if self.return_img0 else first_resize(self.transform)
        return resize(photo) if resize else photo  # takes less memory; the transform does not resize it again

    def _transform_image(self, tfm, img0):
        imgs = [tfm(img0) for _ in range(self.k_tfm)]
        return imgs[0] if self.k_tfm == 1 else imgs


@contextlib.contextmanager
def own_generators():
    """Restore the state of torch's CPU generator, Python's and NumPy's generator after the context."""
    states = torch.default_generator.get_state(), random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def needed_side(cfg):
    """Return the length in pixels to which a photograph's shorter side may be reduced for training; 0: do not reduce.

    It is at least twice INPUT.SIZE, so that the smallest random crop is not enlarged.
    """
    inp = cfg.INPUT
    if inp.NO_TRANSFORM or "random_crop" in inp.TRANSFORMS:  # which crops without resizing
        return 0
    smallest_crop = 1.0  # fraction of the area in the smallest random crop
    if "random_resized_crop" in inp.TRANSFORMS:
        smallest_crop = inp.RRCROP_SCALE[0]
    return math.ceil(max(inp.SIZE) * max(2.0, smallest_crop**-0.5)) if smallest_crop > 0 else 0


def first_resize(transform):
    """Return the `Resize` at the beginning of a fixed transform; None if there is none.

    Applied a second time, such a step does not change an image.
    """
    if not is_fixed(transform) or type(transform.transforms[0]) is not T.Resize:
        return None
    return transform.transforms[0]
