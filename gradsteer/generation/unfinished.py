"""A condition's sampled batches while it is in progress, and a note of how it was sampled once it is finished.

A killed run resumes from these files. Batches are planned from the whole list of work, and an interrupted batch is
sampled again as a whole, so the result is bit-identical to an undisturbed run's. A note remains for each finished
condition, so that a later run with the same plan (with another judge or more doses, say) can reuse its responses.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradsteer.records import file_digest, is_leftover, read_json, read_jsonl, text_digest, write_json, write_jsonl

SETS = ("evaluation", "benign", "harmful")
_PLAN, _MEASURED = "plan.json", "measured.json"
_SAMPLED = ("completion", "token_ids", "finish_reason", "model", "temperature", "top_p", "max_new_tokens")
_THOUGHT = ("thought", "answer", "num_thought_tokens")  # of replies that hold one
_NAMES = {"digest": "the prompts or their seeds"}  # readable names for keys of the plan
Row = dict[str, Any]


class UnfinishedCondition:
    """The batches of one condition under ``responses/.unfinished/CONDITION/``.

    Args:
        responses: the directory of responses.
        slug: the condition's name as a file name.
    """

    def __init__(self, responses: Path, slug: str) -> None:
        self.responses, self.slug = responses, slug
        self.directory = responses / ".unfinished" / slug
        self._note = responses / ".sampled" / f"{slug}.json"
        self._again: dict[tuple[str, str, int], Row] = {}

    def plan(self) -> dict[str, Any] | None:
        """The plan of the existing batches; None if there are none.

        Raises:
            ValueError: the file is not readable.
        """
        return _read(self.directory / _PLAN)

    def check(self, plan: Mapping[str, Any]) -> None:
        """Refuses batches of another plan.

        Raises:
            ValueError: the existing batches have another plan; names what differs.
        """
        found, wanted = self.plan(), _plain(plan)
        if found is None or found == wanted:
            return
        differs = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
        shown = ", ".join(
            f"{_NAMES.get(key, key)} (now {_shown(wanted.get(key))}, then {_shown(found.get(key))})" for key in differs
        )
        raise ValueError(
            f"{str(self.directory)!r} holds responses that another configuration sampled: it differs in {shown}. "
            "Continue with that configuration, choose another --output_dir, or start over with --overwrite true"
        )

    def begin(self, plan: Mapping[str, Any], *, overwrite: bool = False) -> bool:
        """Records the plan before the first batch.

        Args:
            plan: everything that determines what is sampled, as plain values.
            overwrite: remove batches of another plan instead of refusing them. Batches of the same plan stay, so that
                the same command can resume after a kill.

        Returns:
            Whether there are responses of the same plan to resume from.

        Raises:
            ValueError: as `check`.
        """
        found, wanted = self.plan(), _plain(plan)
        if found == wanted:
            return True
        if not overwrite:
            self.check(plan)
        self.clear()  # batches whose plan was never written, or of another plan
        self._make_directory()
        note = _read(self._note) or {}
        known = note.get("plan") == wanted and note.get("files") == self._files()
        if known and note["measured"] is not None:
            write_json(self.directory / _MEASURED, note["measured"])
        write_json(self.directory / _PLAN, wanted)
        self._again = self._finished() if known else {}
        return known

    def has(self, number: int) -> bool:
        """Whether a batch is saved."""
        return self._batch(number).is_file()

    def read(self, number: int, planned: Sequence[Row]) -> list[Row] | None:
        """A batch's rows, from its file or from the condition's finished responses; None if it was not sampled.

        Args:
            number: the batch's number in the plan.
            planned: its planned rows, with ``set``, ``id`` and ``sample``.
        """
        path = self._batch(number)
        if path.is_file():
            return [row for _, row in read_jsonl(path)]
        found = [self._again.get((row["set"], row["id"], row["sample"])) for row in planned]
        if not found or None in found:
            return None
        return [{**row, **again} for row, again in zip(planned, found, strict=True) if again is not None]

    def write(self, number: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Saves a batch, atomically.

        Raises:
            OSError: for example, the disk is full; names the file and says that earlier batches are kept.
        """
        path = self._batch(number)
        try:
            write_jsonl(path, rows)
        except OSError as error:
            lost = f"batch {number} could not be saved; earlier batches are kept, and the same command resumes there"
            raise OSError(error.errno, f"{os.strerror(error.errno or 0)}: {lost}", str(path)) from error

    def measured(self, of: str) -> dict[str, Any] | None:
        """Saved measurements of the condition's weights on a text; None if there are none.

        Args:
            of: the text's digest; measurements on another text are ignored.
        """
        found = _read(self.directory / _MEASURED) or {}
        return found["values"] if found.get("of") == of else None

    def keep_measured(self, of: str, values: Mapping[str, Any]) -> None:
        """Saves measurements of the condition's weights on the text with this digest."""
        write_json(self.directory / _MEASURED, {"of": of, "values": dict(values)})

    def finish(self) -> None:
        """Records how the condition's responses were sampled, and removes the batches."""
        plan = self.plan()
        if plan is not None:
            measured = _read(self.directory / _MEASURED)
            write_json(self._note, {"plan": plan, "measured": measured, "files": self._files()})
        self.clear()

    def clear(self) -> None:
        """Removes the batches, and the parent directory if it is then empty."""
        shutil.rmtree(self.directory, ignore_errors=True)
        for finished in map(self.responses_to, SETS):
            for path in finished.parent.glob(".*.tmp.jsonl"):  # left by a killed run
                if is_leftover(path, finished.stem):
                    path.unlink(missing_ok=True)
        # it is missing or not empty, or another command removed it first
        with contextlib.suppress(OSError):
            self.directory.parent.rmdir()

    def remove_responses(self) -> None:
        """Removes the batches, the finished responses and their note."""
        self.clear()
        for path in (*(self.responses_to(name) for name in SETS), self._note):
            path.unlink(missing_ok=True)

    def responses_to(self, name: str) -> Path:
        """The file of the finished responses to a set of prompts."""
        if name == "evaluation":
            return self.responses / f"{self.slug}.jsonl"
        return self.responses / "refusals" / f"{self.slug}.{name}.jsonl"

    def _make_directory(self) -> None:
        """Creates the directory, retrying if another command removes the empty parent at the same time."""
        while not self.directory.is_dir():
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
            except FileNotFoundError:
                continue
            except FileExistsError:  # also raised if the directory is removed between creation and check
                if any(path.is_file() or path.is_symlink() for path in (self.directory, self.directory.parent)):
                    raise

    def _files(self) -> dict[str, str]:
        """Digests of the finished responses, by set."""
        paths = {name: self.responses_to(name) for name in SETS}
        return {name: file_digest(path) for name, path in paths.items() if path.is_file()}

    def _finished(self) -> dict[tuple[str, str, int], Row]:
        found = {}
        for name in self._files():
            for _, row in read_jsonl(self.responses_to(name)):
                sampled = {key: row[key] for key in _SAMPLED}
                sampled |= {key: row[key] for key in _THOUGHT if key in row}
                if row["failed"]:
                    sampled["failed"] = row["failed"]
                found[name, row["id"], row["sample"]] = sampled
        return found

    def _batch(self, number: int) -> Path:
        return self.directory / f"{number:06d}.jsonl"


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}; delete its directory to start over") from error


def _plain(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The plan as it reads back from JSON."""
    found: dict[str, Any] = json.loads(json.dumps(plan))
    return found


def _shown(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 60 else f"digest {text_digest(text)[:12]}"
