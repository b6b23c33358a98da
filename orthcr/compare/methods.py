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
        protocols: words of --protocol. With tta, "all" is every trainer that trains nothing.
        words: of --trainers.

    Raises:
        ValueError: a trainer named for tta is trained.
    """
    names = registered_trainers(words)
    if protocols != ["tta"]:
        return names
    trained = [name for name in names if is_trained(name)]
    if trained and "all" not in words:
        raise ValueError(f"--protocol tta trains nothing, and {trained[0]} is trained: take cross_dataset for it")
    return [name for name in names if name not in trained]


def registered_trainers(words: list[str]) -> list[str]:
    """Return the trainers with these names, each once, zero-shot first; "all" is every ClipTrainer."""
    for package in (trainers, datasets):
        discover(package)
    available = TRAINER_REGISTRY.registered_names()
    for word in words:
        check_availability(word, [*available, "all"])
    every = [name for name in available if issubclass(TRAINER_REGISTRY.get(name), ClipTrainer)]
    names = [name for word in words for name in (every if word == "all" else [word])]
    return sorted(dict.fromkeys(names), key=is_trained)


def is_trained(trainer: str) -> bool:
    """Return whether a method trains anything. A trainer written for Dassl does."""
    return bool(getattr(TRAINER_REGISTRY.get(trainer), "learner", True))


def depends_on_seed(trainer: str) -> bool:
    """Return whether the results of a method depend on the seed, as those of zero-shot CLIP do not."""
    return is_trained(trainer) or bool(TRAINER_REGISTRY.get(trainer).adaptation)


def options_of_each(opts: tuple[str, ...], names: list[str]) -> dict[str, tuple[str, ...]]:
    """Return the KEY VALUE pairs of each trainer.

    A key of a node goes to the methods that have this node, and a key that a method does not read goes to the others. A
    trainer written for Dassl does not read DATASET.FEATURE_CACHE.

    Args:
        opts: KEY VALUE ...
        names: of the trainers.

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
        unread = CACHE_KEYS if is_foreign(name) else TRAINER_REGISTRY.get(name).unread
        own_pairs = [(k, v) for k, v in pairs if key_nodes.get(k, nodes[0]) in nodes and k not in unread]
        shares[name] = tuple(word for pair in own_pairs for word in pair)
    return shares
