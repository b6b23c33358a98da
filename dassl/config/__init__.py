"""The config: defaults, and merging a YAML file or command-line options into it with clear errors."""

import ast
import copy
import os.path as osp
from difflib import get_close_matches
from functools import lru_cache

import yaml
from yacs.config import CfgNode as CN

from dassl.infrastructure.console import say
from dassl.infrastructure.files import listdir_nohidden, read_text
from dassl.names import get_most_similar_str_to_a_from_b

from .defaults import _C as cfg_default
from .defaults import TOGETHER, UNREAD
from .keys import Key, format_value

__all__ = [
    "check_config",
    "clean_cfg",
    "flatten",
    "get_cfg_default",
    "merge_config",
    "read_config",
    "read_layers",
    "resolve_aliases",
]

BASE = "_BASE_"  # detectron2's key
AUTO = "auto"  # word that may stand in place of a number


def get_cfg_default():
    """Return a fresh `yacs.config.CfgNode` with every generic key at its default."""
    return cfg_default.clone()


def clean_cfg(cfg, trainer):
    """Remove the nodes of all trainers but `trainer` from `cfg`, in place, so that a printed config shows what matters.

    Args:
        cfg (CfgNode): config.
        trainer (str): name of the trainer; its node is TRAINER.<name>, in upper case or as it is.
    """
    for key in list(cfg.TRAINER):
        if key.upper() not in ("NAME", trainer.upper()):
            del cfg.TRAINER[key]


def resolve_aliases(cfg, declared):
    """Replace every alias of a value in `cfg` by its choice, in place.

    Args:
        cfg (CfgNode): merged config.
        declared (dict): see `check_config`.
    """
    for name, key in flatten(declared).items():
        if isinstance(key, Key) and key.aliases:
            *sections, leaf = name.split(".")
            node = cfg
            for section in sections:
                node = node[section]
            setattr(node, leaf, key.canonical(node[leaf]))


def check_config(cfg, declared):
    """Raise ValueError for the first value that its key does not allow.

    The message has one line with the key, its value and the allowed values.

    Args:
        cfg (CfgNode): merged config. Keys that are not declared may have any value.
        declared (dict): Keys and plain values, nested like the config: `defaults.KEYS`, and those of methods.
    """
    values = flatten(cfg)
    for name, key in flatten(declared).items():
        key = key if isinstance(key, Key) else Key(key)
        if name in values and not key.allows(values[name]):
            value = values[name]
            entries = value if isinstance(value, (list, tuple)) else [value]
            problem = [entry for entry in entries if entry not in key.choices]
            near = get_most_similar_str_to_a_from_b(problem[0], key.choices) if problem and key.choices else ""
            hint = f', do you mean "{near}"?' if near and isinstance(problem[0], str) else ""
            raise ValueError(f"{name} is {format_value(value)}, but must be {key}{hint}")
    for name, allowed, holds in TOGETHER:
        if not holds(cfg.INPUT):
            raise ValueError(f"{name} is {values[name]}, but must be {allowed}")


