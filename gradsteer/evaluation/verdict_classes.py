"""Classes of responses: the combinations of verdicts, which partition the responses where behaviors may co-occur."""

from collections.abc import Mapping, Sequence
from itertools import product

_MOST_BEHAVIORS = 4  # sixteen classes


def classes_of(behaviors: Sequence[str]) -> dict[str, dict[str, bool]]:
    """Every combination of verdicts by name: ``only bridge``, ``only recipe``, ``bridge and recipe``, ``neither``.

    Args:
        behaviors: their names; their order does not matter, so that classes forecast and measured have the same names.

    Returns:
        Name -> the verdict on each behavior; empty for one behavior, whose classes are its verdicts, and for more than
        four.
    """
    if not 2 <= len(behaviors) <= _MOST_BEHAVIORS:
        return {}
    found = {}
    for values in product((True, False), repeat=len(behaviors)):
        where = dict(zip(sorted(behaviors), values, strict=True))
        shown = [name for name, value in where.items() if value]
        nothing = "neither" if len(behaviors) == 2 else "none"
        name = " and ".join(shown) if len(shown) > 1 else f"only {shown[0]}" if shown else nothing
        while name in behaviors or name in found:  # a behavior may be called like one
            name = f"class {name}"
        found[name] = where
    return found


def in_class(verdicts: Mapping[str, bool | None], where: Mapping[str, bool]) -> bool | None:
    """Whether a response is of a class; None where one of its verdicts is unscored."""
    values = [verdicts.get(behavior) for behavior in where]
    if None in values:
        return None
    return all(verdicts[behavior] is wanted for behavior, wanted in where.items())
