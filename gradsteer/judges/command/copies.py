"""Copies of response files with another judge's verdicts, for piles from a better judge without sampling again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradsteer.judges import Verdicts
from gradsteer.judges.command.inputs import ResponseFile
from gradsteer.records import read_jsonl, write_jsonl

_REPLACED = ("verdicts", "unscored", "decided", "judge")


def check_copies(files: Sequence[ResponseFile], directory: Path, fingerprint: str, *, overwrite: bool) -> None:
    """Refuses what would lose a file: before anything is asked.

    Args:
        files: that are to be copied.
        directory: where to.
        fingerprint: the judge's. Its earlier copies of the same responses may be written again.
        overwrite: whether other files may be replaced too; the files that are read never are.

    Raises:
        ValueError: two files have one name, a copy would replace a file that is read, or another file.
    """
    names: dict[str, str] = {}
    read = {Path(file.path).resolve() for file in files}
    for file in files:
        name = Path(file.path).name
        if name in names:
            raise ValueError(f"--write: {names[name]} and {file.path} would be copied to one file, {directory / name}")
        names[name] = file.path
        target = directory / name
        if target.resolve() in read:
            raise ValueError(f"--write {str(directory)!r} would replace {str(target)!r}, which is read; name another")
        if target.exists() and not overwrite and not _is_earlier_copy(target, file, fingerprint):
            raise ValueError(
                f"--write {str(directory)!r} would replace {str(target)!r}, which is no copy of {file.path} by this "
                "judge; name another directory, or replace it with --overwrite true"
            )


def write_copy(file: ResponseFile, verdicts: Sequence[Verdicts], directory: Path, fingerprint: str) -> Path:
    """Writes a file's rows with other verdicts; every other key stays as it is.

    Args:
        file: the responses.
        verdicts: (responses,) the judge's.
        directory: where the copy goes, under the file's name.
        fingerprint: the judge's, as each row's ``judge``.
    """
    target = directory / Path(file.path).name
    write_jsonl(
        target,
        (
            {
                **{key: value for key, value in row.items() if key != "decided"},
                **verdict.columns(),
                "judge": fingerprint,
            }
            for row, verdict in zip(file.rows, verdicts, strict=True)
        ),
    )
    return target


def _is_earlier_copy(target: Path, file: ResponseFile, fingerprint: str) -> bool:
    try:
        rows = [row for _, row in read_jsonl(target)]
    except ValueError:  # something else than JSON lines
        return False
    same_judge = all(row.get("judge") == fingerprint for row in rows)
    return same_judge and [_kept(row) for row in rows] == [_kept(row) for row in file.rows]


def _kept(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in _REPLACED}
