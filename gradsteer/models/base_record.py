"""What a model was finetuned from, as `fit` notes it in the model's directory, or as an adapter's config says it."""

import json
import os
from pathlib import Path
from typing import Any

from gradsteer.models.adapters import read_adapter

BASE_RECORD = "gradsteer.json"  # in an anchor's directory


def record_base(base: str, anchor: Path, fingerprint: str | None = None) -> None:
    """Notes in a model's directory what it was finetuned from; `recorded_base` reads it.

    Args:
        base: directory or hub id.
        anchor: the model's directory.
        fingerprint: of the base's weights, where the anchor is an adapter on them.
    """
    path = Path(base)
    recorded = base
    if path.is_dir():
        try:
            recorded = Path(os.path.relpath(path, anchor)).as_posix()
        except ValueError:  # on another drive of Windows, which no path leads to
            recorded = str(path.absolute())
    said = {"base": recorded} | ({} if fingerprint is None else {"base_fingerprint": fingerprint})
    (anchor / BASE_RECORD).write_text(json.dumps(said) + "\n", encoding="utf-8")


def recorded_base(anchor: str) -> str | None:
    """What a model in a directory was finetuned from, as it says itself; None where it does not say.

    A directory is recorded by its path from the anchor's, so that both may be moved together.
    """
    said = _record(anchor)
    if said is None:
        adapter = read_adapter(anchor)
        return None if adapter is None else adapter.said_base
    recorded: str = said["base"]
    beside = Path(os.path.normpath(Path(anchor) / recorded))
    # a path is meant from the anchor's directory, never from wherever the command runs
    return str(beside) if beside.is_dir() or recorded.startswith(".") else recorded


def recorded_fingerprint(anchor: str | Path) -> str | None:
    """The fingerprint of the base that an adapter was trained on; None where its directory does not say."""
    said = (_record(anchor) or {}).get("base_fingerprint")
    return said if isinstance(said, str) else None


def _record(anchor: str | Path) -> dict[str, Any] | None:
    path = Path(anchor) / BASE_RECORD
    if not path.is_file():
        return None
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        recorded = said["base"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f'{str(path)!r} is not of the form {{"base": DIR_OR_HUB_ID}}') from error
    if not isinstance(recorded, str):
        raise ValueError(f'{str(path)!r} is not of the form {{"base": DIR_OR_HUB_ID}}')
    return dict(said)
