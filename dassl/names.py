"""Errors for unknown names, with the nearest valid name. This module needs only Python."""

from difflib import SequenceMatcher


def get_most_similar_str_to_a_from_b(a, b):
    """Return the string in the iterable `b` that is most similar to the string `a`, ignoring case.

    The result is None if `b` is empty, and the first of several strings that are equally similar.
    """
    return max(b, key=lambda s: SequenceMatcher(None, str(a).lower(), s.lower()).ratio(), default=None)


def check_availability(requested, available):
    """Check that the name `requested` is one of the names in `available`.

    Raises:
        ValueError: it is not; the message has the nearest name and all of them.
    """
    if requested not in available:
        nearest = get_most_similar_str_to_a_from_b(requested, available)
        names = ", ".join(available) or "none"
        raise ValueError(f'"{requested}" is not available, do you mean "{nearest}"? Available: {names}')
