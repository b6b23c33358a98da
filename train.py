"""Trains or evaluates one method on one data set; CoOp's command line.

    python train.py                                            OrthCR on the embedded Shapes
    python train.py --trainer OrthCR --root DATA --seed 1 --dataset-config-file configs/datasets/caltech101.yaml \\
        --config-file configs/trainers/OrthCR/vit_b16.yaml --output-dir OUT \\
        DATASET.NUM_SHOTS 16 DATASET.SUBSAMPLE_CLASSES base
    python train.py --eval-only --model-dir OUT --load-epoch 20 --trainer ... DATASET.SUBSAMPLE_CLASSES new
    python train.py --trainer OrthCR --images photos/ --output-dir OUT       a folder of images for each class

Config precedence, later over earlier: defaults, --dataset-config-file, --config-file, the flags, KEY VALUE pairs.
An interrupted run goes on where it was when the same command is given again.
"""

import argparse
import contextlib
import glob
import importlib
import os
import os.path as osp
import pkgutil
import platform
import resource
import subprocess
import sys
import time
import traceback

import numpy as np
import torch
import torchvision
import yaml
from yacs.config import CfgNode

import dassl
import datasets
import trainers
from dassl.config import clean_cfg, flatten, get_cfg_default, merge_config, read_config
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import (
    check_availability,
    collect_env_info,
    count_num_param,
    locked,
    mkdir_if_missing,
    read_json,
    set_random_seed,
    setup_logger,
    write_json,
)
from trainers.base import extend_cfg

HERE = osp.dirname(osp.abspath(__file__))
CLASSES = "classes.json"  # beside config.yaml: the class names, in order of their labels
USER_ERRORS = (ValueError, OSError, FloatingPointError)  # told in one line; anything else is a bug and shows its trace
# Settings that may differ between a run and its continuation: they do not change what is trained
MAY_DIFFER = (
    "OUTPUT_DIR",
    "RESUME",
    "VERBOSE",
    "USE_CUDA",
    "DATASET.ROOT",
    "DATALOADER.NUM_WORKERS",
    "TRAIN.",
    "TEST.",
)

COOPS_OWN = {
    "COOP": {"N_CTX": 16, "CSC": False, "CTX_INIT": "", "PREC": "fp16", "CLASS_TOKEN_POSITION": "end"},
    "COCOOP": {"N_CTX": 16, "CTX_INIT": "", "PREC": "fp16"},
}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="folder of the data sets, default: data; embedded ones are drawn into it")
    parser.add_argument("--images", help="own images: a folder with one folder a class, or a CSV or JSON: path, label")
    parser.add_argument("--skip-unreadable", action="store_true", help="with --images: leave out what cannot be read")
    parser.add_argument("--template", help='prompt of the classes, e.g. "a photo of a {}, a type of pet."')
    parser.add_argument("--output-dir", default="", help="default: output/<trainer>/<data set>/<classes>/...")
    parser.add_argument("--resume", default="", help="directory with checkpoints of another run to go on from")
    parser.add_argument("--seed", type=int, help="default: 1; negative: not seeded")
    parser.add_argument("--source-domains", nargs="+", help="source domains for DA/DG")
    parser.add_argument("--target-domains", nargs="+", help="target domains for DA/DG")
    parser.add_argument("--transforms", nargs="+", help="data augmentation, INPUT.TRANSFORMS")
    parser.add_argument("--config-file", default="", help="config of the method; default: its tiny.yaml")
    parser.add_argument("--dataset-config-file", default="", help="config of the data set; default: shapes.yaml")
    parser.add_argument("--trainer", default="", help="name of the trainer; default: OrthCR")
    parser.add_argument("--backbone", default="", help="MODEL.BACKBONE.NAME: tiny, an OpenAI name, or a path")
    parser.add_argument("--head", default="", help="MODEL.HEAD.NAME")
    parser.add_argument("--eval-only", action="store_true", help="evaluate the model of --model-dir")
    parser.add_argument("--model-dir", default="", help="output directory of the training run, for --eval-only")
    parser.add_argument("--load-epoch", type=int, help="its epoch; default: the best on val if kept, else the last")
    parser.add_argument("--no-train", action="store_true", help="build everything and stop")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config KEY VALUE pairs, e.g. OPTIM.LR 0.001")
    return parser.parse_args(argv)


