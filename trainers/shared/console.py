"""The function of `dassl.console`, with a substitute for the original Dassl, which always prints."""

try:
    from dassl.console import say
except ImportError:
    say = print

__all__ = ["say"]
