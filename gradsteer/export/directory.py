"""The rules by which an export may replace a directory."""

from collections.abc import Mapping
from pathlib import Path

REPORT = "gradsteer-export.json"  # every number of an export; also how a directory is known to be one of ours


def check_target(to: str, *, overwrite: bool, inputs: Mapping[str, str | None]) -> Path:
    """Where an export goes, if it may go there.

    Args:
        to: the directory asked for.
        overwrite: whether an earlier export there may be replaced.
        inputs: option -> the path that it names, of everything the export reads (other text, such as a hub id, is
            fine): none may lie in a directory that is about to be replaced.

    Returns:
        The directory's full path.

    Raises:
        ValueError: it is a file, or holds files and may not be replaced.
    """
    target = Path(to).resolve()
    if target.exists() and not target.is_dir():
        raise ValueError(f"--to is {to!r}, a file; accepted: a new or empty directory")
    if not target.exists() or not any(target.iterdir()):
        return target
    if not (target / REPORT).is_file():
        raise ValueError(
            f"--to is {to!r}, which holds files and is no export of ours (there is no {REPORT} in it): it is never "
            "replaced; accepted: a new or empty directory, or an earlier export with --overwrite true"
        )
    if not overwrite:
        raise ValueError(f"--to is {to!r}, which holds an export; replace it with --overwrite true, or choose another")
    for option, path in inputs.items():
        if path is not None and Path(path).exists() and Path(path).resolve().is_relative_to(target):
            raise ValueError(f"{option} is {path!r}, which lies in --to {to!r}: the export would replace what it reads")
    return target
