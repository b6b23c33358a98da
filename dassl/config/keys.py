"""What a config key may be, declared beside its default."""

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
    """A default with the values allowed; of a list or tuple, the bounds and choices are those of each entry.

    A plain value instead of a Key allows all values of its type, of which the numbers are finite.

    Attributes:
        default: value when nobody sets the key; its type is that of the key.
        low, high: bounds, themselves allowed.
        above, below: bounds, themselves not allowed.
        choices: the values allowed.
        aliases: other names of choices, by which people know them; `canonical` replaces them.
        none: whether None is allowed.
        length: number of entries; None: any.
        of: type of the entries, None: that of the default's first one; with the default None, type of the value.
        word: one that is allowed in place of a number.
        rule: what else holds, in words after a comma, and the test: ("odd", lambda value: value % 2 == 1).
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
        """The values allowed, in words."""
        kind, many = self._kind(), isinstance(self.default, (list, tuple))
        if self.choices:
            names = ", ".join(str(choice) or '""' for choice in self.choices)
            words = f"a list of some of {names}" if many else f"one of {names}"
        else:
            words = _WORDS.get(kind, ("a value", "values"))[many]
            words = f"{self.length or 'a list of'} {words}" if many else words
        bounds = {"at least": self.low, "above": self.above, "at most": self.high, "below": self.below}
        told = " and".join(f" {word} {bound}" for word, bound in bounds.items() if bound is not None)
        words += told or " that is finite" * (kind is float and not many)
        words += f", {self.rule[0]}" if self.rule else ""
        return words + f' or "{self.word}"' * bool(self.word) + " or None" * self.none

    def canonical(self, value):
        """Return `value` with every alias replaced by the name it stands for."""
        if isinstance(value, (list, tuple)):
            return type(value)(map(self.canonical, value))
        return self.aliases.get(value, value) if isinstance(value, str) else value

    def allows(self, value) -> bool:
        """Whether `value` is one of the values allowed."""
        if value is None or (self.default is None and self.of is None):
            return self.none or self.default is None
        if self.word and value == self.word:
            return True
        if isinstance(self.default, (list, tuple)):
            listed = isinstance(value, (list, tuple)) and len(value) == (self.length or len(value))
            allowed = listed and all(map(self._allows_one, value))
        else:
            allowed = self._allows_one(value)
        return allowed and (not self.rule or bool(self.rule[1](value)))

    def _kind(self) -> type | None:
        if isinstance(self.default, (list, tuple)):
            first = next(iter([*self.default, *self.choices]), None)
            return self.of or (None if first is None else type(first))
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
    """The defaults alone, of a dict of Keys and plain values, nested as it is."""
    return {
        name: values(key) if isinstance(key, dict) else key.default if isinstance(key, Key) else key
        for name, key in declared.items()
    }


def shown(value) -> str:
    """A value as messages have it: in one line, however long it is."""
    plain = isinstance(value, str) and len(value) <= 60 and value.isprintable()
    return f'"{value}"' if plain else _short.repr(value)