def merge_config(cfg, source, allow_new=()):
    """Merge a YAML file or a list of options into `cfg`, in place. After an error `cfg` is unchanged.

    Values are read like yacs: text is a Python literal if possible, for example "(10,)" or "1e-5", else a string. A
    value must have the type of the value that it replaces, with these exceptions:

    - An int is converted to a float, and lists and tuples are converted to each other.
    - If the default is a list of names, a single name becomes a list.
    - None may replace any value, and any value may replace None.
    - "auto" may replace a number, and a number may replace "auto".

    A key of `defaults.UNREAD` that `cfg` does not have is ignored. If it is not at its default, a line is printed.

    A YAML file may name one or more base files, which are merged before it: `_BASE_: ../vit_b16.yaml`, relative to its
    own folder.

    Args:
        cfg (CfgNode): config, with the defaults of the trainer declared.
        source (str, path or list): path to a YAML file, or [KEY, VALUE, KEY, VALUE...] with dotted keys.
        allow_new (tuple of str): dotted prefixes, e.g. ("TRAINER.MYMETHOD",), below which
            unknown keys are created.

    Raises:
        FileNotFoundError: the file or one of its bases does not exist.
        ValueError: bad YAML, bases in a circle, an unknown key (the nearest one is named), a wrong type, or a KEY
            without VALUE.
        AttributeError: `cfg` is frozen.
    """
    if isinstance(source, (list, tuple)):
        settings = [(key, value, "on the command line") for key, value in _pair_up(source)]
    else:
        files = _read_with_bases(source)
        settings = [(key, value, f'in "{path}"') for path, tree in files for key, value in flatten(tree).items()]

    current = flatten(cfg)
    new = [f"{prefix}." for prefix in allow_new]
    converted = []
    for key, value, origin in settings:
        section = key + "."
        if key in current:
            value = _convert(value, current[key], key, origin)
        elif key in UNREAD:
            if _decode(value) != UNREAD[key]:  # the config.yaml of earlier runs has all of them, at their defaults
                say(f"{key} {origin} has no effect: only data sets of Dassl's own read it, which are not here")
            continue
        elif any(name.startswith(section) for name in [*current, *new]):
            if value is not None:  # None is a YAML section whose lines are all commented out
                raise ValueError(f'"{key}" {origin} is a section, which takes no value: set one of its keys')
            continue
        elif key.startswith(tuple(new)):
            value = _decode(value)
        else:
            nearest_key = get_most_similar_str_to_a_from_b(key, current)
            raise ValueError(f'Unknown config key "{key}" {origin}, do you mean "{nearest_key}"?')
        converted.append((key, value))

    for key, value in converted:
        *sections, leaf = key.split(".")
        node = cfg
        for name in sections:
            if name not in node:
                setattr(node, name, CN())
            node = node[name]
        setattr(node, leaf, value)


def read_layers(path):
    """Return [(path, {dotted key: value}), ...] of the bases of a YAML file and of the file, in merging order.

    Raises:
        FileNotFoundError, ValueError: see `merge_config`.
    """
    return [(str(file), flatten(content)) for file, content in _read_with_bases(path)]


def _pair_up(opts):
    if len(opts) % 2:
        words = " ".join(map(str, opts))
        raise ValueError(f"Options must be KEY VALUE pairs (got {len(opts)} words: {words}): give each key one value")
    return list(zip(opts[0::2], opts[1::2], strict=True))


