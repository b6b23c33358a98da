"""A stand-in for the original Dassl.pytorch: its public names, signatures and order of calls as its authors left them.

    python stub_dassl.py FOLDER TRAINER...     FOLDER holds a copy of trainers/ and assets/, as a CoOp clone would

Trains each trainer for one epoch of two batches, saves and loads it, tests it, and prints a line of JSON.
Nothing of this repository's own dassl/ is imported.
"""

import importlib
import json
import pkgutil
import sys
from collections import OrderedDict
from types import ModuleType, SimpleNamespace

import torch
from yacs.config import CfgNode as CN


class Registry:
    def __init__(self, name):
        self._name, self._obj_map = name, {}

    def register(self, obj=None, force=False):
        def keep(wrapped):
            self._obj_map[wrapped.__name__] = wrapped
            return wrapped

        return keep if obj is None else keep(obj)

    def get(self, name):
        return self._obj_map[name]

    def registered_names(self):
        return list(self._obj_map)


class DatasetWrapper(torch.utils.data.Dataset):
    def __init__(self, cfg, data_source, transform=None, is_train=False):
        self.data_source, self.transform = data_source, transform

    def __len__(self):
        return len(self.data_source)

    def __getitem__(self, k):
        item = self.data_source[k]
        return {"img": self.transform(item.image), "label": item.label, "domain": 0, "impath": "", "index": k}


def build_data_loader(cfg, sampler_type="SequentialSampler", data_source=None, batch_size=64, n_domain=0, n_ins=2,
                      tfm=None, is_train=True, dataset_wrapper=None):  # fmt: skip
    wrapped = DatasetWrapper(cfg, data_source, tfm, is_train)
    return torch.utils.data.DataLoader(wrapped, batch_size, drop_last=is_train)


def build_transform(cfg, is_train=True, choices=None):
    return lambda image: image


class DataManager:
    def __init__(self, cfg):
        torch.manual_seed(0)
        items = [SimpleNamespace(image=torch.randn(3, 32, 32), label=k % 3) for k in range(8)]
        wrapped = DatasetWrapper(cfg, items, build_transform(cfg))
        names = ["red circle", "dark_blue star", "x"]
        self.dataset = SimpleNamespace(train_x=items, val=items[:4], test=items, classnames=names)
        self.lab2cname, self.num_classes, self.num_source_domains = dict(enumerate(names)), 3, 1
        self.train_loader_x = torch.utils.data.DataLoader(wrapped, 4, drop_last=True)
        self.train_loader_u = self.val_loader = None
        self.test_loader = torch.utils.data.DataLoader(wrapped, 4)


class TrainerBase:
    def __init__(self):
        self._models, self._optims, self._scheds, self._writer = OrderedDict(), OrderedDict(), OrderedDict(), None

    def register_model(self, name="model", model=None, optim=None, sched=None):
        self._models[name], self._optims[name], self._scheds[name] = model, optim, sched

    def get_model_names(self, names=None):
        return list(self._models) if names is None else names if isinstance(names, list) else [names]

    def save_model(self, epoch, directory, is_best=False, val_result=None, model_name=""):
        for name, model in self._models.items():
            print(f"{val_result:.2f}", file=sys.stderr)
            SAVED[name] = {k: v.clone() for k, v in model.state_dict().items()}

    def resume_model_if_exist(self, directory):
        return 0

    def load_model(self, directory, epoch=None):
        for name in self.get_model_names():
            self._models[name].load_state_dict(SAVED[name], strict=False)

    def set_model_mode(self, mode="train", names=None):
        for name in self.get_model_names(names):
            self._models[name].train(mode == "train")

    def update_lr(self, names=None):
        for name in self.get_model_names(names):
            if self._scheds[name] is not None:
                self._scheds[name].step()

    def write_scalar(self, tag, scalar_value, global_step=None):
        pass

    def train(self, start_epoch, max_epoch):
        self.start_epoch, self.max_epoch = start_epoch, max_epoch
        self.before_train()
        for self.epoch in range(self.start_epoch, self.max_epoch):  # noqa: B020
            self.before_epoch()
            self.run_epoch()
            self.after_epoch()
        self.after_train()

    def before_epoch(self):
        pass


class SimpleTrainer(TrainerBase):
    def __init__(self, cfg):
        super().__init__()
        self.check_cfg(cfg)
        self.device = torch.device("cuda" if torch.cuda.is_available() and cfg.USE_CUDA else "cpu")
        self.start_epoch = self.epoch = 0
        self.max_epoch, self.output_dir, self.cfg = cfg.OPTIM.MAX_EPOCH, cfg.OUTPUT_DIR, cfg
        self.dm = dm = DataManager(cfg)
        self.train_loader_x, self.val_loader, self.test_loader = dm.train_loader_x, dm.val_loader, dm.test_loader
        self.num_classes, self.lab2cname = dm.num_classes, dm.lab2cname
        self.build_model()

    def check_cfg(self, cfg):
        pass

    def train(self):
        super().train(self.start_epoch, self.max_epoch)

    def before_train(self):
        self.start_epoch = self.resume_model_if_exist(self.output_dir)

    def after_epoch(self):
        self.save_model(self.epoch, self.output_dir)

    def after_train(self):
        self.test()

    @torch.no_grad()
    def test(self, split=None):
        self.set_model_mode("eval")
        correct = 0
        for batch in self.test_loader:
            image, label = self.parse_batch_test(batch)
            correct += int((self.model_inference(image).argmax(1) == label).sum())
        self.accuracy = 100 * correct / len(self.test_loader.dataset)
        return self.accuracy

    def model_inference(self, input):
        return self.model(input)

    def parse_batch_test(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device)

    def get_current_lr(self, names=None):
        return self._optims[self.get_model_names(names)[0]].param_groups[0]["lr"]


