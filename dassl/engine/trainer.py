"""The training loop with Dassl's methods and hooks.

The file reads downward. TrainerBase has the models, optimizers and checkpoints, and the bare loop. SimpleTrainer builds
data, model and evaluator from the config. TrainerX and TrainerXU define an epoch.
"""

import contextlib
import datetime
import os
import os.path as osp
import time
from collections import OrderedDict

import numpy as np
import torch
from torch.utils.data import DataLoader

from dassl.data import DataManager
from dassl.evaluation import build_evaluator
from dassl.infrastructure import distributed
from dassl.infrastructure.console import say
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import (
    AverageMeter,
    MetricMeter,
    check_availability,
    count_num_param,
    load_checkpoint,
    load_pretrained_weights,
    name_newest,
    progress,
    save_checkpoint,
    tolist_if_not,
)
from dassl.utils.torchtools import check_resumable

from .checkpoint import (
    BEST,
    epochs,
    find_checkpoint,
    load_weights,
    not_finite,
    remove_temporary,
    rng_state,
    set_rng_state,
)
from .evaluation_state import EvaluationState
from .simple_net import SimpleNet


def __getattr__(name):
    """Import TensorBoard's SummaryWriter at its first use, because predict.py does not need it."""
    if name == "SummaryWriter":
        try:
            from torch.utils.tensorboard import SummaryWriter
        except AttributeError as error:  # Python would print "cannot import name" and hide the reason
            raise ImportError(
                f"SummaryWriter cannot be imported, because of an error in TensorBoard: {error}"
            ) from error
        return SummaryWriter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class TrainerBase:
    """Models by name with their optimizers and schedulers, their checkpoints, and the loop over epochs."""

    # Seconds between two temporary checkpoints, from which an interrupted run resumes. They are written at the end of
    # an epoch, and each one replaces the one before. An evaluation that adapts to the images writes its state in the
    # same interval, at the end of a batch.
    resume_interval = 10.0
    trackers = ()  # objects whose write_scalar(tag, value, step) gets every scalar, beside TensorBoard

    def __init__(self):
        self._models = OrderedDict()
        self._optims = OrderedDict()
        self._scheds = OrderedDict()
        self._writer = None
        self._bar = None
        self._temporary = None  # epoch of the checkpoint to delete when the next one is written
        self._saved_at = time.time()
        self.best_result = -np.inf
        self.train_seconds = 0.0  # time spent in epochs, including those before an interruption

    # ------------------------------------------------------------ models

    def register_model(self, name="model", model=None, optim=None, sched=None):
        """Register a model under `name`, which is also the name of the folder with its checkpoints."""
        if "_models" not in self.__dict__:
            raise AttributeError("register_model() was called before super().__init__()")
        if name in self._models:
            raise ValueError(f'a model named "{name}" is already registered')
        self._models[name] = model
        self._optims[name] = optim
        self._scheds[name] = sched

    def get_model_names(self, names=None):
        """Return `names` as a list, or all names if None. Raise ValueError for a name without a model."""
        if names is None:
            return list(self._models)
        names = tolist_if_not(names)
        unknown_names = [name for name in names if name not in self._models]
        if unknown_names:
            raise ValueError(f"no model is registered as {unknown_names}; there are {list(self._models)}")
        return names

    def set_model_mode(self, mode="train", names=None):
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    def model_inference(self, input):
        raise NotImplementedError

    # ------------------------------------------------------------ checkpoints

    def save_model(self, epoch, directory, is_best=False, val_result=None, model_name=""):
        """Write `<directory>/<name>/model.pth.tar-<epoch + 1>` (or `model_name`) for every model, each atomically.

        With several processes the first one writes, and the others wait for it.

        Raises:
            FloatingPointError: a weight is infinite or NaN; nothing is written.
        """
        for name, model in self._models.items():
            tensor = not_finite(model, self._optims[name])
            if tensor:
                problem = f'"{tensor}" of {name} is infinite or NaN at the end of epoch {epoch + 1}'
                raise FloatingPointError(f"{problem}, which is not saved: lower OPTIM.LR or train in fp32")
        models = self._models if distributed.is_first() else {}
        for name, model in models.items():
            optim, sched = self._optims[name], self._scheds[name]
            state = {
                "state_dict": model.state_dict(),
                "epoch": epoch + 1,
                "optimizer": None if optim is None else optim.state_dict(),
                "scheduler": None if sched is None else sched.state_dict(),
                "val_result": val_result,
                "best_result": float(self.best_result),
                "train_seconds": self.train_seconds,
                "temporary": epoch + 1 == self._temporary,
                "rng": rng_state(),
                "extra_state": self.get_extra_state(),
            }
            save_checkpoint(state, osp.join(directory, name), is_best=is_best, model_name=model_name)
        distributed.barrier()

    def get_extra_state(self):
        """Return the further state that a resumed training needs, a dict of tensors and plain types. A hook."""
        return {}

    def set_extra_state(self, state):
        """Restore the result of `get_extra_state`, or `{}` from a checkpoint without it. A hook."""

    def adapt_checkpoint(self, checkpoint, path, resume=False):
        """Adapt the weights of a checkpoint to this run and return the checkpoint. A hook.

        Args:
            checkpoint (dict): checkpoint of one model.
            path (str): its file.
            resume (bool): whether a training is resumed from it, with its optimizer.

        Raises:
            ValueError: the weights do not fit this run.
        """
        return checkpoint

    def resume_model_if_exist(self, directory):
        """Resume from the newest epoch for which `directory` has a checkpoint of every model.

        Weights, optimizers, schedulers and random generators are restored. The resumed run is bit-identical to an
        uninterrupted one.

        Returns:
            int: number of finished epochs; 0 if there is no checkpoint.
        """
        names = self.get_model_names()
        saved_epochs = [set(epochs(osp.join(directory, name))) for name in names]
        common_epochs = set.intersection(*saved_epochs) if saved_epochs else set()
        if not common_epochs:
            say("No checkpoint found, train from scratch")
            return 0
        epoch = max(common_epochs)
        say(f'Found checkpoint in "{directory}". Will resume training after epoch {epoch}')
        for name in names:
            path = osp.join(directory, name, f"model.pth.tar-{epoch}")
            checkpoint = load_checkpoint(path)
            check_resumable(checkpoint, path)
            checkpoint = self.adapt_checkpoint(checkpoint, path, resume=True)
            load_weights(self._models[name], checkpoint, path)
            try:
                self._restore(name, checkpoint)
            except Exception as error:  # a dozen types, depending on the content of the file
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                advice = "take another --output-dir, or remove it"
                raise ValueError(f'training cannot go on from "{path}" ({reason}): {advice}') from error
        self._temporary = epoch if checkpoint.get("temporary") else None
        return epoch

    def _restore(self, name, checkpoint):
        """Restore everything in a checkpoint except the weights."""
        for part, key in ((self._optims[name], "optimizer"), (self._scheds[name], "scheduler")):
            if part is not None and checkpoint.get(key) is not None:
                part.load_state_dict(checkpoint[key])
        self.best_result = float(checkpoint.get("best_result", -np.inf))
        self.train_seconds = float(checkpoint.get("train_seconds", 0.0))
        if "rng" in checkpoint:
            set_rng_state(checkpoint["rng"])
        self.set_extra_state(checkpoint.get("extra_state", {}))

    def load_model(self, directory, epoch=None):
        """Load the weights of every model from `directory`.

        Args:
            directory (str): directory of a training.
            epoch (int): epoch of the checkpoint; None: the best on val if it exists, else the newest.

        Raises:
            FileNotFoundError: there is no such checkpoint. The message lists those that exist.
            ValueError: its tensors do not fit the model.
        """
        if not directory:
            say("load_model() is skipped: no directory given")
            return
        for name in self.get_model_names():
            path = find_checkpoint(directory, name, epoch)
            checkpoint = self.adapt_checkpoint(load_checkpoint(path), path)
            load_weights(self._models[name], checkpoint, path)
            saved_epoch = checkpoint.get("epoch")
            if type(saved_epoch) is not int:
                saved_epoch = "unknown"
            say(f'Loaded {name} from "{path}" (epoch = {saved_epoch})')

    # ------------------------------------------------------------ TensorBoard

    def init_writer(self, log_dir):
        if self._writer is None and distributed.is_first():
            SummaryWriter = __getattr__("SummaryWriter")
            say(f"TensorBoard files go to {log_dir}")
            self._writer = SummaryWriter(log_dir=log_dir)

    def close_writer(self):
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def write_scalar(self, tag, scalar_value, global_step=None):
        if self._writer is not None:  # an evaluation has no writer
            self._writer.add_scalar(tag, scalar_value, global_step)
        for tracker in self.trackers:
            tracker.write_scalar(tag, scalar_value, global_step)

    # ------------------------------------------------------------ the loop

    def train(self, start_epoch, max_epoch):
        self.start_epoch = start_epoch
        self.max_epoch = max_epoch
        try:
            start = self.clock()
            self.before_train()  # may take long, for example when a method fills a cache
            self._saved_at = time.time()
            if self.start_epoch == 0:
                self.train_seconds += self.clock() - start
            for self.epoch in range(self.start_epoch, self.max_epoch):  # noqa: B020
                start = self.clock()
                self.before_epoch()
                self.run_epoch()
                self.train_seconds += self.clock() - start
                self.after_epoch()
            self._close_bar()
            self.after_train()
        finally:
            self._close_bar()
            self.close_writer()

    def clock(self):
        """Return the time of `train_seconds`. A hook."""
        return time.time()

    def before_train(self): ...

    def after_train(self): ...

    def before_epoch(self): ...

    def after_epoch(self): ...

    def run_epoch(self):
        raise NotImplementedError

    def test(self):
        raise NotImplementedError

    def parse_batch_train(self, batch):
        raise NotImplementedError

    def parse_batch_test(self, batch):
        raise NotImplementedError

    def forward_backward(self, batch):
        raise NotImplementedError

    def _advance_bar(self):
        if self._bar is None:
            total = (self.max_epoch - self.epoch) * self.num_batches
            self._bar = progress(total=total, desc="training", unit="batch", leave=False)
        self._bar.update()

    def _close_bar(self):
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    # ------------------------------------------------------------ one update

    def detect_anomaly(self, loss):
        """Raise FloatingPointError if the loss is infinite or NaN."""
        if not torch.isfinite(loss).all():
            position = f"epoch {self.epoch + 1}, batch {self.batch_idx + 1}"
            raise FloatingPointError(f"the loss is infinite or NaN in {position}: lower OPTIM.LR or train in fp32")

    def model_zero_grad(self, names=None):
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].zero_grad()

    def model_backward(self, loss):
        self.detect_anomaly(loss)
        loss.backward()

    def model_update(self, names=None):
        for name in self.get_model_names(names):
            if self._optims[name] is not None:
                self._optims[name].step()

    def model_backward_and_update(self, loss, names=None):
        self.model_zero_grad(names)
        self.model_backward(loss)
        self.model_update(names)

    def update_lr(self, names=None):
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()


