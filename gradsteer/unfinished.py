"""What has been sampled of a condition that is not finished: each batch in a file of its own, as soon as it is there.

A run that was killed goes on from these files. Batches are planned from the whole list of work, and a batch that was
cut off is sampled again whole, so what comes out in the end is bit for bit what an undisturbed run gives. Knows of
batches of rows and of files; knows nothing of models or judges.
"""

import glob
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradsteer.records import read_jsonl, text_digest, write_json, write_jsonl

_PLAN, _MEASURED = "plan.json", "measured.json"


class UnfinishedCondition:
    """The batches of one condition under ``responses/.unfinished/CONDITION/``.

    Args:
        responses: the directory of responses.
        slug: the condition's name as a file name.
    """

    def __init__(self, responses: Path, slug: str) -> None:
        self.responses, self.slug = responses, slug
        self.directory = responses / ".unfinished" / slug

    def plan(self) -> dict[str, Any] | None:
        """What the batches that lie here were planned as; None where there are none.

        Raises:
            ValueError: the file is not readable.
        """
        path = self.directory / _PLAN
        if not path.is_file():
            return None
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            said = f"{str(path)!r} is not readable as JSON ({error}); delete its directory to start afresh"
            raise ValueError(said) from error
        return found

    def begin(self, plan: Mapping[str, Any], *, overwrite: bool = False) -> bool:
        """Says what is about to be sampled, before the first batch.

        Args:
            plan: plain values; everything that decides what is sampled.
            overwrite: remove the batches of another plan instead of refusing to go on; those of the same one stay, so
                that the same command goes on after a kill.

        Returns:
            Whether there are batches of the same plan to go on from.

        Raises:
            ValueError: the batches that lie here are of another plan; names what differs.
        """
        found, wanted = self.plan(), json.loads(json.dumps(plan))
        if found is not None and found != wanted and overwrite:
            self.clear()
            found = None
        if found is None:
            write_json(self.directory / _PLAN, plan)
            return False
        if found != wanted:
            differs = sorted(key for key in {*found, *wanted} if found.get(key) != wanted.get(key))
            shown = ", ".join(
                f"{key} (now {_shown(wanted.get(key))}, then {_shown(found.get(key))})" for key in differs
            )
            raise ValueError(
                f"{str(self.directory)!r} holds responses that another configuration sampled: it differs in {shown}. "
                "Go on with that configuration, choose another --output_dir, or start afresh with --overwrite true"
            )
        return True

    def read(self, number: int) -> list[dict[str, Any]] | None:
        """The rows of a batch; None where it was not sampled."""
        path = self._batch(number)
        return [row for _, row in read_jsonl(path)] if path.is_file() else None

    def write(self, number: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keeps a batch: wholly, or not at all.

        Raises:
            OSError: the disk is full, say; names the file, and that what is there already is kept.
        """
        path = self._batch(number)
        try:
            write_jsonl(path, rows)
        except OSError as error:
            lost = f"the responses of batch {number} could not be kept; those before it are, and the same command goes"
            raise OSError(error.errno, f"{error.strerror}: {lost} on", str(path)) from error

    def measured(self) -> dict[str, Any] | None:
        """What was measured of the condition's weights; None where nothing was yet."""
        path = self.directory / _MEASURED
        if not path.is_file():
            return None
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def keep_measured(self, values: Mapping[str, Any]) -> None:
        """Keeps what was measured of the condition's weights."""
        write_json(self.directory / _MEASURED, values)

    def clear(self) -> None:
        """Removes everything; and the directory above, where it is empty then."""
        shutil.rmtree(self.directory, ignore_errors=True)
        for path in self.responses.glob(f".{glob.escape(self.slug)}.*.tmp.jsonl"):  # of a run that was killed
            path.unlink(missing_ok=True)
        if self.directory.parent.is_dir() and not any(self.directory.parent.iterdir()):
            self.directory.parent.rmdir()

    def _batch(self, number: int) -> Path:
        return self.directory / f"{number:06d}.jsonl"


def _shown(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return text if len(text) <= 60 else f"digest {text_digest(text)[:12]}"
