"""The precedence of settings: inheritance from the file of a parent method, and keys that override other keys."""

from pathlib import Path

from yacs.config import CfgNode

from dassl.config import flatten, read_layers
from dassl.config.keys import format_value
from dassl.engine import TRAINER_REGISTRY
from dassl.infrastructure.console import say
from trainers.base import node_of

from .config_files import config_files, lineage, parent_of
from .declarations import default_cfg
from .spec import RunSpec


def inherit_settings(cfg: CfgNode, file: str, trainer: str) -> None:
    """Copy settings from the node of the parent method to the node of this method, if the file is the parent's."""
    method = TRAINER_REGISTRY.get(trainer)
    parent = parent_of(file, method)
    if parent is None or node_of(parent) == node_of(method):
        return
    default = default_cfg(trainer).TRAINER
    if node_of(parent) in default:
        parent_node, method_node = cfg.TRAINER[node_of(parent)], cfg.TRAINER[node_of(method)]
        for key in parent_node.keys() & method_node.keys():
            if parent_node[key] != default[node_of(parent)][key]:
                method_node[key] = parent_node[key]


def inherited_keys(keys: dict, path: str, method: type) -> dict:
    """Return the keys that a method inherits from a parent's file by `inherit_settings`."""
    parent, prefix = parent_of(path, method), f"TRAINER.{node_of(method)}."
    parent_prefix = f"TRAINER.{node_of(parent)}." if parent else prefix
    return {key.replace(parent_prefix, prefix, 1): keys[key] for key in keys if key.startswith(parent_prefix)}


def check_trainer_of_files(cfg: CfgNode, spec: RunSpec, model_config: dict) -> None:
    """Raise ValueError if a config file is for another trainer, and no --trainer is given."""
    method, default = TRAINER_REGISTRY.get(spec.trainer), default_cfg(spec.trainer).TRAINER
    family = [cls.__name__ for cls in lineage(method)]
    nodes = {name: node_of(TRAINER_REGISTRY.get(name)) for name in TRAINER_REGISTRY.registered_names()}
    folder = Path(spec.config_file).absolute().parent
    names = [cfg.TRAINER.NAME]
    if folder.parent.name == "trainers" and folder.name in nodes:
        names.append(folder.name)
    if not model_config:  # a model's config may have defaults of other methods from an older version
        names += [name for name, node in nodes.items() if cfg.TRAINER.get(node) != default.get(node)]
    for name in names:
        if name and name not in family and nodes.get(name) != node_of(method):
            raise ValueError(
                f"the config files are for {name}, not for {spec.trainer}: give --trainer {name}, or others"
            )


def resolve_deciding_keys(cfg: CfgNode, spec: RunSpec) -> None:
    """Resolve conflicts between a key and the keys that it overrides: the later layer has precedence.

    See `DecidingKey`. A layer is a config file or the command line.

    Raises:
        ValueError: one layer sets both keys.
    """
    method, layers = TRAINER_REGISTRY.get(spec.trainer), layers_of(spec)
    node = node_of(method)
    for name, rule in method.deciding_keys.items():
        deciding_key = f"TRAINER.{node}.{name}"
        deciding_layer = last_layer(layers, deciding_key)
        for overridden in rule.keys:
            key = overridden if "." in overridden else f"TRAINER.{node}.{overridden}"
            layer, value, deciding_value = last_layer(layers, key), flatten(cfg)[key], cfg.TRAINER[node][name]
            is_set = layer >= 0 and layer >= deciding_layer
            if not deciding_value or not is_set or rule.agrees(overridden, value, deciding_value):
                continue
            empty_value = type(deciding_value)()
            wording = f"{key} {format_value(value)} {layers[layer][0]} has no effect with {deciding_key}"
            if layer == deciding_layer or rule.refused:
                advice = f"which overrides it: leave one out, or set {deciding_key} {format_value(empty_value)}"
                raise ValueError(f"{wording} {format_value(deciding_value)}, {advice}")
            change = f"{format_value(empty_value)} instead of {format_value(deciding_value)}"
            say(f"{deciding_key} is {change}, because {key} is set later, {layers[layer][0]}")
            cfg.TRAINER[node][name] = empty_value


def last_layer(layers: list[tuple[str, dict]], key: str) -> int:
    """Return the index of the last layer that sets a key; -1 if none does."""
    return max((k for k, (_, keys) in enumerate(layers) if key in keys), default=-1)


def layers_of(spec: RunSpec) -> list[tuple[str, dict]]:
    """Return the layers that set keys, later over earlier.

    The config.yaml of a run has every key. Of these, only the deciding keys count as set.

    Returns:
        [("in FILE", {key: value}), ..., ("on the command line", {key: value})].
    """
    method, layers = TRAINER_REGISTRY.get(spec.trainer), []
    for path, keys in (layer for file in config_files(spec) for layer in read_layers(file)):
        if {"TRAINER.NAME", "VERBOSE"} <= keys.keys():
            deciding_keys = {f"TRAINER.{node_of(method)}.{name}" for name in method.deciding_keys}
            keys = {key: value for key, value in keys.items() if key in deciding_keys}
        layers.append((f'in "{path}"', keys | inherited_keys(keys, path, method)))
    return [*layers, ("on the command line", dict(zip(spec.opts[::2], spec.opts[1::2], strict=True)))]