def _read_with_bases(path, users=()):
    """Return [(path, content), ...] of the bases of a YAML file and of the file, each after its own bases.

    Args:
        path: the YAML file.
        users: files that lead to it, each one a base of the file before it.
    """
    if osp.realpath(path) in map(osp.realpath, users):
        raise ValueError(f'"{BASE}" goes in a circle: {" -> ".join(map(str, [*users, path]))}')
    try:
        content = _read_yaml(path)
    except FileNotFoundError as e:
        if not users:
            raise
        missing = f'The "{BASE}" of "{users[-1]}" is missing: {e}'
        advice = "copy the bases of a copied file too, or give their paths from its new folder"
        raise FileNotFoundError(f"{missing}: {advice}") from None
    bases = content.pop(BASE, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ValueError(f'"{BASE}" in "{path}" must be the path of a YAML file, or a list of them, got {bases!r}')
    paths = [osp.normpath(osp.join(osp.dirname(path), base)) for base in bases]
    return [pair for base in paths for pair in _read_with_bases(base, (*users, path))] + [(path, content)]


def _read_yaml(path):
    if osp.isdir(path):
        raise ValueError(f'"{path}" is a directory: give a YAML file')
    if not osp.isfile(path):
        folder, name = osp.split(osp.abspath(path))
        if not osp.isdir(folder):
            raise FileNotFoundError(f'No config file "{path}": the folder does not exist either')
        files = listdir_nohidden(folder, sort=True)
        near = ", ".join(get_close_matches(name, files, cutoff=0.3)) or "nothing similar"
        raise FileNotFoundError(f'No config file "{path}"; that folder has {near}')
    text = read_text(path)
    try:
        content = copy.deepcopy(_parse_yaml(text))
    except RecursionError:
        raise ValueError(f'Bad YAML in "{path}": it is nested too deep') from None
    except Exception as e:  # its constructors raise a dozen types
        mark = getattr(e, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(e, "problem", None) or getattr(e, "reason", None) or e
        raise ValueError(f'Bad YAML in "{path}"{line}: {" ".join(str(problem).split())}') from e
    if not isinstance(content, (dict, type(None))):
        raise ValueError(f'"{path}" must hold KEY: VALUE lines, but is a {type(content).__name__}')
    return content or {}


@lru_cache(maxsize=64)
def _parse_yaml(text):
    """Return the content of a YAML text. Cached, because a plan reads the same files for each of its runs."""
    content = yaml.load(text, Loader=_Loader)
    flatten(content if isinstance(content, dict) else {})
    return content


class _Loader(yaml.SafeLoader):
    """A YAML loader that rejects duplicate keys and aliases that expand to a huge document."""

    def compose_mapping_node(self, anchor):
        node, keys = super().compose_mapping_node(anchor), set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in keys:
                raise yaml.composer.ComposerError(None, None, f'"{key.value}" is there twice', key.start_mark)
            keys.add(key.value)
        return node

    def get_single_node(self):
        node, sizes = super().get_single_node(), {}

        def size(node):  # number of values with every alias expanded
            if id(node) not in sizes:
                sizes[id(node)] = None
                children = node.value if isinstance(node, yaml.CollectionNode) else ()
                pairs = (child if isinstance(child, tuple) else (child,) for child in children)
                sizes[id(node)] = 1 + sum(size(part) for pair in pairs for part in pair)
            if sizes[id(node)] is None:
                raise ValueError("an alias contains itself")
            return sizes[id(node)]

        if node is not None and size(node) > 100_000:
            raise ValueError("it has more than 100,000 values")
        return node


def flatten(tree, prefix=""):
    """Return {dotted key: value} of nested dicts: {"A": {"B": 1}} -> {"A.B": 1}."""
    values = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            values |= flatten(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = value
    return values


def read_config(path):
    """Return the `config.yaml` of a run as a dict of dotted keys, without the keys of `defaults.UNREAD`.

    Raises:
        FileNotFoundError, ValueError: see `merge_config`; also if the file is cut off.
    """
    config = flatten(_read_yaml(path))
    # VERBOSE is the last line of every config.yaml; a cut may have left its key without the value
    if "TRAINER.NAME" not in config or not isinstance(config.get("VERBOSE"), bool):
        raise ValueError(f'"{path}" is cut off or damaged: restore it, or train again')
    return {key: value for key, value in config.items() if key not in UNREAD}


def _decode(value):
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # for "{[]: 1}" or "((((("
        return value


def _convert(value, default, key, origin):
    """Return `value` with the type of `default`; `key` and `origin` are for the error message."""
    decoded = _decode(value)
    target = type(default)
    if default is None or decoded is None or type(decoded) is target:
        return decoded
    # `check_config` raises an error later if this key does not allow "auto"
    if target is float and isinstance(decoded, str) and decoded.strip().lower() == AUTO:
        return decoded
    if default == AUTO and type(decoded) in (int, float):
        target = float
    if type(decoded) is target:
        return decoded
    if target is str and isinstance(value, str):  # a name that looks like a number
        return value
    if target is float and type(decoded) is int:
        return float(decoded) if abs(decoded) < 1e300 else float("inf")
    if target in (list, tuple) and type(decoded) in (list, tuple):
        return target(decoded)
    if target in (list, tuple) and isinstance(decoded, str) and default and all(isinstance(x, str) for x in default):
        return target([decoded])  # one name in place of a list of names
    description = f"{format_value(decoded)} ({type(decoded).__name__})"
    raise ValueError(f'"{key}" {origin} must be of type {target.__name__}, got {description}')