# ------------------------------------------------------------------ config


def discover(package) -> None:
    """Imports every module of `trainers` or `datasets`, so that it registers itself; one that fails is named."""
    for module in pkgutil.iter_modules(package.__path__):
        try:
            importlib.import_module(f"{package.__name__}.{module.name}")
        except Exception as error:  # somebody's file with a missing dependency must not stop all the others
            print(f"{package.__name__}/{module.name}.py is skipped: {type(error).__name__}: {error}", file=sys.stderr)


def default_cfg() -> CfgNode:
    """Dassl's defaults, those of this file and those of every registered method."""
    cfg = get_cfg_default()
    cfg.DATASET.SUBSAMPLE_CLASSES = "all"  # all, base or new
    cfg.DATASET.ROOT, cfg.SEED = "data", 1
    cfg.DATASET.IMAGES = ""  # of the data set Images: folder, CSV or JSON
    cfg.DATASET.SKIP_UNREADABLE = False  # its images that cannot be read are left out, not refused
    cfg.DATASET.ALL_TEST = False  # its images without a split are all for test
    cfg.DATASET.CLASSES = []  # then: the classes to tell apart, if those of the images are among them
    extend_cfg(cfg)
    return cfg


def setup_cfg(args: argparse.Namespace) -> CfgNode:
    """The merged, frozen config.

    Raises:
        FileNotFoundError, ValueError: a config file that is not there; an unknown key or name, with the nearest.
    """
    check_flags(args)
    discover(trainers)
    discover(datasets)
    cfg = default_cfg()
    by_default = {"USE_CUDA": None, "OUTPUT_DIR": "", "RESUME": ""}  # None, "": told apart from what is asked for
    cfg.update(by_default)

    trained = osp.join(args.model_dir, "config.yaml")
    if (
        args.eval_only
        and args.model_dir
        and osp.exists(trained)
        and not (args.config_file and args.dataset_config_file)
    ):
        files = [trained, args.dataset_config_file, args.config_file]  # what is not given is as in training
        args.trainer = args.trainer or read_config(trained)["TRAINER.NAME"]
    else:
        args.trainer = args.trainer or "OrthCR"
        own = osp.join(HERE, "configs", "trainers", args.trainer, "tiny.yaml")
        files = [
            args.dataset_config_file or osp.join(HERE, "configs", "datasets", "shapes.yaml"),
            args.config_file or (own if osp.exists(own) else ""),
        ]
    check_availability(args.trainer, TRAINER_REGISTRY.registered_names())
    # a trainer of somebody else declares no defaults: what its config says under TRAINER is taken as it is
    foreign = () if hasattr(TRAINER_REGISTRY.get(args.trainer), "defaults") else ("TRAINER",)
    if foreign:  # many of them use the keys that CoOp's train.py declares
        for node, defaults in COOPS_OWN.items():
            cfg.TRAINER.setdefault(node, CfgNode(defaults))

    for file in filter(None, files):
        merge_config(cfg, file, allow_new=foreign)
        if file == trained:  # where and on what the training ran is its own affair
            cfg.update(by_default)
    given = {
        "DATASET.ROOT": args.root,
        "RESUME": args.resume or None,
        "SEED": args.seed,
        "DATASET.SOURCE_DOMAINS": args.source_domains,
        "DATASET.TARGET_DOMAINS": args.target_domains,
        "INPUT.TRANSFORMS": args.transforms,
        "TRAINER.NAME": args.trainer,
        "MODEL.BACKBONE.NAME": args.backbone or None,
        "MODEL.HEAD.NAME": args.head or None,
        **own_images(args, cfg),
    }
    merge_config(cfg, [word for item in given.items() if item[1] is not None for word in item])
    merge_config(cfg, args.opts, allow_new=foreign)

    if cfg.USE_CUDA and not torch.cuda.is_available():
        raise ValueError(
            "USE_CUDA is set to True, but PyTorch sees no CUDA device here: leave it out to run on the CPU"
        )
    cfg.USE_CUDA = torch.cuda.is_available() if cfg.USE_CUDA is None else cfg.USE_CUDA
    if cfg.MODEL.BACKBONE.NAME != "tiny" and osp.isfile(cfg.MODEL.BACKBONE.NAME):  # found from any folder later
        cfg.MODEL.BACKBONE.NAME = osp.abspath(cfg.MODEL.BACKBONE.NAME)
    cfg.OUTPUT_DIR = args.output_dir or cfg.OUTPUT_DIR or default_output(cfg, args)
    if not foreign:
        clean_cfg(cfg, args.trainer)  # the other methods' settings play no part
    cfg.freeze()
    return cfg


