"""Values in rows: dotted names, empty values, truth values, and values as a filter asks for them."""

from collections.abc import Iterator, Mapping, Set
from typing import Any

Row = Mapping[str, Any]

_TRUTH = {"true": True, "yes": True, "1": True, "1.0": True, "false": False, "no": False, "0": False, "0.0": False}


def lookup(row: Row, name: str) -> Any:
    """The value in a column; ``prompt.text`` is `text` inside of `prompt`, unless a column has that very name."""
    if name in row:
        return row[name]
    head, _, rest = name.partition(".")
    inner = row.get(head)
    return lookup(inner, rest) if rest and isinstance(inner, Mapping) else None


def has_column(row: Row, name: str) -> bool:
    """Whether a row has a column, even an empty one; see `lookup`."""
    head, _, rest = name.partition(".")
    inner = row.get(head)
    return name in row or (bool(rest) and isinstance(inner, Mapping) and has_column(inner, rest))


def is_empty(value: Any) -> bool:
    """Whether a value says nothing: null, NaN, a blank text, an empty list or mapping, also as JSON."""
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")
    return value is None or value != value or (isinstance(value, list | tuple | Mapping) and not value)


def list_columns(row: Row) -> str:
    """A row's columns, for messages."""
    return ", ".join(map(str, row)) or "none"


def unused_columns(row: Row, used: Set[str]) -> Iterator[str]:
    """Names of the columns that hold something and are not in `used`; of a partly used one, those inside of it."""
    for name, value in row.items():
        if name in used or is_empty(value):
            continue
        inside = {each.removeprefix(f"{name}.") for each in used if each.startswith(f"{name}.")}
        if inside and isinstance(value, Mapping):
            yield from (f"{name}.{inner}" for inner in unused_columns(value, inside))
        else:
            yield str(name)


def read_truth(value: Any) -> bool | None:
    """A truth value as people write it: true, 1, "true" or "yes", false, 0, "false" or "no"; None for anything else."""
    return _TRUTH.get(str(value).strip().lower()) if isinstance(value, bool | int | float | str) else None


def matches_value(value: Any, wanted: Any, where: str) -> bool:
    """Whether a value is the one that a filter asks for, or one of a list.

    Args:
        value: the row's.
        wanted: null asks for an empty value, true or false for that truth value however it is written, a number for
            an equal one, a text for the same text; a list for any of these.
        where: the value's location and name, for messages.

    Raises:
        ValueError: true or false is asked for, and the value is neither, nor empty.
    """
    if isinstance(wanted, list):
        return any(matches_value(value, each, where) for each in wanted)
    if wanted is None or is_empty(value):
        return wanted is None and is_empty(value)
    if isinstance(wanted, bool):
        found = read_truth(value)
        if found is None:
            raise ValueError(f"{where} is {value!r:.60}, which is neither true nor false; accepted: 0, 1, yes, no, ...")
        return found is wanted
    if isinstance(wanted, int | float):
        try:
            return float(value) == wanted
        except (TypeError, ValueError):
            return False
    return str(value) == str(wanted)