class TrainerX(SimpleTrainer):
    def run_epoch(self):
        self.set_model_mode("train")
        self.num_batches = len(self.train_loader_x)
        for self.batch_idx, batch in enumerate(self.train_loader_x):  # noqa: B020
            LOSSES.append(self.forward_backward(batch)["loss"])

    def parse_batch_train(self, batch):
        return batch["img"].to(self.device), batch["label"].to(self.device), batch["domain"].to(self.device)


def compute_accuracy(output, target, topk=(1,)):
    return [(output.argmax(1) == target).float().sum().reshape(1) * 100 / len(target)]


def build_optimizer(model, optim_cfg, param_groups=None):
    return torch.optim.SGD(model.parameters(), optim_cfg.LR)


def build_lr_scheduler(optimizer, optim_cfg):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, optim_cfg.MAX_EPOCH)


def check_availability(requested, available):
    if requested not in available:
        raise ValueError(requested)


def get_most_similar_str_to_a_from_b(a, b):
    return b[0]


def count_num_param(model=None, params=None):
    return sum(p.numel() for p in model.parameters())


def load_checkpoint(fpath):
    raise NotImplementedError


def load_pretrained_weights(model, weight_path):
    raise NotImplementedError


def read_json(fpath):
    raise NotImplementedError


TRAINER_REGISTRY, SAVED, LOSSES, SKIPPED = Registry("TRAINER"), {}, [], []
MODULES = {
    "dassl.data": [DatasetWrapper, DataManager],
    "dassl.data.data_manager": [DatasetWrapper, build_data_loader],
    "dassl.data.transforms": [build_transform],
    "dassl.engine": [TrainerX],
    "dassl.metrics": [compute_accuracy],
    "dassl.optim": [build_optimizer, build_lr_scheduler],
    "dassl.utils": [
        *(check_availability, get_most_similar_str_to_a_from_b, count_num_param, load_checkpoint),
        *(load_pretrained_weights, read_json),
    ],
}


def main(folder, *trainer_names):
    # an editable install of this repository would give the modules that the stand-in lacks
    sys.meta_path[:] = [finder for finder in sys.meta_path if "__editable__" not in str(finder)]
    for name, members in {"dassl": [], **MODULES}.items():
        module = sys.modules[name] = ModuleType(name)
        module.__path__ = []
        for member in members:
            setattr(module, member.__name__, member)
    sys.modules["dassl.engine"].TRAINER_REGISTRY = TRAINER_REGISTRY
    sys.path.insert(0, folder)

    import trainers

    for module in pkgutil.iter_modules(trainers.__path__):
        try:
            importlib.import_module(f"trainers.{module.name}")
        except ImportError:  # it extends our CoOp, and the clone has kept its own
            SKIPPED.append(module.name)
    for trainer_name in trainer_names:
        run(trainer_name)
    real = sorted(name for name in sys.modules if name.startswith("dassl") and hasattr(sys.modules[name], "__file__"))
    assert not real, real


def run(trainer_name):
    from trainers.base import extend_cfg

    SAVED.clear()
    LOSSES.clear()
    cfg = CN({"TRAINER": {"NAME": trainer_name}, "USE_CUDA": False, "OUTPUT_DIR": "", "DATASET": {"NAME": "Shapes"}})
    cfg.SEED, cfg.TRAIN = 1, CN({"CHECKPOINT_FREQ": 0, "PRINT_FREQ": 10, "COUNT_ITER": "train_x"})
    cfg.INPUT, cfg.MODEL = CN({"SIZE": (32, 32)}), CN({"BACKBONE": {"NAME": "tiny"}, "INIT_WEIGHTS": ""})
    cfg.OPTIM = CN({"LR": 0.1, "MAX_EPOCH": 1, "WARMUP_EPOCH": -1, "STEPSIZE": (-1,)})
    cfg.DATALOADER = CN({"TEST": {"BATCH_SIZE": 4}, "NUM_WORKERS": 0})
    extend_cfg(cfg, trainer_name)
    trainer = TRAINER_REGISTRY.get(trainer_name)(cfg)
    trainer.train()
    before = trainer.accuracy
    trainer.load_model("there", epoch=1)
    features, labels = trainer.features(trainer.dm.dataset.train_x)
    report = {
        "losses": LOSSES,
        "accuracy": before,
        "again": trainer.test(),
        "skipped": SKIPPED,
        "features": [*features.shape, *labels.shape],
    }
    print(json.dumps(report | {"saved": {name: len(state) for name, state in SAVED.items()}}))


if __name__ == "__main__":
    main(*sys.argv[1:])
