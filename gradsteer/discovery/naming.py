"""A group in words: what its responses say more than the rest, and patterns that tell it."""

import re
from collections.abc import Sequence

import numpy as np

from gradsteer.discovery.ngrams import GrownNgram, grown_ngrams, ngrams_of

_MOST_PATTERNS = 6
_GAIN = 0.005  # in F1, that another pattern must bring
_TITLE = 3


def words_against_rest(
    texts: Sequence[str],
    prompts: Sequence[str],
    members: np.ndarray,
    *,
    most: int = 12,
    certain: bool = True,
    seed: int = 0,
) -> list[GrownNgram]:
    """The n-grams of a group's texts against all other texts.

    Args:
        texts: of the responses; of a group, better those of its spans.
        prompts: of each.
        members: (responses,) bool.
        most: so many at most.
        certain: see `grown_ngrams`.
        seed: of the bootstrap.
    """
    sides = [[place for place in range(len(texts)) if bool(members[place]) == side] for side in (True, False)]
    (ours, theirs), (asked, others) = (
        [[values[place] for place in side] for side in sides] for values in (list(texts), list(prompts))
    )
    return grown_ngrams(ours, theirs, asked, others, most=most, certain=certain, seed=seed)


def title_of(words: Sequence[GrownNgram]) -> str:
    """A proposed name: the first n-grams that share no word."""
    chosen: list[str] = []
    for each in words:
        if not {*each.text.split()} & {word for other in chosen for word in other.split()}:
            chosen.append(each.text)
    return " / ".join(chosen[:_TITLE])


def patterns_of(texts: Sequence[str], members: np.ndarray, words: Sequence[GrownNgram]) -> list[str]:
    """Regular expressions any of which tells a group, added one by one as long as F1 on these texts grows.

    Args:
        texts: whole responses.
        members: (responses,) bool.
        words: candidates.

    Returns:
        At least one where there is a candidate.
    """
    held = [set(ngrams_of(text)) for text in texts]
    candidates = {each.text: np.array([each.text in ngrams for ngrams in held]) for each in words}
    chosen: list[str] = []
    told, best = np.zeros(len(texts), dtype=bool), 0.0
    while candidates and len(chosen) < _MOST_PATTERNS:
        scores = {text: f1_score(told | found, members) for text, found in candidates.items()}
        text = max(scores, key=lambda each: scores[each])
        if chosen and scores[text] < best + _GAIN:
            break
        told, best = told | candidates.pop(text), scores[text]
        chosen.append(text)
    return [r"\b" + r"\W+".join(re.escape(word) for word in text.split()) + r"\b" for text in chosen]


def f1_score(found: np.ndarray, truth: np.ndarray) -> float:
    """``2 |found and truth| / (|found| + |truth|)`` of two sets (responses,) bool; 0 where both are empty."""
    total = int(found.sum()) + int(truth.sum())
    return 2 * int((found & truth).sum()) / total if total else 0.0
