"""The values that are allowed for config keys, declared together with their defaults."""

import math
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

_WORDS = {int: ("a whole number", "whole numbers"), float: ("a number", "numbers"), str: ("a string", "strings")}
_WORDS[bool] = ("True or False", "truth values")
_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = 60


@dataclass(frozen=True)
class Key:
    """A default and the values that are allowed. In a list or tuple, bounds and choices apply to each entry.

    A plain value instead of a Key allows all values of its type. Numbers must be finite.

    Attributes:
        default: value if nobody sets the key. Its type is the type of the key.
        low, high: inclusive bounds.
        above, below: exclusive bounds.
        choices: the allowed values.
        aliases: {other name: choice}; `canonical` replaces them.
        none: whether None is allowed.
        length: number of entries; None: any number.
        of: type of the entries; None: the type of the default's first entry. With the default None, type of the value.
        word: a word that is allowed in place of a number.
        rule: a further condition, as its description and its test: ("odd", lambda value: value % 2 == 1).
    """

    default: object
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: Sequence = ()
    aliases: Mapping[str, str] = field(default_factory=dict, hash=False)
    none: bool = False
    length: int | None = None
    of: type | None = None
    word: str = ""
    rule: tuple[str, Callable] | tuple[()] = ()

    def __str__(self):
        """Return a description of the allowed values."""
        kind, is_list = self._kind(), isinstance(self.default, (list, tuple))
        singular, plural = _WORDS.get(kind, ("a value", "values"))
        if self.choices:
            names = ", ".join(str(choice) or '""' for choice in self.choices)
            words = f"a list of some of {names}" if is_list else f"one of {names}"
        elif is_list:
            words = f"{self.length or 'a list of'} {plural}"
        else:
            words = singular
        limits = {"at least": self.low, "above": self.above, "at most": self.high, "below": self.below}
        bounds = [f" {word} {bound}" for word, bound in limits.items() if bound is not None]
        if bounds:
            words += " and".join(bounds)
        elif kind is float and not is_list:
            words += " that is finite"
        if self.rule:
            words += f", {self.rule[0]}"
        if self.word:
            words += f' or "{self.word}"'
        if self.none:
            words += " or None"
        return words

    def canonical(self, value):
        """Return `value` with every alias replaced by its choice."""
        if isinstance(value, (list, tuple)):
            return type(value)(map(self.canonical, value))
        return self.aliases.get(value, value) if isinstance(value, str) else value

    def allows(self, value) -> bool:
        """Return whether `value` is allowed."""
        if value is None or (self.default is None and self.of is None):
            return self.none or self.default is None
        if self.word and value == self.word:
            return True
        if isinstance(self.default, (list, tuple)):
            has_length = isinstance(value, (list, tuple)) and len(value) == (self.length or len(value))
            allowed = has_length and all(map(self._allows_one, value))
        else:
            allowed = self._allows_one(value)
        return allowed and (not self.rule or bool(self.rule[1](value)))

    def _kind(self) -> type | None:
        """Return the type of the value, or of the entries of a list or tuple; None: any type."""
        if isinstance(self.default, (list, tuple)):
            if self.of:
                return self.of
            examples = [*self.default, *self.choices]
            return type(examples[0]) if examples and examples[0] is not None else None
        return self.of if self.default is None or self.word else type(self.default)

    def _allows_one(self, value) -> bool:
        kind = self._kind()
        if kind is not None and type(value) is not kind and not (kind is float and type(value) is int):
            return False
        if self.choices:
            return value in self.choices
        if type(value) not in (int, float):
            return not isinstance(value, str) or not re.search(r"[\0-\x1f\x7f]", value)  # control characters
        return (
            (type(value) is int or math.isfinite(value))
            and (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


def values(declared: dict) -> dict:
    """Return the defaults in a nested dict of Keys and plain values."""
    defaults = {}
    for name, key in declared.items():
        if isinstance(key, dict):
            defaults[name] = values(key)
        else:
            defaults[name] = key.default if isinstance(key, Key) else key
    return defaults


def format_value(value) -> str:
    """Return a value for a message, shortened to one line."""
    is_short = isinstance(value, str) and len(value) <= 60 and value.isprintable()
    return f'"{value}"' if is_short else _short.repr(value)
