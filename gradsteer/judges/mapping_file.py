"""JSON files of what a judge looks for, by behavior."""

import json
from pathlib import Path
from typing import Any

from gradsteer.records import resolve_resource


def read_mapping(path: str, what: str, accepted: str) -> dict[str, Any]:
    """The mapping in a JSON file.

    Args:
        path: The file, or ``gradsteer://...``.
        what: What it holds, for messages, such as ``patterns``.
        accepted: An example, likewise.

    Raises:
        ValueError: If there is no such file, or it holds something else.
    """
    file = Path(resolve_resource(path)).expanduser()
    if not file.is_file():
        raise ValueError(f"no file of {what} at {path!r}; accepted: JSON such as {accepted}")
    try:
        found = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}:{error.lineno}: the {what} are not readable as JSON ({error.msg})") from error
    except KeyError as error:
        raise ValueError(f"{path}: {error} is given twice among the {what}; accepted: once") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: the {what} are not readable as text ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path!r} holds a {type(found).__name__}; accepted: JSON such as {accepted}")
    return found


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's mapping, in which no key is lost.

    Raises:
        KeyError: a key stands there twice.
    """
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise KeyError(key)
        found[key] = value
    return found
