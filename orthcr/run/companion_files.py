"""The files that a config names: descriptions of the classes and few-shot splits. The config gets their checksums."""

import importlib
import os.path as osp

from yacs.config import CfgNode

from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from dassl.infrastructure.files import file_hash
from trainers.base import node_of
from trainers.shared.descriptions import read_file

from .config_files import resolve_path
from .declarations import descriptions_key
from .spec import RunSpec

DESCRIPTIONS_COPY = "descriptions.json"  # copy in the output directory, for methods that need it in predictions


def record_descriptions(cfg: CfgNode, spec: RunSpec, model_config: dict) -> None:
    """Check the file of descriptions and write its checksum into the config, if this run reads descriptions.

    An evaluation of a method that learns reads none. For other methods there is a copy of the file beside the model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not of this form, or its checksum is not the one in the config.
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
    node.DESCRIPTIONS = osp.abspath(osp.expanduser(resolve_path(node.DESCRIPTIONS)))
    read_file(node.DESCRIPTIONS)
    checksum = file_hash(node.DESCRIPTIONS)
    check_same_file(node.DESCRIPTIONS, node.DESCRIPTIONS_SHA256, checksum, f"{key}_SHA256", "--descriptions")
    node.DESCRIPTIONS_SHA256 = checksum


def record_few_shot_split(cfg: CfgNode, model_config: dict) -> None:
    """Write the checksums of the few-shot split into the config.

    An evaluation on another data set ignores the split of the model's training.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the data set takes no split, or the checksums are not those in the config.
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
    """Raise ValueError if the checksum of a file is not the one in the config.

    Args:
        path: path of the file.
        recorded: checksum in the config, or a list for the file and the one beside it; empty: not yet recorded.
        checksums: checksum of the file, or a list.
        key: config key with the recorded checksums.
        flag: flag of the command line that names the file.
    """
    if recorded and recorded != checksums:
        first = recorded if isinstance(recorded, str) else recorded[0]
        raise ValueError(
            f"{path} does not have the checksum {key} {first}: put the original back, or give {flag} again"
        )
