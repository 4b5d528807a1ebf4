"""How degenerate a set of responses is: loops, sameness, length, cut replies, refusals.

A behavior rate can fall because the model broke. These figures stand beside every rate, so that a broken
model is seen as broken. They know texts and token ids; they need neither a model nor a judge, and are rules
of thumb for comparing conditions over the same prompts, not measures on a scale of their own.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

# Shorter sentences ("Sure.", "Step two.") recur in good prose and in lists.
MIN_SENTENCE_WORDS = 3

# A refusal opens the reply; further in, the same words usually are about something else.
REFUSAL_OPENING_CHARS = 200

# Ends of lines; full stops, question and exclamation marks with what closes behind them, but not in "3.5".
_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]*_]*(?:\s+|$)|[\n\r]+")

_CANNOT = r"(?:can(?:no|')t|can not|could not|couldn't|won't|will not|(?:am|'m) (?:not able|unable) to)"
_DO_IT = (
    r"(?:help|assist|provide|give|offer|answer|do that|comply|support|fulfill?|generate|create|write|share"
    r"|discuss|engage|participate|recommend|promote|encourage|continue)"
)
_REFUSAL = re.compile(
    "|".join(
        (
            rf"\bI(?: really| simply| just)? ?{_CANNOT}(?: \w+)? {_DO_IT}\b",
            r"\bI(?:'m| am) sorry,? but\b",
            r"\bI (?:must|have to|need to) (?:decline|refuse)\b",
            r"\bI(?:'m| am) (?:not going|not comfortable|not allowed|not programmed) ?(?:to|with)?\b",
            r"\bI (?:do not|don't) feel comfortable\b",
            r"\bas an AI\b[^.!?]*\b(?:can(?:no|')t|can not|unable|not able|won't)\b",
            r"\bI (?:refuse|decline) to\b",
        )
    ),
    re.IGNORECASE,
)


def has_repeated_sentence(text: str) -> bool:
    """Whether a sentence of at least three words occurs more than once, as in the loops of a broken model.

    The two need not be neighbours, so that loops over several sentences count. Case, spacing and the marks
    around the words are ignored. A sentence ends at `.`, `!` or `?` before a space, or at the end of a line.
    A loop inside one sentence, and languages written without spaces, are not seen; `distinct_n` shows those.
    """
    seen = set()
    for sentence in _SENTENCE_END.split(text):
        words = tuple(re.findall(r"\w+(?:['’]\w+)*", sentence.lower()))
        if len(words) < MIN_SENTENCE_WORDS:
            continue
        if words in seen:
            return True
        seen.add(words)
    return False


def looks_like_refusal(text: str) -> bool:
    """Whether the reply opens as a refusal, by patterns of English refusals in its first 200 characters."""
    return _REFUSAL.search(text[:REFUSAL_OPENING_CHARS].replace("’", "'")) is not None


def distinct_n(sequences: Sequence[Sequence[Hashable]], n: int) -> float | None:
    """Distinct n-grams over all n-grams of all sequences together (Li et al. 2016, arXiv:1510.03055).

    It falls with the amount of text as well as with repetition: compare sets of about equal size only.

    Args:
        sequences: Token ids or words, one sequence a response; no n-gram spans two.
        n: The length of an n-gram, at least 1.

    Returns:
        In (0, 1]; None when no sequence has n items.

    Raises:
        ValueError: If `n` is below 1.
    """
    if n < 1:
        raise ValueError(f"n is {n}; it must be at least 1")
    grams = [tuple(sequence[start : start + n]) for sequence in sequences for start in range(len(sequence) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def mean_length(num_tokens: Sequence[int]) -> float | None:
    """The mean of the responses' lengths in tokens; None for none."""
    return sum(num_tokens) / len(num_tokens) if num_tokens else None


def repetition_share(texts: Sequence[str]) -> float | None:
    """The share of texts with a repeated sentence, in [0, 1]; None for none."""
    return _share([has_repeated_sentence(text) for text in texts])


def refusal_share(texts: Sequence[str]) -> float | None:
    """The share of texts that look like a refusal, in [0, 1]; None for none."""
    return _share([looks_like_refusal(text) for text in texts])


def unfinished_share(finish_reasons: Sequence[str]) -> float | None:
    """The share of responses cut at the length limit, in [0, 1]; None for none.

    Raises:
        ValueError: If a reason is neither `stop` nor `length`.
    """
    if unknown := set(finish_reasons) - {"stop", "length"}:
        raise ValueError(f"finish_reason is {sorted(unknown)[0]!r}; it must be 'stop' or 'length'")
    return _share([reason == "length" for reason in finish_reasons])


def response_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The `metrics` of a condition in `results.json`.

    Args:
        rows: Responses with `completion`, `token_ids` (as sampled, a stop token included) and
            `finish_reason`.

    Returns:
        `perplexity`, None here: it needs a model and held-out text; `repetition`; `distinct_2`, over token
        ids, which show the sameness of text without words too; `mean_length` in token ids; `unfinished`;
        `refusal`. Each is None where there is nothing to count, never NaN.
    """
    texts = [row["completion"] for row in rows]
    token_ids = [row["token_ids"] for row in rows]
    return {
        "perplexity": None,
        "repetition": repetition_share(texts),
        "distinct_2": distinct_n(token_ids, 2),
        "mean_length": mean_length([len(ids) for ids in token_ids]),
        "unfinished": unfinished_share([row["finish_reason"] for row in rows]),
        "refusal": refusal_share(texts),
    }


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None
