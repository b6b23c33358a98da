"""The methods of a benchmark, and the KEY VALUE pairs that each of them takes."""

import datasets
import trainers
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import check_availability
from orthcr.run.declarations import CACHE_KEYS, discover, is_foreign
from trainers.base import ClipTrainer, nodes_of


def methods_of(protocols: list[str], words: list[str]) -> list[str]:
    """Return the trainers to be compared.

    Args:
        protocols: words of --protocol. With tta, "all" stands for every trainer that trains nothing.
        words: words of --trainers.

    Raises:
        ValueError: a trainer named for tta is trained.
    """
    names = registered_trainers(words)
    if protocols != ["tta"]:
        return names
    trained_names = [name for name in names if is_trained(name)]
    if trained_names and "all" not in words:
        raise ValueError(f"--protocol tta trains nothing, but {trained_names[0]} is trained: give cross_dataset for it")
    return [name for name in names if name not in trained_names]


def registered_trainers(words: list[str]) -> list[str]:
    """Return the trainers with these names, each once, the untrained ones first; "all" stands for every ClipTrainer."""
    for package in (trainers, datasets):
        discover(package)
    registered_names = TRAINER_REGISTRY.registered_names()
    for word in words:
        check_availability(word, [*registered_names, "all"])
    clip_trainers = [name for name in registered_names if issubclass(TRAINER_REGISTRY.get(name), ClipTrainer)]
    names = [name for word in words for name in (clip_trainers if word == "all" else [word])]
    return sorted(dict.fromkeys(names), key=is_trained)


def is_trained(trainer: str) -> bool:
    """Return whether a method has a training; True for a trainer written for Dassl."""
    return bool(getattr(TRAINER_REGISTRY.get(trainer), "learner", True))


def depends_on_seed(trainer: str) -> bool:
    """Return whether the results of a method depend on the seed; False for zero-shot CLIP."""
    return is_trained(trainer) or bool(TRAINER_REGISTRY.get(trainer).adaptation)


def options_by_trainer(opts: tuple[str, ...], names: list[str]) -> dict[str, tuple[str, ...]]:
    """Return the KEY VALUE pairs of each trainer.

    A trainer gets no key of a node that it does not have, and no key of its `unread_keys`. A trainer written for Dassl
    does not read DATASET.FEATURE_CACHE.

    Args:
        opts: KEY VALUE ...
        names: names of the trainers.

    Raises:
        ValueError: no trainer takes one of the pairs.
    """
    pairs = list(zip(opts[::2], opts[1::2], strict=False))
    trainer_nodes = {name: nodes_of(TRAINER_REGISTRY.get(name)) for name in names}
    key_nodes = {key: key.split(".")[1] for key, _ in pairs if key.startswith("TRAINER.")}
    for key, node in key_nodes.items():
        if not any(node in nodes for nodes in trainer_nodes.values()):
            raise ValueError(f"{key} is no key of {', '.join(names)}: leave it out, or add its trainer to --trainers")
    shares = {}
    for name, nodes in trainer_nodes.items():
        unread_keys = CACHE_KEYS if is_foreign(name) else TRAINER_REGISTRY.get(name).unread_keys
        own_pairs = [(k, v) for k, v in pairs if key_nodes.get(k, nodes[0]) in nodes and k not in unread_keys]
        shares[name] = tuple(word for pair in own_pairs for word in pair)
    return shares
