"""Labelled sets: responses that people have labelled for whether they show a behavior.

Rows are ``{"prompt": "...", "completion": "...", "labels": {"bridge": true}}``, or have a column for each behavior;
``response`` stands for ``completion`` as well. A label is true or false, 1 or 0, "yes" or "no". Other keys are ignored,
so a row of responses/NAME.jsonl with labels added will do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradsteer.data.cells import is_empty, lookup, read_truth
from gradsteer.data.leftovers import Say, warn
from gradsteer.data.response_rows import prompt_digest
from gradsteer.data.sources import Columns, DataSource
from gradsteer.data.thoughts import split_text
from gradsteer.evaluation.judge_error import JudgeError
from gradsteer.judges.base import Exchange, Judge, Verdicts

_EXAMPLE = '{"prompt": "...", "completion": "...", "labels": {"bridge": true}}'


@dataclass(frozen=True)
class LabelledSet:
    """Responses with labels, in the file's order.

    Attributes:
        path: the file.
        exchanges: (responses,) what was labelled.
        labels: (responses,) behavior -> whether the response shows it; a response need not be labelled for all.
    """

    path: str
    exchanges: tuple[Exchange, ...]
    labels: tuple[dict[str, bool], ...]

    def __len__(self) -> int:
        return len(self.exchanges)

    @property
    def behaviors(self) -> tuple[str, ...]:
        """The behaviors that any response is labelled for, in the file's order."""
        return tuple(dict.fromkeys(behavior for labels in self.labels for behavior in labels))

    def errors(self, judge: Judge) -> dict[str, JudgeError]:
        """Judges the labelled responses and counts how often the judge is right; see `errors_of`."""
        return self.errors_of(judge.behaviors, judge.judge(self.exchanges))

    def errors_of(self, behaviors: Sequence[str], verdicts: Sequence[Verdicts]) -> dict[str, JudgeError]:
        """How often verdicts are right.

        Args:
            behaviors: those that the verdicts are on.
            verdicts: (responses,) on `exchanges`, in their order.

        Returns:
            Behavior -> counts, for each of `behaviors` that is labelled, in their order.
        """
        found = {}
        for behavior in behaviors:
            rows = [number for number, labels in enumerate(self.labels) if behavior in labels]
            if rows:
                found[behavior] = JudgeError.measure(
                    [self.labels[row][behavior] for row in rows],
                    [verdicts[row].values[behavior] for row in rows],
                    [prompt_digest(self.exchanges[row].prompt) for row in rows],
                )
        return found

    def check(self, judge: str, behaviors: Sequence[str]) -> None:
        """Refuses a set that says nothing of a judge.

        Args:
            judge: its name, for the message.
            behaviors: those that it judges.

        Raises:
            ValueError: none of the judge's behaviors is labelled.
        """
        if not set(behaviors) & set(self.behaviors):
            raise ValueError(
                f"{self.path} labels {', '.join(self.behaviors)}, none of which the judge {judge!r} judges; accepted: "
                f"labels for {', '.join(behaviors)}"
            )


def read_labelled(source: str | DataSource, behaviors: Sequence[str], say: Say = warn) -> LabelledSet:
    """Reads a labelled set.

    Args:
        source: the file, or ``gradsteer://...``, or a choice of rows and columns; these name ``prompt``, ``completion``
            and behaviors.
        behaviors: those that are judged; a label for another is most often a name that was mistyped.
        say: takes a line on the rows that were chosen.

    Raises:
        ValueError: there is no such file, it is empty, or a line is not as it should be, which names ``file:line``: a
            key is missing or holds something else, a label is for a behavior that is not judged, or a response is
            labelled twice, once true and once false.
    """
    source = DataSource.of(source)
    columns = source.columns or {}
    for name in columns:
        if name not in ("prompt", "completion", *behaviors):
            accepted = ", ".join(("prompt", "completion", *behaviors))
            raise ValueError(f"columns: unknown name {name!r}; accepted: {accepted}")
    found_rows: list[tuple[Exchange, dict[str, bool]]] = []
    said: dict[tuple[Exchange, str], tuple[bool, str]] = {}
    for where, row in source.read("train", say):
        exchange, found = _exchange(where, row, columns), _labels(where, row, behaviors, columns)
        for behavior, label in found.items():
            earlier, at = said.setdefault((exchange, behavior), (label, where.rpartition(":")[2]))
            if earlier is not label:
                was, now = str(earlier).lower(), str(label).lower()
                raise ValueError(
                    f"{where}: {behavior!r} is {now} for a response for which line {at} says {was}; accepted: one label"
                )
        if source.duplicates != "drop" or (exchange, found) not in found_rows:
            found_rows.append((exchange, found))
    found_rows = source.draw(found_rows, say)
    if not found_rows:
        raise ValueError(f"{source.path} has no line; accepted: lines such as {_EXAMPLE}")
    exchanges, labels = zip(*found_rows, strict=True)
    return LabelledSet(source.path, exchanges, labels)


def _exchange(where: str, row: Mapping[str, Any], columns: Columns) -> Exchange:
    given = [columns["completion"]] if "completion" in columns else ["completion", "response"]
    keys = [key for key in given if lookup(row, str(key)) is not None]
    if len(keys) != 1:
        has = "both 'completion' and 'response'" if keys else f"neither {' nor '.join(map(repr, given))}"
        raise ValueError(f"{where}: {has}; accepted: one of them, such as {_EXAMPLE}")
    texts = []
    for key in (columns.get("prompt", "prompt"), *keys):
        text = lookup(row, str(key))
        if not isinstance(text, str):
            raise ValueError(f"{where}: {key} is {text!r}; accepted: a text")
        texts.append(text)
    split = split_text(texts[1], known=False)  # judges are shown what is behind a thought
    if split is not None and split[1] is None:
        raise ValueError(f"{where}: {keys[0]} ends within its thought; accepted: a reply with an answer")
    return Exchange(texts[0], texts[1] if split is None else str(split[1]))


def _labels(where: str, row: Mapping[str, Any], behaviors: Sequence[str], columns: Columns) -> dict[str, bool]:
    labels = row.get("labels")
    if labels is None or any(name in behaviors for name in columns):
        cells = {name: lookup(row, str(columns.get(name, name))) for name in behaviors}
        labels = {name: cell for name, cell in cells.items() if not is_empty(cell)} or labels
    if not isinstance(labels, dict) or not labels:
        raise ValueError(
            f'{where}: labels is {labels!r}; accepted: a behavior and its label, such as {{"bridge": true}}, or a '
            f"column for each of {', '.join(behaviors)}"
        )
    found = {}
    for behavior, given in labels.items():
        if behavior not in behaviors:
            accepted = ", ".join(behaviors)
            raise ValueError(f"{where}: a label for {behavior!r}, which is not judged; accepted: {accepted}")
        label = read_truth(given)
        if label is None:
            raise ValueError(f"{where}: the label for {behavior!r} is {given!r}; accepted: true or false, 1 or 0")
        found[behavior] = label
    return found
