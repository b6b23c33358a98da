"""The declarations of config keys: `Key` and `DecidingKey`, and parts that several methods have."""

from collections.abc import Callable
from dataclasses import dataclass

from .beside_dassl import Key


@dataclass(frozen=True)
class DecidingKey:
    """The keys that a deciding key of a method's node overrides, while its value is not 0, False or "".

    An overridden key that is set later, by another file or on the command line, switches the deciding key off. Setting
    both in one file, or both on the command line, is an error.

    Attributes:
        keys: the overridden keys: names in the same node, or full names such as OPTIM.LR.
        agrees: function of (key, value, value of the deciding key) that returns whether an overridden key at a value
            means the same as the deciding key.
        refused: whether setting an overridden key later is an error too. In some originals the deciding key always
            takes precedence.
    """

    keys: tuple[str, ...]
    agrees: Callable[[str, object, object], bool] = lambda key, value, deciding: False
    refused: bool = False


TEMPLATE = Key("", rule=('with one {} where the class name goes, or ""', lambda t: not t or t.count("{}") == 1))
DESCRIPTIONS = {  # of methods whose frozen side may have sentences in place of a template: see descriptions.py
    "DESCRIPTIONS": "",  # JSON file {class: [sentence, ...]}; "" = none
    "DESCRIPTIONS_SHA256": "",  # its checksum, filled in; another one is refused
}
SOME = ("at least one", len)  # a rule for lists

__all__ = ["DESCRIPTIONS", "SOME", "TEMPLATE", "DecidingKey", "Key"]
