"""`Key`, where a method's `defaults` find it beside the original Dassl too, whose config checks no value."""

from collections.abc import Callable
from dataclasses import dataclass

try:
    from dassl.config.keys import Key, values
except ImportError:

    class Key:
        def __init__(self, default, **_):
            self.default = default

        def allows(self, value) -> bool:
            return True

    def values(declared):
        return {
            name: values(key) if isinstance(key, dict) else key.default if isinstance(key, Key) else key
            for name, key in declared.items()
        }


@dataclass(frozen=True)
class Decides:
    """The keys that a key of a method's node decides in place of, while it is on: not 0, False or "".

    A key that is set later than it, by another file or on the command line, switches it off. Both in one file, or both
    on the command line, is an error.

    Attributes:
        keys: of the node, or dotted, as OPTIM.LR.
        agrees: whether a key at a value says the same as the deciding key does at its own: (key, value, deciding).
        refused: whether a later key is an error, too, as in originals that let the deciding key win.
    """

    keys: tuple[str, ...]
    agrees: Callable[[str, object, object], bool] = lambda key, value, deciding: False
    refused: bool = False


TEMPLATE = Key("", rule=('with one {} where the class name goes, or ""', lambda t: not t or t.count("{}") == 1))
SOME = ("at least one", len)  # a rule of lists

__all__ = ["SOME", "TEMPLATE", "Decides", "Key", "values"]
