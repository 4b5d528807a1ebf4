"""Rows of hub datasets, dataset directories and `save_to_disk` folders, through the `datasets` library."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gradsteer.data.cells import Row

_HUB_ID = r"[\w-][\w.-]*(/[\w.-]+)?"


def is_hub_id(text: str) -> bool:
    """Whether a text has the form NAME or OWNER/NAME."""
    return re.fullmatch(_HUB_ID, text) is not None


def read_dataset(
    path: str, name: str | None, split: str | None, default_split: str, revision: str | None
) -> Iterator[tuple[str, Row]]:
    """The rows of a dataset, each with ``path[split]:row``.

    Args:
        path: a local directory or a hub id.
        name: configuration; not every dataset has several.
        split: split; None takes `default_split`, or the only rows of a folder without splits.
        default_split: see `split`.
        revision: commit, branch or tag on the hub.

    Raises:
        ValueError: it cannot be loaded, or has no such configuration or split; says what to do.
    """
    import datasets

    directory = Path(path)
    try:
        if (directory / "dataset_dict.json").is_file():
            rows = _split_of(path, dict(datasets.load_from_disk(path)), name, split or default_split)
        elif (directory / "state.json").is_file():
            rows = datasets.load_from_disk(path)
            if name is not None or split not in (None, str(rows.split)):
                given = {"name": name, "split": split}
                raise ValueError(f"one set without configurations, split {str(rows.split)!r}; {given} has no effect")
        else:
            rows = datasets.load_dataset(path, name, split=split or default_split, revision=revision)
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: {_advice(path, str(error), error.__cause__)}") from error
    shown = split or default_split if name is None else f"{name}, {split or default_split}"
    for number, row in enumerate(rows, start=1):
        yield f"{path}[{shown}]:{number}", row


def _split_of(path: str, splits: dict[str, Any], name: str | None, split: str) -> Any:
    if name is not None:
        raise ValueError(f"a save_to_disk folder, which has no configuration {name!r}")
    if split not in splits:
        raise ValueError(f"Unknown split {split!r}. Should be one of {list(splits)}.")
    return splits[split]


def _advice(path: str, said: str, cause: BaseException | None) -> str:
    """What a failure to load means, and what to do."""
    said = said.partition("\nExample of usage")[0]
    lower = said.lower()
    if "gated dataset" in lower or re.search(r"\b40[13]\b", said):
        return (
            f"the dataset's licence has to be accepted first, at https://huggingface.co/datasets/{path}; then log in "
            f"(hf auth login, or HF_TOKEN) ({said})"
        )
    if "config name is missing" in lower or "builderconfig" in lower:
        return f"{said.rstrip('. ')}. Say which: {{path: {path}, name: CONFIGURATION}}"
    if "unknown split" in lower:
        return f"{said.rstrip('. ')}. Say which: {{path: {path}, split: SPLIT}}"
    if "scripts are no longer supported" in lower:
        return f"{said}. Read the copy that the hub makes: {{path: {path}, revision: refs/convert/parquet}}"
    if lower.startswith("revision"):
        return f"{said.rstrip('. ')}. Give another revision, or none"
    if Path(path).is_dir():
        why = "" if cause is None else f": {cause}"
        return f"not readable as a dataset directory ({said}{why}); accepted: one of save_to_disk, or of data files"
    return (
        f"no local file, and no dataset of that name ({said}); accepted: a file, or a hub id that "
        f"https://huggingface.co/datasets/{path} shows (a private one after hf auth login), with a connection"
    )
