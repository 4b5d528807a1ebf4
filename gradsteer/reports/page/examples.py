"""Example responses chosen by a rule: the prompts of the largest, the median and the smallest effect of a vector."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradsteer.data.response_rows import answer_of, cluster_of, verdict_of
from gradsteer.reports.cells import condition_text
from gradsteer.reports.page.matches import Piece, pieces
from gradsteer.reports.page.visible import shortened_text
from gradsteer.reports.tradeoffs import Tradeoff

Row = Mapping[str, Any]
Responses = Mapping[str, list[Row]]  # prompt -> its responses, in the file's order
LONGEST = 1200  # characters of a response that are shown
_RANKS = "largest effect", "median effect", "smallest effect"


@dataclass(frozen=True)
class Reply:
    """What one condition answered to one prompt.

    Attributes:
        condition: its name.
        alpha: its steering coefficient; None of the base.
        parts: the text, what patterns match apart; empty where there is none.
        shown: behaviors that the judge found in it.
        remarks: what else is to be said of it.
        num_positive: of the prompt's scored replies under this condition, those that show the vector's behavior.
        num_scored: the scored ones.
    """

    condition: str
    alpha: float | None
    parts: list[Piece]
    shown: list[str]
    remarks: list[str]
    num_positive: int
    num_scored: int


@dataclass(frozen=True)
class Example:
    """One prompt under several conditions.

    Attributes:
        rank: why it is here.
        place: of how many prompts by effect it is the how-manieth, counted from 1.
        num_prompts: of them.
        effect: share of its replies that show the behavior under the first of the two steps, less the second's.
        prompt: its text.
        replies: of base, anchor and both steps, as far as they were sampled.
    """

    rank: str
    place: int
    num_prompts: int
    effect: float
    prompt: str
    replies: list[Reply]


@dataclass(frozen=True)
class Examples:
    """The examples of one vector.

    Attributes:
        vector: its name.
        behavior: that it is of.
        raises: the condition that should raise the behavior.
        reduces: the one that should reduce it.
        chosen: the examples.
    """

    vector: str
    behavior: str
    raises: str
    reduces: str
    chosen: list[Example]


def choose_examples(
    compared: Tradeoff, responses_of: Callable[[str], Responses], patterns: Mapping[str, Sequence[str]]
) -> Examples | None:
    """Three prompts of a vector: by the share of their replies that show its behavior under -alpha less under +alpha.

    The doses are the largest of each sign; where one sign was not sampled, the anchor stands for it. Prompts without a
    scored reply on either side have no effect. Prompts of equal effect are in the order of the file. Of each condition
    the first sample is shown.

    Args:
        compared: the vector's conditions.
        responses_of: a condition's name -> its responses by prompt.
        patterns: behavior -> regular expressions whose matches are marked.

    Returns:
        None where no prompt can be compared.
    """
    raising, reducing = compared.curve[0], compared.curve[-1]
    up, down = responses_of(raising["name"]), responses_of(reducing["name"])
    effects: dict[str, float] = {}
    for prompt, rows in up.items():
        after, before = _counts(rows, compared.target), _counts(down.get(prompt, []), compared.target)
        if after[1] and before[1]:
            effects[prompt] = after[0] / after[1] - before[0] / before[1]
    ranked = sorted(effects, key=lambda prompt: -effects[prompt])
    if not ranked or raising is reducing:
        return None
    anchor = [row for row in compared.curve if row["kind"] == "anchor"]
    rows = [*([compared.base] if compared.base else []), *anchor, reducing, raising]
    shown = [(row, responses_of(row["name"])) for row in {row["name"]: row for row in rows}.values()]
    places: dict[int, str] = {}
    for place, rank in zip((0, (len(ranked) - 1) // 2, len(ranked) - 1), _RANKS, strict=True):
        places.setdefault(place, rank)  # of one or two prompts
    chosen = [
        Example(
            rank,
            place + 1,
            len(ranked),
            effects[ranked[place]],
            up[ranked[place]][0]["prompt"],
            [
                _reply(row, replies[ranked[place]], compared.target, patterns)
                for row, replies in shown
                if ranked[place] in replies
            ],
        )
        for place, rank in places.items()
    ]
    return Examples(compared.name, compared.target, raising["name"], reducing["name"], chosen)


def by_prompt(rows: Sequence[Row]) -> Responses:
    """The responses of a file by prompt; rows that are none are left out."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        texts = isinstance(row.get("prompt"), str) and isinstance(row.get("completion"), str)
        if texts and isinstance(row.get("answer"), str | None) and isinstance(row.get("verdicts"), dict):
            found.setdefault(cluster_of(row), []).append(row)
    return found


def _counts(rows: Sequence[Row], behavior: str) -> tuple[int, int]:
    """How many replies show a behavior, and how many are scored."""
    verdicts = [verdict for row in rows if isinstance(verdict := verdict_of(row, behavior), bool)]
    return sum(verdicts), len(verdicts)


def _reply(condition: Row, rows: Sequence[Row], target: str, patterns: Mapping[str, Sequence[str]]) -> Reply:
    row = rows[0]
    answer = answer_of(row)
    text, cut = shortened_text(answer or "", LONGEST)
    remarks = []
    if row.get("failed"):
        remarks.append(f"nothing was sampled: {row['failed']}")
    elif answer is None:
        remarks.append("ended within its thought")
    elif answer != row["completion"]:
        remarks.append("its thought is left out")
    if cut:
        remarks.append(f"{cut} more characters")
    if row.get("finish_reason") == "length":
        remarks.append("cut by the length limit")
    if row.get("degenerate"):
        remarks.append("degenerate: counted in no rate")
    shown = [name for name in row["verdicts"] if verdict_of(row, name) is True]
    unscored = [name for name, verdict in row["verdicts"].items() if verdict is None]
    remarks += [f"unscored: {name}" for name in unscored]
    marked = pieces(text, patterns, target)
    return Reply(condition_text(condition), condition["alpha"], marked, shown, remarks, *_counts(rows, target))
