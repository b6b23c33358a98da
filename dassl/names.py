"""Names that are not there, and the nearest that are. Nothing but Python is needed."""

from difflib import SequenceMatcher


def get_most_similar_str_to_a_from_b(a, b):
    """Return the string in `b`, an iterable, that is most similar to the string `a`, ignoring case.

    None if `b` is empty; the first of several that are equally similar.
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