def check_flags(args: argparse.Namespace) -> None:
    """Raises ValueError for flags that contradict each other."""
    late = next((word for word in args.opts[::2] if word.startswith("--")), None)
    if late:
        raise ValueError(f"{late} stands behind a KEY VALUE pair: give all flags before the first KEY")
    if args.images == "":
        raise ValueError("--images is empty: give a folder, a CSV or a JSON")
    if args.skip_unreadable and not args.images:
        raise ValueError("--skip-unreadable goes with --images")
    if args.images and args.dataset_config_file:
        raise ValueError("--images is a data set of its own: give it or --dataset-config-file, not both")


def own_images(args: argparse.Namespace, cfg: CfgNode) -> dict:
    """What --images, --skip-unreadable and --template say in the config's words."""
    given = {"DATASET.SKIP_UNREADABLE": args.skip_unreadable or None}
    kept = osp.join(args.model_dir, "split.json")
    if args.images:
        given |= {
            "DATASET.NAME": "Images",
            "DATASET.IMAGES": osp.abspath(osp.expanduser(args.images)),
            "DATASET.NUM_SHOTS": -1,
            "DATASET.ALL_TEST": args.eval_only,
            "INPUT.EXIF_TRANSPOSE": True,
            "TEST.PER_CLASS_RESULT": True,
        }
        if cfg.MODEL.BACKBONE.NAME == "tiny" and not args.backbone and not args.eval_only:
            print(
                "The tiny CLIP is used, which knows drawn shapes only. For photographs: --config-file "
                f"configs/trainers/{args.trainer}/vit_b16.yaml (ViT-B/16; 335 MB are downloaded once)"
            )
        classes = osp.join(args.model_dir, CLASSES)
        if args.eval_only and args.model_dir and osp.exists(classes):
            given["DATASET.CLASSES"] = read_json(classes)
    elif args.eval_only and cfg.DATASET.NAME == "Images" and osp.exists(kept):
        given |= {"DATASET.IMAGES": osp.abspath(kept), "DATASET.ALL_TEST": True}  # the model's own split, as it is
    if args.template is not None:
        if "TEMPLATE" not in cfg.TRAINER.get(args.trainer.upper(), {}):
            raise ValueError(f"{args.trainer} takes no --template: its prompts are not hand-crafted")
        given[f"TRAINER.{args.trainer.upper()}.TEMPLATE"] = args.template
    return given


def default_output(cfg: CfgNode, args: argparse.Namespace) -> str:
    name = osp.splitext(osp.basename(cfg.DATASET.IMAGES))[0] if args.images else cfg.DATASET.NAME
    run = [name, cfg.DATASET.SUBSAMPLE_CLASSES, f"shots{cfg.DATASET.NUM_SHOTS}", f"seed{cfg.SEED}"]
    if args.eval_only and args.model_dir:  # beside the model, never over its own results
        return osp.join(args.model_dir, "eval", "-".join([*run[:2], cfg.TEST.SPLIT]))
    return osp.join("output", cfg.TRAINER.NAME, *run)


