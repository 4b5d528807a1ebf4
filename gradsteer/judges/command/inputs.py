"""The response files to judge again, and their contents."""

import glob
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradsteer.data.response_rows import WITHOUT_ANSWER, answer_of, cluster_of, is_unanswered
from gradsteer.judges import Exchange, Verdicts
from gradsteer.records import read_jsonl

STORED = "file"
"""What the verdicts that stand in the files are called as a judge."""


@dataclass(frozen=True)
class ResponseFile:
    """Responses in the file's order.

    Attributes:
        path: the file.
        condition: that they were sampled under, as the rows say; the file's name where they do not.
        rows: (responses,) as they stand in the file.
        exchanges: (responses,) what a judge may see of each, of a thought the answer behind it; None for a row that
            says why it has no response, and for a reply that ended within its thought.
        stored: (responses,) the verdicts that stand there; None where they were not asked for.
    """

    path: str
    condition: str
    rows: tuple[dict[str, Any], ...]
    exchanges: tuple[Exchange | None, ...]
    stored: tuple[Verdicts, ...] | None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def prompts(self) -> list[str]:
        """(responses,) each one's prompt, by its digest: replies to one are alike, whatever they were sampled under."""
        return [cluster_of(row) for row in self.rows]

    @property
    def degenerate(self) -> list[bool]:
        """(responses,) whether each is an empty text or a loop, as the rows say."""
        return [bool(row.get("degenerate")) for row in self.rows]

    @property
    def judged(self) -> list[bool]:
        """(responses,) whether a missing verdict is the judge's doing: neither degenerate nor without an answer."""
        return [not row.get("degenerate") and not is_unanswered(row) for row in self.rows]

    def verdicts(self, found: Mapping[Exchange, Verdicts], behaviors: Sequence[str]) -> list[Verdicts]:
        """(responses,) verdicts from those of the different exchanges; a row without a response is unscored."""
        values: dict[str, bool | None] = dict.fromkeys(behaviors)
        return [
            found[exchange] if exchange is not None else Verdicts(dict(values), dict.fromkeys(values, _why(row)))
            for row, exchange in zip(self.rows, self.exchanges, strict=True)
        ]


def find_files(patterns: Sequence[str]) -> list[str]:
    """The files that names and globs mean, each once, in the order given.

    Raises:
        ValueError: a name or a glob means no file.
    """
    found: dict[Path, str] = {}
    for pattern in patterns:
        # a name that is a file is that file, whatever brackets are in it
        paths = [pattern] if Path(pattern).is_file() else sorted(glob.glob(pattern, recursive=True))
        paths = [path for path in paths if Path(path).is_file()]
        if not paths:
            raise ValueError(f"--responses {pattern!r} is no file; accepted: responses/NAME.jsonl files, or globs")
        for path in paths:
            found.setdefault(Path(path).resolve(), path)
    if not found:
        raise ValueError("--responses is empty; accepted: responses/NAME.jsonl files, or globs")
    return list(found.values())


def read_response_file(path: str, *, stored: bool) -> ResponseFile:
    """Reads a file of responses.

    Args:
        path: JSON lines with ``prompt`` and ``completion``; other keys are kept.
        stored: whether to read the verdicts in it.

    Raises:
        ValueError: a line is not as it should be; names ``file:line``.
    """
    places, rows = [], []
    for line, row in read_jsonl(path):
        where = f"{path}:{line}"
        for key in ("prompt", "completion"):
            if not isinstance(row.get(key), str) and not (key == "completion" and row.get("failed")):
                raise ValueError(f"{where}: {key} is {row.get(key)!r}; accepted: a text")
        if not isinstance(row.get("answer"), str | None):
            raise ValueError(f"{where}: answer is {row['answer']!r}; accepted: a text, or null for a reply without one")
        places.append(where)
        rows.append(row)
    if not rows:
        raise ValueError(f"{path} has no line; accepted: a file of responses")
    conditions = {row.get("condition") for row in rows}
    said = conditions.pop() if len(conditions) == 1 else None
    return ResponseFile(
        path=path,
        condition=said if isinstance(said, str) and said else Path(path).stem,
        rows=tuple(rows),
        exchanges=tuple(map(_exchange, rows)),
        stored=_stored(places, rows) if stored else None,
    )


def stored_verdicts(
    files: Sequence[ResponseFile], fingerprints: Mapping[str, str]
) -> tuple[list[list[Verdicts]], tuple[str, ...], dict[str, int]]:
    """The verdicts in the files, as one more judge's; those of a judge that is asked now do not count twice.

    Args:
        files: read with or without their verdicts.
        fingerprints: of the judges that are asked, by name.

    Returns:
        (files, responses) the verdicts; the behaviors that they are on, which are those of any file and none where no
        verdict is another judge's; and how many responses have the verdicts of each judge that is asked.
    """
    stored = [file.stored or () for file in files]
    names = tuple(dict.fromkeys(name for verdicts in stored for verdict in verdicts for name in verdict.values))
    own = {fingerprint: name for name, fingerprint in fingerprints.items()}
    num_repeated: dict[str, int] = {}
    found: list[list[Verdicts]] = []
    for file, verdicts in zip(files, stored, strict=True):
        found.append([])
        for row, verdict in zip(file.rows, verdicts, strict=False):
            judge = own.get(str(row.get("judge")))
            if judge is not None:
                num_repeated[judge] = num_repeated.get(judge, 0) + 1
                reason = f"the verdict of {judge} itself"
                found[-1].append(Verdicts(dict.fromkeys(names), dict.fromkeys(names, reason)))
                continue
            values = {name: verdict.values.get(name) for name in names}
            missing = [name for name, value in values.items() if value is None]
            found[-1].append(Verdicts(values, {name: verdict.unscored.get(name, "not judged") for name in missing}))
    others = sum(map(len, stored)) > sum(num_repeated.values())
    return found, names if others else (), num_repeated


def _stored(places: Sequence[str], rows: Sequence[dict[str, Any]]) -> tuple[Verdicts, ...]:
    for where, row in zip(places, rows, strict=True):
        verdicts = row.get("verdicts")
        if not isinstance(verdicts, dict) or not verdicts:
            raise ValueError(f"{where}: verdicts is {verdicts!r}; accepted: a verdict by behavior, or --stored false")
        for behavior, value in verdicts.items():
            if value is not None and not isinstance(value, bool):
                raise ValueError(f"{where}: the verdict on {behavior!r} is {value!r}; accepted: true, false or null")
    behaviors = dict.fromkeys(behavior for row in rows for behavior in row["verdicts"])
    found = []
    for row in rows:
        values = {behavior: row["verdicts"].get(behavior) for behavior in behaviors}
        missing = [behavior for behavior, value in values.items() if value is None]
        found.append(Verdicts(values, dict.fromkeys(missing, "no verdict stands in the file")))
    return tuple(found)


def _exchange(row: Mapping[str, Any]) -> Exchange | None:
    answer = None if row.get("failed") else answer_of(row)
    return None if answer is None else Exchange(row["prompt"], answer)


def _why(row: Mapping[str, Any]) -> str:
    failed = row.get("failed") or WITHOUT_ANSWER
    return failed if isinstance(failed, str) else "there is no response"
