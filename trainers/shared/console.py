"""`dassl.console`, where a method finds it beside the original Dassl too, which prints always."""

try:
    from dassl.console import say
except ImportError:
    say = print

__all__ = ["say"]