def plain(cfg: CfgNode) -> dict:
    """Dotted keys of a config with the values that its `config.yaml` has."""
    return flatten(yaml.safe_load(cfg.dump()))


def check_same_run(cfg: CfgNode, may_differ: tuple[str, ...] = MAY_DIFFER) -> None:
    """Raises ValueError if the output directory holds a run with other settings, which it would be mixed up with."""
    path = osp.join(cfg.OUTPUT_DIR, "config.yaml")
    if not osp.exists(path):
        return
    old, new, default = read_config(path), plain(cfg), plain(default_cfg())  # older runs lack newer keys
    for key in sorted(old.keys() | new.keys()):
        was, now = (some.get(key, default.get(key)) for some in (old, new))
        if not key.startswith(may_differ) and was != now:
            raise ValueError(
                f"{cfg.OUTPUT_DIR} holds a run with {key} {was}, not {now}: choose another "
                f"--output-dir, or remove that one"
            )


def check_model_dir(cfg: CfgNode, model_dir: str) -> dict:
    """The config of the run in `model_dir`; raises ValueError if it was of another trainer, backbone or method setting.

    A template or a class-token position that differs would fit the checkpoint and give a wrong accuracy.
    """
    path = osp.join(model_dir, "config.yaml")
    if not osp.exists(path):  # of another code base: the checkpoint itself is checked when it is loaded
        return {}
    trained = read_config(path)
    for key, now in plain(cfg).items():
        matters = key == "MODEL.BACKBONE.NAME" or key.startswith("TRAINER.")
        if matters and not key.endswith((".PREC", ".MONITOR")) and trained.get(key, now) != now:
            raise ValueError(
                f'the model in {model_dir} was trained with {key} "{trained[key]}", not "{now}": give the same '
                f"here, or another --model-dir"
            )
    return trained


# ------------------------------------------------------------------ one run


