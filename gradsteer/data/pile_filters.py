"""Piles as filters over response files: which responses have the verdicts that are asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Literal

from gradsteer.data.empty_piles import why_empty
from gradsteer.data.judged_texts import judged_texts
from gradsteer.data.leftovers import Say
from gradsteer.data.response_rows import Row, answer_token_ids, is_unanswered, matches, response_rows, verdict_of
from gradsteer.records import resolve_resource


@dataclass
class ResponseFilter:
    """Responses with given verdicts.

    Attributes:
        responses: a responses/NAME.jsonl file, or a list of such files.
        where: behavior -> required verdict. A response is kept if all match; unscored ones never match.
    """

    responses: str | list[str]
    where: dict[str, bool] = field(default_factory=dict)

    @property
    def files(self) -> list[str]:
        """The response files."""
        return [self.responses] if isinstance(self.responses, str) else list(self.responses)


@dataclass
class PileFilter(ResponseFilter):
    """A pile as a filter over response files.

    Attributes:
        responses: a responses/NAME.jsonl file, or a list of such files, which are taken as one sample.
        where: behavior -> required verdict. A response is kept if all match; unscored ones never match.
        also: further filters, joined by prompt: all samples of the same prompt must match there as well.
        length: of the matching responses, ``long`` keeps those with more tokens than their median and ``short`` those
            with fewer (as sampled, with the stop token, of the answer behind a thought; those at the median are in
            neither). A truncated reply (finish_reason ``length``) counts with the tokens it has, so if most are
            truncated, none is longer.
        as_many_as: another pile: of the matching responses only as many as that one has are kept, drawn at random.
        seed: seed of that draw.
    """

    also: list[ResponseFilter] = field(default_factory=list)
    length: Literal["long", "short"] | None = None
    as_many_as: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses a setting without effect."""
        if self.as_many_as is None and self.seed != 0:
            raise ValueError(f"seed is {self.seed}, which has no effect without as_many_as")

    @property
    def verdicts_asked(self) -> dict[str, bool] | None:
        """The verdicts that define the pile; None if `also` or `length` filter it too."""
        return None if self.also or self.length is not None else self.where


def filtered_rows(name: str, source: PileFilter, say: Say) -> tuple[list[Row], int, int]:
    """The matching rows, the number of rows considered, and that of rows with a verdict on what is asked for.

    Args:
        name: the pile's name, for messages.
        source: the filter.
        say: takes a line on what is not used of the rows.

    Raises:
        ValueError: no row matches (the message lists what was searched), or a file lacks verdicts on what is asked.
        FileNotFoundError: there is no such file.
    """
    rows, looked_at = _rows_of(name, source, say, "responses ")
    kept = [(where, row) for where, row in rows if matches(row, source.where)]
    for other in source.also:
        others, looked = _rows_of(name, other, lambda text: None, "")
        by_prompt: dict[str, bool] = {}
        for _, row in others:
            by_prompt[row["prompt"]] = by_prompt.get(row["prompt"], True) and matches(row, other.where)
        kept = [(where, row) for where, row in kept if by_prompt.get(row["prompt"], False)]
        looked_at += looked
    if not kept:
        searched = ", and ".join(looked_at)
        raise ValueError(f"pile {name!r} is empty: none matched of {searched}{why_empty(rows, source.where)}")
    scored = sum(all(verdict_of(row, behavior) is not None for behavior in source.where) for _, row in rows)
    return _of_length(name, kept, source.length), len(rows), scored


def _rows_of(name: str, source: ResponseFilter, say: Say, noun: str) -> tuple[list[Row], list[str]]:
    """All rows of a filter's files, and what is said of each file that was looked at."""
    if not source.files or not all(source.files):
        raise ValueError(f"pile {name!r}: responses is {source.responses!r}; accepted: a file, or a list of files")
    rows: list[Row] = []
    looked_at = []
    for path in source.files:
        found = _required_rows(name, path, say)
        if len(source.files) > 1 and "token_ids" not in found[0][1]:
            raise ValueError(f"pile {name!r}: {path!r} holds texts; accepted in a list: files of sampled responses")
        _check_behaviors(name, path, found, source.where)
        rows += found
        looked_at.append(f"{len(found)} {noun}of {path!r} (where {source.where})")
    return rows, looked_at


def _of_length(name: str, rows: list[Row], length: str | None) -> list[Row]:
    """The rows with more (long) or fewer (short) sampled tokens than their median; of thoughts, the answers'."""
    if length is None:
        return rows
    if length not in ("long", "short"):
        raise ValueError(f"pile {name!r}: length is {length!r}; accepted: long, short")
    for where, row in rows:
        if not isinstance(row.get("token_ids"), list):
            raise ValueError(f"{where}: token_ids is {row.get('token_ids')!r}; length needs the list of token ids")
    rows = [(where, row) for where, row in rows if not is_unanswered(row)]
    if not rows:
        raise ValueError(f"pile {name!r} is empty: every matching response ended within its thought")
    middle = median(len(answer_token_ids(row)) for _, row in rows)
    sign = 1 if length == "long" else -1
    kept = [(where, row) for where, row in rows if sign * (len(answer_token_ids(row)) - middle) > 0]
    if not kept:
        cut = sum(row["finish_reason"] == "length" for _, row in rows)
        raise ValueError(
            f"pile {name!r} is empty: of {len(rows)} matching responses, {cut} of them truncated, none is "
            f"{'longer' if sign > 0 else 'shorter'} than their median of {middle:g} tokens"
        )
    return kept


def _required_rows(name: str, responses: str, say: Say) -> list[Row]:
    path = resolve_resource(responses)
    if not Path(path).is_file():
        raise FileNotFoundError(
            f"pile {name!r}: no response file at {responses!r}; accepted: a responses/NAME.jsonl that evaluate wrote"
        )
    rows = response_rows(path)
    if rows is None and (rows := judged_texts(path, say)) is None:
        raise ValueError(
            f"pile {name!r}: {responses!r} holds no responses with verdicts; accepted: a responses/NAME.jsonl, rows of "
            '{"prompt", "completion", "verdicts": {BEHAVIOR: true}}, or by another column '
            f"{{path: {responses}, where: {{COLUMN: VALUE}}}}"
        )
    return rows


def _check_behaviors(name: str, path: str, rows: list[Row], where: Mapping[str, bool]) -> None:
    known = sorted({behavior for _, row in rows for behavior in row.get("verdicts", {})})
    for behavior in where:
        if behavior not in known:
            raise ValueError(
                f"pile {name!r}: {path!r} has no verdicts on {behavior!r}; it has: {', '.join(known) or 'none'}"
            )