class SimpleTrainer(TrainerBase):
    """A trainer that builds data, model and evaluator from the config, trains, evaluates and writes checkpoints.

    Dassl's plugins use these attributes: cfg, device, dm, train_loader_x, train_loader_u, val_loader, test_loader,
    num_classes, num_source_domains, lab2cname, evaluator, epoch, max_epoch, batch_idx, num_batches, output_dir.
    `results` has the figures of the last `test()`.
    """

    draws_by_item = False  # how random transforms draw, see `build_data_loader`; False: like Dassl
    # whether the test images are used for val if there is no val split, even to select the best model; True as in Dassl
    test_replaces_val = True
    # what the model adapts to while it is evaluated, in words for the user; "" for most methods. Such an evaluation can
    # be resumed, and several processes take its batches in turn
    adaptation = ""

    def __init__(self, cfg):
        super().__init__()
        self.check_cfg(cfg)
        self.device = torch.device("cuda" if torch.cuda.is_available() and cfg.USE_CUDA else "cpu")
        self.start_epoch = self.epoch = 0
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.cfg = cfg
        self.results = {}
        self.build_data_loader()
        set_rng_state(
            distributed.from_first(rng_state)
        )  # all processes start from the same weights, without a seed too
        self.build_model()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)

    def check_cfg(self, cfg):
        """Raise an error if the config does not fit the trainer. A hook."""

    def build_data_loader(self):
        self.dm = dm = DataManager(self.cfg, draws_by_item=self.draws_by_item)
        self.train_loader_x, self.train_loader_u = dm.train_loader_x, dm.train_loader_u
        self.val_loader, self.test_loader = dm.val_loader, dm.test_loader
        self.num_classes, self.num_source_domains = dm.num_classes, dm.num_source_domains
        self.lab2cname = dm.lab2cname

    def build_model(self):
        """Build and register the model, by default a `SimpleNet`. A hook."""
        cfg = self.cfg
        self.model = SimpleNet(cfg, cfg.MODEL, self.num_classes)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model, cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        say(f"# params: {count_num_param(self.model):,}")
        self.optim = build_optimizer(self.model, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("model", self.model, self.optim, self.sched)

    def get_adaptation_state(self):
        """Return the state of the model that the images of an evaluation have changed, a dict of tensors. A hook."""
        return {}

    def set_adaptation_state(self, state):
        """Restore the result of `get_adaptation_state`. A hook."""

    def train(self):
        super().train(self.start_epoch, self.max_epoch)

    def before_train(self):
        if self.max_epoch < 1:
            raise ValueError(f"OPTIM.MAX_EPOCH is {self.max_epoch}: nothing to train; --eval-only evaluates")
        distributed.check_batch_size(self.cfg.DATALOADER.TRAIN_X.BATCH_SIZE)
        for folder in (osp.join(self.output_dir, name) for name in (*self._models, "tensorboard", "wandb")):
            if osp.islink(folder):  # the directory may be untrusted
                raise ValueError(f"{folder} is a link, through which nothing is written: put the folder itself there")
        # checked before RESUME: a run that was started with RESUME may have been interrupted itself
        self.start_epoch = self.resume_model_if_exist(self.output_dir)
        names = self._models if distributed.is_first() else ()
        for name in names:
            remove_temporary(osp.join(self.output_dir, name), keep=self.start_epoch)
            if self.start_epoch:  # the run may have been killed before it wrote the name of the newest checkpoint
                name_newest(osp.join(self.output_dir, name), f"model.pth.tar-{self.start_epoch}")
        if self.cfg.RESUME and not self.start_epoch:
            self.start_epoch = self.resume_model_if_exist(self.cfg.RESUME)
            # the best and the temporary checkpoint of that directory do not belong to this run
            self.best_result, self._temporary = -np.inf, None
        if self.cfg.RESUME and not self.start_epoch:
            problem = f'"{self.cfg.RESUME}" has no checkpoints of {self.get_model_names()}'
            raise FileNotFoundError(f"nothing to resume: {problem}; drop --resume to train from scratch")
        self.epoch = max(self.start_epoch - 1, 0)  # the epoch of the test if no epoch is left to train
        if "tensorboard" in self.cfg.TRAIN.get("TRACKER", ["tensorboard"]):
            self.init_writer(osp.join(self.output_dir, "tensorboard"))
        self.time_start = time.time()

    def after_epoch(self):
        epoch, freq = self.epoch + 1, self.cfg.TRAIN.CHECKPOINT_FREQ
        if self.cfg.TEST.FINAL_MODEL == "best_val" and not self.cfg.TEST.NO_TEST:
            result = self.test(split="val")
            if result > self.best_result:
                self.best_result = result
                self.save_model(self.epoch, self.output_dir, val_result=result, model_name=BEST)

        is_permanent = epoch == self.max_epoch or (freq > 0 and epoch % freq == 0)
        if is_permanent or distributed.from_first(lambda: time.time() - self._saved_at >= self.resume_interval):
            previous_epoch, self._temporary = self._temporary, None if is_permanent else epoch
            self.save_model(self.epoch, self.output_dir)
            self._saved_at = time.time()
            if previous_epoch is not None and distributed.is_first():
                for name in self._models:
                    with contextlib.suppress(FileNotFoundError):
                        os.remove(osp.join(self.output_dir, name, f"model.pth.tar-{previous_epoch}"))

    def after_train(self):
        say("Finish training")
        if self.test_loader is None and self.cfg.TEST.SPLIT == "test":
            say("There are no test images: the accuracy is not measured")
        elif not self.cfg.TEST.NO_TEST:
            if self.cfg.TEST.FINAL_MODEL == "best_val":
                say("Deploy the model with the best val performance")
                self.load_model(self.output_dir)
            else:
                say("Deploy the last-epoch model")
            self.test()
        say(f"Elapsed: {datetime.timedelta(seconds=round(time.time() - self.time_start))}")

    @torch.no_grad()
    def test(self, split=None):
        """Evaluate on a split and return the accuracy in percent.

        Args:
            split (str): "val" or "test"; None: `cfg.TEST.SPLIT`.
        """
        self.set_model_mode("eval")
        self.evaluator.reset()
        split = split or self.cfg.TEST.SPLIT
        check_availability(split, ["val", "test"])
        if split == "val" and self.val_loader is None and self.test_replaces_val:
            say(f"{self.cfg.DATASET.NAME} has no val split: the test set takes its place")
            split = "test"
        loader = self.val_loader if split == "val" else self.test_loader
        if loader is None and split == "val":
            advice = "set TEST.FINAL_MODEL to last_step and TEST.SPLIT to test"
            raise ValueError(f"{self.cfg.DATASET.NAME} has no val split: {advice}")
        if loader is None:
            raise ValueError(f"{self.cfg.DATASET.NAME} has no test images: there is nothing to evaluate")
        say(f"Evaluate on the *{split}* set")
        adapts = bool(self.adaptation)
        resumes = adapts and hasattr(self.evaluator, "state_dict")
        state = EvaluationState(self, loader) if resumes else None
        images = state.restore() if state else 0
        total = len(loader.dataset) if isinstance(loader, DataLoader) else None
        with progress(desc="evaluating", initial=images, total=total, unit="image", leave=False) as bar:
            if adapts:
                batches = distributed.parts(loader, images, whole_batches=True)
            else:
                batches = self.test_batches(loader)
            for batch, part in batches:
                input, label = self.parse_batch_test(batch)
                output, label = distributed.gather(part, self.model_inference(input), label)
                self.evaluator.process(output, label)
                images += len(label)
                bar.update(len(label))
                if state:
                    state.save_if_due(images)
        results = self.evaluator.evaluate()
        if state:
            state.remove()
        self.results = {"split": split, **results}
        for key, value in results.items():
            self.write_scalar(f"{split}/{key}", value, self.epoch)
        return next(iter(results.values()))  # the evaluator lists the accuracy first

    def test_batches(self, loader):
        """Yield (this process's part of the batch, its `Part`) for each batch of an evaluation. A hook."""
        return distributed.parts(loader)

    def model_inference(self, input):
        return self.model(input)

    def parse_batch_test(self, batch):
        return batch["img"].to(self.device, non_blocking=True), batch["label"].to(self.device, non_blocking=True)

    def get_current_lr(self, names=None):
        return self._optims[self.get_model_names(names)[0]].param_groups[0]["lr"]

    def _run_batches(self, batches):
        """Run one epoch: call `forward_backward(*batch)` for every batch and print Dassl's log lines."""
        self.set_model_mode("train")
        losses, batch_time, data_time = MetricMeter(), AverageMeter(), AverageMeter()
        end = time.time()
        for self.batch_idx, batch in enumerate(batches):
            data_time.update(time.time() - end)
            losses.update(self.forward_backward(*batch))
            batch_time.update(time.time() - end)
            self._advance_bar()

            freq = self.cfg.TRAIN.PRINT_FREQ
            if freq > 0 and ((self.batch_idx + 1) % freq == 0 or self.num_batches < freq):
                remaining_batches = (self.max_epoch - self.epoch) * self.num_batches - self.batch_idx - 1
                eta = datetime.timedelta(seconds=int(batch_time.avg * remaining_batches))
                say(
                    f"epoch [{self.epoch + 1}/{self.max_epoch}] batch [{self.batch_idx + 1}/{self.num_batches}] "
                    f"time {batch_time.val:.3f} ({batch_time.avg:.3f}) data {data_time.val:.3f} ({data_time.avg:.3f}) "
                    f"{losses} lr {self.get_current_lr():.4e} eta {eta}"
                )
            step = self.epoch * self.num_batches + self.batch_idx
            for name, meter in losses.meters.items():
                self.write_scalar(f"train/{name}", meter.avg, step)
            self.write_scalar("train/lr", self.get_current_lr(), step)
            end = time.time()


class TrainerX(SimpleTrainer):
    """A trainer on labelled data. An epoch is one pass over train_loader_x."""

    def run_epoch(self):
        self.num_batches = len(self.train_loader_x)
        self._run_batches(self._own_parts(self.train_loader_x))

    def _own_parts(self, loader):
        for batch, part in distributed.parts(loader):
            self.batch_fraction = part.fraction  # fraction of the batch's images in this process
            yield (batch,)

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device), batch["domain"].to(self.device)


