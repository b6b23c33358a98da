"""Networks of other kinds by name; none is here, as those of Dassl serve its trainer DDAIG only."""

from dassl.absent import absent_names, check_registered
from dassl.infrastructure.console import say
from dassl.utils import Registry

NETWORK_REGISTRY = Registry("NETWORK")


def build_network(name, verbose=True, **kwargs):
    """Build the registered network `name`; `kwargs` are its own.

    Raises:
        ValueError: there is none of that name.
    """
    check_registered(name, NETWORK_REGISTRY, "dassl.modeling.network")
    if verbose:
        say(f"Network: {name}")
    return NETWORK_REGISTRY.get(name)(**kwargs)


__getattr__ = absent_names("dassl.modeling.network")
