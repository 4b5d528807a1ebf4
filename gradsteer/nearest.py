"""What was probably meant by a name that is not known."""

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (did you mean 'NAME'?)`` with the nearest known name, or nothing where none is near.

    Args:
        name: as it was given; dots part it, as in a key of a config.
        known: the accepted names.
    """
    names = sorted(known)
    bare = name.lstrip("-")
    ends = [each for each in names if each.lstrip("-").rpartition(".")[2] == bare.rpartition(".")[2]]
    near = difflib.get_close_matches(name, ends or names, n=1, cutoff=0.0 if len(ends) == 1 else 0.6)
    if not near and "." not in bare:  # a group left out, and a slip in the rest
        last = {each.rpartition(".")[2]: each for each in reversed(names)}
        near = [last[each] for each in difflib.get_close_matches(bare, last, n=1, cutoff=0.75)]
    return f" (did you mean {near[0]!r}?)" if near else ""
