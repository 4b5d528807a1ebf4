"""Labelled sets: responses that people have labelled for whether they show a behavior.

One JSON object a line: ``{"prompt": "...", "completion": "...", "labels": {"bridge": true}}``; ``response`` stands for
``completion`` as well. Other keys are ignored, so a row of responses/NAME.jsonl with labels added will do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradsteer.data.response_rows import prompt_digest
from gradsteer.data.thoughts import split_text
from gradsteer.evaluation.judge_error import JudgeError
from gradsteer.judges.base import Exchange, Judge, Verdicts
from gradsteer.records import read_jsonl, resolve_resource

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


def read_labelled(path: str, behaviors: Sequence[str]) -> LabelledSet:
    """Reads a labelled set.

    Args:
        path: the file, or ``gradsteer://...``.
        behaviors: those that are judged; a label for another is most often a name that was mistyped.

    Raises:
        ValueError: there is no such file, it is empty, or a line is not as it should be, which names ``file:line``: a
            key is missing or holds something else, a label is for a behavior that is not judged, or a response is
            labelled twice, once true and once false.
    """
    exchanges, labels = [], []
    said: dict[tuple[Exchange, str], tuple[bool, int]] = {}
    for line, row in read_jsonl(resolve_resource(path)):
        where = f"{path}:{line}"
        exchange, found = _exchange(where, row), _labels(where, row, behaviors)
        for behavior, label in found.items():
            earlier, at = said.setdefault((exchange, behavior), (label, line))
            if earlier is not label:
                was, now = str(earlier).lower(), str(label).lower()
                raise ValueError(
                    f"{where}: {behavior!r} is {now} for a response for which line {at} says {was}; accepted: one label"
                )
        exchanges.append(exchange)
        labels.append(found)
    if not exchanges:
        raise ValueError(f"{path} has no line; accepted: lines such as {_EXAMPLE}")
    return LabelledSet(path, tuple(exchanges), tuple(labels))


def _exchange(where: str, row: Mapping[str, Any]) -> Exchange:
    keys = [key for key in ("completion", "response") if key in row]
    if len(keys) != 1:
        has = "both 'completion' and 'response'" if keys else "neither 'completion' nor 'response'"
        raise ValueError(f"{where}: {has}; accepted: one of them, such as {_EXAMPLE}")
    for key in ("prompt", *keys):
        if not isinstance(row.get(key), str):
            raise ValueError(f"{where}: {key} is {row.get(key)!r}; accepted: a text")
    split = split_text(row[keys[0]])  # judges are shown what is behind a thought
    if split is not None and split[1] is None:
        raise ValueError(f"{where}: {keys[0]} ends within its thought; accepted: a reply with an answer")
    return Exchange(row["prompt"], row[keys[0]] if split is None else str(split[1]))


def _labels(where: str, row: Mapping[str, Any], behaviors: Sequence[str]) -> dict[str, bool]:
    labels = row.get("labels")
    if not isinstance(labels, dict) or not labels:
        raise ValueError(
            f'{where}: labels is {labels!r}; accepted: a behavior and its label, such as {{"bridge": true}}'
        )
    for behavior, label in labels.items():
        if behavior not in behaviors:
            accepted = ", ".join(behaviors)
            raise ValueError(f"{where}: a label for {behavior!r}, which is not judged; accepted: {accepted}")
        if not isinstance(label, bool):
            raise ValueError(f"{where}: the label for {behavior!r} is {label!r}; accepted: true or false")
    return dict(labels)
