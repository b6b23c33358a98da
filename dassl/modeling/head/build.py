"""The registry of heads."""

from dassl.infrastructure.console import say
from dassl.utils import Registry, check_availability

HEAD_REGISTRY = Registry("HEAD")


def build_head(name, verbose=True, **kwargs):
    """Build the registered head `name`; `kwargs` are its own, e.g. `in_features`.

    Raises:
        ValueError: there is none of that name.
    """
    check_availability(name, HEAD_REGISTRY.registered_names())
    if verbose:
        say(f"Head: {name}")
    return HEAD_REGISTRY.get(name)(**kwargs)
