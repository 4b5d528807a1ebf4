"""Where in a sampled reply its class was decided: the place that a judge names in its text, in tokens."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradsteer.data.response_rows import Row, answer_of, answer_token_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_WAYS = "accepted: responses that a KeywordJudge judged (of evaluate, or of judge --write)"


def why_nothing_is_decided(rows: Sequence[Row], asked: Mapping[str, bool] | None) -> str | None:
    """Why a pile's replies are not decided before they end; None if they can be.

    Args:
        rows: the pile's.
        asked: the verdicts that make it; None where other things do.

    Raises:
        ValueError: a row's ``decided`` is none; names it.
    """
    if not asked:
        return (
            "its replies are not chosen by their verdicts alone; accepted: {responses: FILE, where: {BEHAVIOR: true}}"
        )
    if (false := next((behavior for behavior, verdict in asked.items() if not verdict), None)) is not None:
        return f"it asks for {false}: false, which is open until a reply ends"
    for where, row in rows:
        decided = row.get("decided")
        if decided is None:
            return (
                f"{where} does not say where its verdicts were decided, as judges that look at the whole reply do not, "
                f"nor do responses of earlier versions; {_WAYS}"
            )
        places = list(decided.values()) if isinstance(decided, dict) else None
        if places is None or not all(type(place) is int and place > 0 for place in places):
            raise ValueError(f"{where}: decided is {decided!r:.80}; accepted: behaviors with numbers of characters")
    return None


def decided_tokens(tokenizer: "PreTrainedTokenizerBase", row: Mapping[str, Any], asked: Collection[str]) -> int | None:
    """How many of a reply's tokens decide that it shows some behaviors, whatever follows them: the last one's place.

    Args:
        tokenizer: of the model that sampled it.
        row: of responses, with its ``decided``.
        asked: the behaviors that make its class, all of which it shows.

    Returns:
        At least 1; None where the end decides.
    """
    places = [row["decided"].get(behavior) for behavior in asked]
    text = answer_of(row)
    if text is None or None in places:
        return None
    start = text[: max(places)]
    token_ids, thought = answer_token_ids(row), len(row["token_ids"]) - len(answer_token_ids(row))

    def holds(count: int) -> bool:
        return start in str(tokenizer.decode(token_ids[:count], skip_special_tokens=True))

    low, high = 1, len(token_ids)
    if not holds(high):
        return None  # its text is not that of its tokens
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return thought + low
