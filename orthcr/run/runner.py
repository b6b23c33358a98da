"""A run: a training or an evaluation in its output directory. The settings and the accuracy go to `results.json`."""

import contextlib
import errno
import glob
import os
import os.path as osp
import sys
import time
import traceback

try:
    import resource
except ImportError:  # on Windows
    resource = None

import torch
from yacs.config import CfgNode

from dassl.engine import build_trainer
from dassl.infrastructure import distributed
from dassl.infrastructure.command import RESUME_HINT, USER_ERRORS, command
from dassl.infrastructure.files import read_bytes, seal_config, sweep, visible
from dassl.utils import atomic_write, collect_env_info, locked, set_random_seed, setup_logger, write_json
from orthcr.run import own_images
from orthcr.run.auto_strength import select_strength
from orthcr.run.checks import check_domains, check_evaluation, check_processes, check_same_run, protect_data
from orthcr.run.companion_files import DESCRIPTIONS_COPY
from orthcr.run.config import setup_cfg
from orthcr.run.config_files import owner_of, read_model_config
from orthcr.run.declarations import config_values, descriptions_key, is_foreign, strength_key
from orthcr.run.flags import parse
from orthcr.run.plan import print_plan
from orthcr.run.results import describe, has_learner
from orthcr.run.seen import SEEN, write_seen_images
from orthcr.run.spec import RunSpec
from orthcr.run.temperature import calibrate_at_the_end, temperature_of
from orthcr.run.trackers import name_of, open_trackers, write_to_trackers
from trainers.base import ClipTrainer
from trainers.shared.classes import CLASSES
from trainers.shared.strength import AUTO


def main(argv: list[str] | None = None) -> int:
    """Make the run that a command line of train.py describes; return the exit status.

    Args:
        argv: words of the command line; None: the command line of this process.
    """

    def work() -> None:
        run(parse(argv))

    return command(work, RESUME_HINT)


def run(spec: RunSpec) -> dict:
    """Make one training or evaluation; return the content of `results.json`.

    The output is also written to `log.txt` in the output directory. Of several processes, only the first one writes
    files and returns results.
    """
    with distributed.processes():
        cfg, model_config = setup_cfg(spec), read_model_config(spec)
        check_domains(cfg)
        if spec.print_config:
            print_plan(cfg, spec.eval_only)
            return {}
        if spec.eval_only:
            check_evaluation(cfg, spec, model_config)
        else:
            check_same_run(cfg)
            print_defaults(cfg, spec)
        check_processes(cfg)
        log = open_log(cfg.OUTPUT_DIR) if distributed.is_first() else contextlib.nullcontext()
        with log, protect_data(cfg, spec, model_config):
            if spec.eval_only:
                return evaluate(cfg, spec, model_config)
            return train(cfg, spec)


def train(cfg: CfgNode, spec: RunSpec) -> dict:
    """Train and test a model; return the content of `results.json`, {} with --no-train."""
    trainer = prepare(cfg, spec)
    print_setup(cfg)
    if cfg.DATASET.NAME == "Images":
        own_images.warn_before_training(cfg, trainer.dm.dataset.classnames)
    if spec.no_train:
        return {}
    start_time = time.time()
    trainer.evaluator.keep_scores = cfg.TEST.CALIBRATE
    with open_trackers(cfg, name_of(cfg, spec.eval_only)) as trainer.trackers:
        trainer.train()
        if not distributed.is_first():
            return {}
        results = describe(trainer, cfg, spec, {}, time.time() - start_time)
        if cfg.TEST.CALIBRATE:
            results |= calibrate_at_the_end(trainer, cfg.OUTPUT_DIR)
        results |= write_results(trainer, cfg, results)
        write_to_trackers(trainer.trackers, trainer, cfg, results)
    if cfg.DATASET.NAME == "Images":
        print(own_images.next_command(cfg.OUTPUT_DIR))
    return results


def evaluate(cfg: CfgNode, spec: RunSpec, model_config: dict) -> dict:
    """Test a trained model; return the content of `results.json`."""
    selection = select_strength(cfg, spec, model_config)
    trainer = prepare(cfg, spec)
    start_time = time.time()
    trainer.selection = selection
    trainer.load_model(spec.model_dir, epoch=spec.load_epoch)
    print_setup(cfg)
    trainer.evaluator.temperature = temperature_of(trainer, spec.model_dir, spec.load_epoch)
    with open_trackers(cfg, name_of(cfg, spec.eval_only)) as trainer.trackers:
        trainer.test()
        if not distributed.is_first():
            return {}
        results = write_results(trainer, cfg, describe(trainer, cfg, spec, model_config, time.time() - start_time))
        write_to_trackers(trainer.trackers, trainer, cfg, results)
    return results


def write_results(trainer, cfg: CfgNode, results: dict) -> dict:
    """Write `results.json`, with the entries for own images; return its content."""
    if cfg.DATASET.NAME == "Images":
        results = results | own_images.report_results(trainer)
    path = osp.join(cfg.OUTPUT_DIR, "results.json")
    write_json(results, path, seal=True)
    print(f"Results are in {path}")
    return results


