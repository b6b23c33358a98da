"""`Key`, where a method's `defaults` find it beside the original Dassl too, whose config checks no value."""

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


TEMPLATE = Key("", rule=('with one {} where the class name goes, or ""', lambda t: not t or t.count("{}") == 1))
SOME = ("at least one", len)  # a rule of lists

__all__ = ["SOME", "TEMPLATE", "Key", "values"]
