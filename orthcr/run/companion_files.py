"""The files beside a config that a run reads: descriptions of the classes and few-shot splits, with checksums."""

import importlib
import os.path as osp

from yacs.config import CfgNode

from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from dassl.infrastructure.files import file_hash
from trainers.base import node_of
from trainers.shared.descriptions import read_file

from .config_files import here_or_in_clone
from .declarations import descriptions_key
from .spec import RunSpec

DESCRIPTIONS_COPY = "descriptions.json"  # copy of the file, in the directory of a run that needs it for each prediction


def record_descriptions(cfg: CfgNode, spec: RunSpec, model_config: dict) -> None:
    """Fill in the checksum of the descriptions, where this run reads them, and check their form.

    An evaluation of a method that learns reads none. For other methods the file is kept beside the model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it has another form, or is another one than the checksum says.
    """
    key, method = descriptions_key(spec.trainer), TRAINER_REGISTRY.get(spec.trainer)
    if not key or spec.eval_only and method.learner:
        return
    node, copy = cfg.TRAINER[node_of(method)], osp.join(spec.model_dir, DESCRIPTIONS_COPY)
    if not node.DESCRIPTIONS:
        if node.DESCRIPTIONS_SHA256:
            raise ValueError(f"{key}_SHA256 has no effect without descriptions: give --descriptions FILE")
        return
    if node.DESCRIPTIONS == model_config.get(key) and spec.descriptions is None and osp.exists(copy):
        node.DESCRIPTIONS = copy
    node.DESCRIPTIONS = osp.abspath(osp.expanduser(here_or_in_clone(node.DESCRIPTIONS)))
    read_file(node.DESCRIPTIONS)
    checksum = file_hash(node.DESCRIPTIONS)
    check_same_file(node.DESCRIPTIONS, node.DESCRIPTIONS_SHA256, checksum, f"{key}_SHA256", "--descriptions")
    node.DESCRIPTIONS_SHA256 = checksum


def record_few_shot_split(cfg: CfgNode, model_config: dict) -> None:
    """Fill in the checksums of the few-shot split.

    In an evaluation on another data set, the split of the model's training is dropped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the data set takes none, or the file is another one than the checksums say.
    """
    keys = cfg.DATASET
    if keys.NAME != model_config.get("DATASET.NAME", keys.NAME):
        if keys.FEW_SHOT_SPLIT == model_config.get("DATASET.FEW_SHOT_SPLIT"):
            keys.FEW_SHOT_SPLIT, keys.SPLIT_SHA256 = "", []
    if not keys.FEW_SHOT_SPLIT:
        if keys.SPLIT_SHA256:
            raise ValueError("DATASET.SPLIT_SHA256 has no effect without a few-shot split: give --few-shot-split FILE")
        return
    dataset = DATASET_REGISTRY.get(keys.NAME)
    if not getattr(dataset, "takes_few_shot_file", False) or getattr(dataset, "test_only", False):
        raise ValueError(f"{keys.NAME} takes no DATASET.FEW_SHOT_SPLIT (--few-shot-split): leave it out")
    if keys.SAMPLING != "dassl":
        raise ValueError(f"DATASET.SAMPLING {keys.SAMPLING} has no effect with --few-shot-split: give one of them")
    keys.FEW_SHOT_SPLIT = osp.abspath(osp.expanduser(keys.FEW_SHOT_SPLIT))
    few_shot_file = importlib.import_module("datasets.shared.few_shot_file")
    checksums = list(map(file_hash, few_shot_file.files_of(keys.FEW_SHOT_SPLIT)))
    recorded = keys.SPLIT_SHA256
    check_same_file(keys.FEW_SHOT_SPLIT, recorded, checksums, "DATASET.SPLIT_SHA256", "--few-shot-split")
    keys.SPLIT_SHA256 = checksums


def check_same_file(path: str, recorded: str | list[str], checksums: str | list[str], key: str, flag: str) -> None:
    """Raise ValueError if a file is another one than recorded.

    Args:
        path: of the file.
        recorded: checksum in the config, or those of a file and of the file beside it; empty: none yet.
        checksums: those of the file.
        key: that has the recorded ones.
        flag: that gives another file.
    """
    if recorded and recorded != checksums:
        first = recorded if isinstance(recorded, str) else recorded[0]
        raise ValueError(f"{path} is not the file of {key} {first}: put that one there, or give another with {flag}")