@contextlib.contextmanager
def open_log(folder: str):
    """Lock an output directory for one run; copy the output and the trace of an error to its log.txt."""
    with contextlib.ExitStack() as stack:
        try:
            os.makedirs(folder, exist_ok=True)
            stack.enter_context(locked(folder, "another run is using it"))
            for path in (folder, *glob.glob(osp.join(glob.escape(folder), "*/"))):
                sweep(path)
            setup_logger(folder)
            log = stack.enter_context(contextlib.closing(sys.stdout))
        except OSError as error:
            problem = f"cannot write to the output directory {folder} ({error.strerror or error})"
            raise OSError(f"{problem}: choose another --output-dir") from error
        try:
            yield
        except Exception as error:
            with contextlib.suppress(OSError):  # a full disk
                if log.file:
                    log.file.write(visible(traceback.format_exc(), keep="\n"))  # the console may show only one line
                    log.file.flush()
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise OSError(f"{error}: free disk space and give the same command again") from error
            raise


# ------------------------------------------------------------------ the trainer and the results


def prepare(cfg: CfgNode, spec: RunSpec):
    """Build the trainer, check it against the run, and write the files that describe the run; return the trainer."""
    trainer = build(cfg)
    check_data(trainer, cfg, spec)
    if (
        distributed.is_first()
    ):  # after the checks: a failed run must not leave settings that later runs are checked against
        write_settings(trainer, cfg, spec)
    return trainer


def build(cfg: CfgNode):
    """Seed and build the trainer. If this raises an unexpected error, print the config for the log."""
    try:
        return build_seeded(cfg)
    except Exception as error:
        if not isinstance(error, USER_ERRORS):
            print_setup(cfg)
        raise


def check_data(trainer, cfg: CfgNode, spec: RunSpec) -> None:
    """Raise ValueError if the data set has no images for this run, or if the descriptions lack a class."""
    if not spec.eval_only and has_learner(trainer) and getattr(trainer.dm.dataset, "test_only", False):
        raise ValueError(f"{cfg.DATASET.NAME} is for testing only: train on another data set, then --eval-only here")
    if cfg.TEST.SPLIT == "val" and getattr(trainer, "val_loader", True) is None and not cfg.TEST.NO_TEST:
        raise ValueError(f"TEST.SPLIT is val, but {cfg.DATASET.NAME} has no val images here: set TEST.SPLIT test")
    if not spec.eval_only and isinstance(trainer, ClipTrainer):
        trainer.check_descriptions()


def build_seeded(cfg: CfgNode):
    """Seed the random generators and return the trainer."""
    if cfg.SEED >= 0:
        print(f"Setting fixed seed: {cfg.SEED}")
        set_random_seed(cfg.SEED)
    if cfg.USE_CUDA:
        torch.backends.cudnn.benchmark = True
        torch.cuda.reset_peak_memory_stats()
    return build_trainer(cfg)


def write_settings(trainer, cfg: CfgNode, spec: RunSpec) -> None:
    """Write the config, the class names, the list of own training images, and a copy of the descriptions."""
    write_json(trainer.dm.dataset.classnames, osp.join(cfg.OUTPUT_DIR, CLASSES))  # for predict.py
    if cfg.DATASET.NAME == "Images" and not spec.eval_only and has_learner(trainer):
        uses_val = cfg.TEST.FINAL_MODEL == "best_val" or config_values(cfg).get(strength_key(cfg.TRAINER.NAME)) == AUTO
        write_seen_images(cfg.OUTPUT_DIR, trainer.dm.dataset.train_x, trainer.dm.dataset.val if uses_val else [])
    descriptions = config_values(cfg).get(descriptions_key(cfg.TRAINER.NAME))
    if descriptions and not has_learner(trainer):
        copy_text(descriptions, osp.join(cfg.OUTPUT_DIR, DESCRIPTIONS_COPY))
    content = seal_config(cfg.dump(), cfg.OUTPUT_DIR, [CLASSES, "split.json", SEEN, DESCRIPTIONS_COPY])
    with atomic_write(osp.join(cfg.OUTPUT_DIR, "config.yaml")) as f:
        f.write(content)


def copy_text(path: str, copy: str) -> None:
    """Copy a text file, unless both paths are the same file."""
    content = read_bytes(path)
    if osp.realpath(path) != osp.realpath(copy):
        with atomic_write(copy) as f:
            f.write(content)


def print_defaults(cfg: CfgNode, spec: RunSpec) -> None:
    """Print the optimizer settings for a method without a YAML file."""
    trainer = cfg.TRAINER.NAME
    if not (spec.config_file or is_foreign(trainer) or owner_of("tiny", trainer)):
        optim = f"OPTIM.NAME {cfg.OPTIM.NAME}, OPTIM.LR {cfg.OPTIM.LR:g}, OPTIM.MAX_EPOCH {cfg.OPTIM.MAX_EPOCH}"
        print(f"{trainer} has no configs/trainers/{trainer}/tiny.yaml: it runs with the defaults, {optim}")


def print_setup(cfg: CfgNode) -> None:
    """Print the config and the system. Call this after all checks, because these 100 lines would hide an error."""
    if cfg.VERBOSE:
        print(f"** Config **\n{cfg}\n** System info **\n{collect_env_info()}\n")
