"""Trained models, loaded from their output directories."""

import os.path as osp
from types import SimpleNamespace

from dassl.data.datasets import DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, build_trainer
from trainers.shared.classes import CLASSES, read_classes

from .checks import check_inside, protect_data
from .config import setup_cfg
from .config_files import read_model_config
from .spec import RunSpec


def load_trained(spec: RunSpec, classnames: list[str] | None = None):
    """Return the trainer of a trained model, with its weights, in eval mode.

    Args:
        spec: description of an evaluation of the model.
        classnames: names of the classes, if no data set is needed; None: the data set of `spec` is built.

    Raises:
        FileNotFoundError: the directory holds no training, or lacks the checkpoint.
        ValueError: the settings or the classes do not fit the model.
    """
    check_is_training(spec.model_dir)
    cfg = setup_cfg(spec, with_data=classnames is None)
    if classnames is None:
        model_config = read_model_config(spec)
        check_inside(cfg, spec, model_config)
        with protect_data(cfg, spec, model_config):
            trainer = build_trainer(cfg)
    else:
        trainer = class_without_data(TRAINER_REGISTRY.get(cfg.TRAINER.NAME), classnames)(cfg)
    trainer.load_model(spec.model_dir, epoch=spec.load_epoch)
    trainer.set_model_mode("eval")
    return trainer


def check_is_training(folder: str) -> None:
    """Raise FileNotFoundError if a directory holds no training."""
    if not osp.exists(osp.join(folder, "config.yaml")):
        raise FileNotFoundError(f"{folder} has no config.yaml: give the --output-dir of a training")


def read_model_classes(model_dir: str) -> list[str]:
    """Return the classes of a training from its output directory."""
    path = osp.join(model_dir, CLASSES)
    if not osp.exists(path):
        raise FileNotFoundError(f'{model_dir} has no {CLASSES}: give the classes with --classes "a,b,c"')
    return read_classes(path)


def class_without_data(trainer: type, classnames: list[str]) -> type:
    """Return a subclass of the trainer that has class names instead of a data set."""

    def build_data_loader(self):
        dataset = DatasetBase(train_x=[Datum(label=k, classname=name) for k, name in enumerate(classnames)])
        self.dm = SimpleNamespace(dataset=dataset, num_classes=len(classnames), lab2cname=dataset.lab2cname)
        self.num_classes, self.lab2cname = len(classnames), dataset.lab2cname
        self.train_loader_x = self.train_loader_u = self.val_loader = self.test_loader = None

    return type(trainer.__name__, (trainer,), {"build_data_loader": build_data_loader})
