"""What a config key may be, declared beside its default."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Key:
    """A default with the values allowed; of a list or tuple, the bounds and choices are those of each entry.

    A plain value instead of a Key allows all values of its type.

    Attributes:
        default: value when nobody sets the key; its type is that of the key.
        low, high: bounds, themselves allowed.
        above, below: bounds, themselves not allowed.
        choices: the values allowed.
        none: whether None is allowed.
    """

    default: object
    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None
    choices: Sequence = ()
    none: bool = False

    def __str__(self):
        """The values allowed, in words."""
        if self.choices:
            return f"one of {list(self.choices)}"
        bounds = {"at least": self.low, "at most": self.high, "above": self.above, "below": self.below}
        words = " and ".join(f"{word} {bound}" for word, bound in bounds.items() if bound is not None)
        return f"{type(self.default).__name__} {words}".strip()

    def allows(self, value) -> bool:
        """Whether `value`, of the right type already, is one of the values allowed."""
        if value is None:
            return self.none or self.default is None
        if isinstance(value, (list, tuple)):
            return all(self.allows(entry) for entry in value)
        if self.choices:
            return value in self.choices
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return True
        return (
            math.isfinite(value)
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