def git_revision() -> str | None:
    """Commit of this code, with "+" if files were changed since; None outside a repository."""
    try:
        ask = {"cwd": HERE, "capture_output": True, "text": True, "check": True}
        revision = subprocess.run(["git", "rev-parse", "HEAD"], **ask).stdout.strip()
        return revision + (
            "+" if subprocess.run(["git", "status", "--porcelain", "-uno"], **ask).stdout.strip() else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None


def peak_memory(cfg: CfgNode) -> float:
    """MiB: allocated on the GPU, or resident in this process on the CPU."""
    if cfg.USE_CUDA:
        return torch.cuda.max_memory_allocated() / 2**20
    # the highest of the process so far: of several runs in one process the later ones report at least the earlier's
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB here
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def run(args: argparse.Namespace) -> dict:
    """One training or evaluation; returns what `results.json` holds.

    Everything printed also goes to `log.txt` in the output directory.
    """
    cfg = setup_cfg(args)
    if args.eval_only and args.model_dir and osp.realpath(cfg.OUTPUT_DIR) == osp.realpath(args.model_dir):
        cfg.defrost()
        cfg.OUTPUT_DIR = default_output(cfg, args)
        cfg.freeze()
        print(f"The results go to {cfg.OUTPUT_DIR}: those of the training stay")
    trained = {}
    if not args.eval_only:
        check_same_run(cfg)
    else:
        trained = check_model_dir(cfg, args.model_dir)
        if glob.glob(osp.join(glob.escape(cfg.OUTPUT_DIR), "*", "model*.pth.tar*")):
            raise ValueError(
                f"{cfg.OUTPUT_DIR} holds a training run, whose results this evaluation would overwrite: "
                f"choose another --output-dir"
            )
    with contextlib.ExitStack() as stack:
        try:
            mkdir_if_missing(cfg.OUTPUT_DIR)
            stack.enter_context(locked(cfg.OUTPUT_DIR, "another run is at work there"))
            setup_logger(cfg.OUTPUT_DIR)
            log = stack.enter_context(contextlib.closing(sys.stdout))
        except OSError as error:
            raise OSError(
                f"cannot write to the output directory {cfg.OUTPUT_DIR} ({error.strerror or error}): choose "
                f"another --output-dir"
            ) from error
        try:
            return _run(args, cfg, trained)
        except USER_ERRORS:
            log.file.write(traceback.format_exc())  # for the log only; the console gets one line
            raise


def _run(args: argparse.Namespace, cfg: CfgNode, trained: dict) -> dict:
    if cfg.SEED >= 0:
        print(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
    if cfg.USE_CUDA:
        torch.backends.cudnn.benchmark = True
        torch.cuda.reset_peak_memory_stats()
    if cfg.VERBOSE:
        print(f"** Config **\n{cfg}\n** System info **\n{collect_env_info()}\n")

    trainer = build_trainer(cfg)
    if not args.eval_only and trainer._models and getattr(trainer.dm.dataset, "test_only", False):
        raise ValueError(f"{cfg.DATASET.NAME} is for testing only: train on another data set, then --eval-only here")
    # only now: a run that could not be built leaves nothing that a later one would be compared with
    config_path = osp.join(cfg.OUTPUT_DIR, "config.yaml")
    with open(config_path + ".tmp", "w", encoding="utf-8") as f:
        f.write(cfg.dump())
    os.replace(config_path + ".tmp", config_path)
    write_json(trainer.dm.dataset.classnames, osp.join(cfg.OUTPUT_DIR, CLASSES))  # for predict.py
    if args.no_train and not args.eval_only:
        return {}

    start = time.time()
    if args.eval_only:
        trainer.load_model(args.model_dir, epoch=args.load_epoch)
        trainer.test()
    else:
        trainer.train()

    params = sum(
        count_num_param(params=[p for p in m.parameters() if p.requires_grad]) for m in trainer._models.values()
    )
    trained_cfg = trained if args.eval_only else plain(cfg)
    results = {
        "trainer": cfg.TRAINER.NAME,
        "dataset": cfg.DATASET.NAME,
        "classes": cfg.DATASET.SUBSAMPLE_CLASSES,
        "seed": cfg.SEED,
        "shots": cfg.DATASET.NUM_SHOTS,
        "backbone": cfg.MODEL.BACKBONE.NAME,
        "eval_only": args.eval_only,
        "model_dir": osp.abspath(args.model_dir) if args.model_dir else None,
        "trained_on": {  # an evaluation on other classes or data is never mistaken for a training there
            key: trained_cfg.get(name)
            for key, name in (
                ("dataset", "DATASET.NAME"),
                ("classes", "DATASET.SUBSAMPLE_CLASSES"),
                ("seed", "SEED"),
                ("shots", "DATASET.NUM_SHOTS"),
            )
        }
        if params and trained_cfg
        else None,
        **trainer.results,
        "trainable_params": params,
        "seconds": time.time() - start if args.eval_only else getattr(trainer, "train_seconds", time.time() - start),
        "peak_memory_mib": peak_memory(cfg),
        "device": torch.cuda.get_device_name() if cfg.USE_CUDA else f"CPU, {torch.get_num_threads()} threads",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "torchvision": torchvision.__version__,
            "dassl": dassl.__version__,
        },
        "git_revision": git_revision(),
    }
    write_json(results, osp.join(cfg.OUTPUT_DIR, "results.json"))
    print(f"Results are in {osp.join(cfg.OUTPUT_DIR, 'results.json')}")
    return results


def main(argv: list[str] | None = None) -> int:
    try:
        run(parse(argv))
    except USER_ERRORS as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        print(f"error: {lines[-1].strip() if lines else type(error).__name__}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "interrupted: given again, the same command goes on from the last checkpoint, if there is one",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
