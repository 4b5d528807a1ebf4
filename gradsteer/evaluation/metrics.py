"""How degenerate a set of responses is: loops, sameness, length, cut replies, refusals.

A behavior rate can fall because the model broke. These figures stand beside every rate, so that a broken
model is seen as broken. They know texts and token ids; they need neither a model nor a judge, and are rules
of thumb for comparing conditions over the same prompts, not measures on a scale of their own. torchmetrics has none
of them: its text metrics compare with references, but for perplexity (`gradsteer.evaluation.heldout` says why not that
one).
"""

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from gradsteer.data.response_rows import answer_of, answer_token_ids
from gradsteer.evaluation.degeneracy import compression_ratio, has_repeated_sentence, is_degenerate
from gradsteer.evaluation.refusals import looks_like_refusal


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


def mean_compression(texts: Sequence[str]) -> float | None:
    """The mean of the texts' compression ratios, each on its own, empty ones left out; None for none.

    It grows with the texts' length (`gradsteer.evaluation.degeneracy.compression_ratio`): read it beside the mean
    length.
    """
    ratios = [ratio for text in texts if (ratio := compression_ratio(text)) is not None]
    return sum(ratios) / len(ratios) if ratios else None


def response_metrics(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """The `metrics` of a condition in `results.json`.

    Args:
        rows: Responses with `completion`, `token_ids` (as sampled, a stop token included) and
            `finish_reason`. Rows that say why they were never sampled (`failed`) are left out.

    Returns:
        Those of a condition's metrics that are seen in its rows alone: `repetition`; `compression`, which grows with
        length; `distinct_1`, `distinct_2`, `distinct_3`, over token ids, which show the sameness of text without words
        too; `mean_length` in token ids; `unfinished`; `degenerate`, the empty ones, the loops and all
        that are marked `incoherent`; `incoherent`, where the rows say whether they are; `refusal`, over the rows
        that are not marked `degenerate`. Each is None where there is nothing to count, never NaN. Of a reply that
        holds a thought, the answer behind it is looked at; one that ended within its thought counts for `unfinished`
        and, where any reply holds a thought, for `unanswered`, the share of these, and for nothing else.
    """
    all_sampled = [row for row in rows if not row.get("failed")]
    answers = [answer_of(row) for row in all_sampled]
    sampled = [row for row, answer in zip(all_sampled, answers, strict=True) if answer is not None]
    texts = [answer for answer in answers if answer is not None]
    token_ids = [answer_token_ids(row) for row in sampled]
    clear = [text for row, text in zip(sampled, texts, strict=True) if not row.get("degenerate")]
    thinks = len(sampled) < len(all_sampled) or any("answer" in row for row in sampled)
    return {
        "repetition": repetition_share(texts),
        "compression": mean_compression(texts),
        "distinct_1": distinct_n(token_ids, 1),
        "distinct_2": distinct_n(token_ids, 2),
        "distinct_3": distinct_n(token_ids, 3),
        "mean_length": mean_length([len(ids) for ids in token_ids]),
        "unfinished": unfinished_share([row["finish_reason"] for row in all_sampled]),
        "degenerate": _share(
            [is_degenerate(text) or bool(row.get("incoherent")) for row, text in zip(sampled, texts, strict=True)]
        ),
        "incoherent": _share([row["incoherent"] for row in sampled if row.get("incoherent") is not None]),
        "refusal": refusal_share(clear),
        **({"unanswered": _share([answer is None for answer in answers])} if thinks else {}),
    }


def _share(flags: Sequence[bool]) -> float | None:
    return sum(flags) / len(flags) if flags else None