class TrainerXU(SimpleTrainer):
    """A trainer on labelled and unlabelled data, with `forward_backward(batch_x, batch_u)`.

    `cfg.TRAIN.COUNT_ITER` names the loader that sets the length of an epoch: train_x, train_u or smaller_one. A loader
    that ends early starts again.
    """

    def run_epoch(self):
        if self.train_loader_u is None:
            raise ValueError(f"{self.cfg.DATASET.NAME} has no unlabelled images (train_u), which this trainer needs")
        lengths = {"train_x": len(self.train_loader_x), "train_u": len(self.train_loader_u)}
        lengths["smaller_one"] = min(lengths.values())
        if self.cfg.TRAIN.COUNT_ITER not in lengths:
            raise ValueError(f'TRAIN.COUNT_ITER is "{self.cfg.TRAIN.COUNT_ITER}", but must be one of {list(lengths)}')
        self.num_batches = lengths[self.cfg.TRAIN.COUNT_ITER]
        self._run_batches(self._pairs())

    def _pairs(self):
        """Yield the batches of an epoch, (labelled, unlabelled). A loader that ends early starts again."""
        loaders = [self.train_loader_x, self.train_loader_u]
        iterators = [iter(loader) for loader in loaders]  # both start before the first batch is drawn, as in Dassl
        for _ in range(self.num_batches):
            pair = []
            for i, loader in enumerate(loaders):
                batch = next(iterators[i], None)
                if batch is None:
                    iterators[i] = iter(loader)
                    batch = next(iterators[i])
                pair.append(batch)
            yield tuple(pair)

    def parse_batch_train(self, batch_x, batch_u):
        """Return (images, labels, unlabelled images), on the trainer's device."""
        input_x, label_x = batch_x["img"].to(self.device), batch_x["label"].to(self.device)
        return input_x, label_x, batch_u["img"].to(self.device)
