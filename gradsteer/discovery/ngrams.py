"""The n-grams that grew most against the base's own samples: log-odds with a Dirichlet prior.

Monroe, Colaresi and Quinn 2008, "Fightin' words", Political Analysis 16:372, equations 16 and 19 to 22. With y_w the
count of an n-gram among the n of a side, and alpha_w its share of a prior of alpha_0 n-grams,

    delta_w = log (y_w + alpha_w) / (n + alpha_0 - y_w - alpha_w)  of the anchor  -  the same of the base
    Var(delta_w) = 1 / (y_w + alpha_w) of the anchor + 1 / (y_w + alpha_w) of the base

The prior is the pooled text of both, at 500 n-grams. The variance takes every n-gram for a draw by itself; replies
to one prompt are alike, so that of a bootstrap over prompts is taken where it is larger.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from gradsteer.evaluation.bootstrap import PromptBootstrap

PRIOR = 500.0
_WORD = re.compile(r"\w+(?:['’]\w+)?")
_NORMAL = 1.96
_FEWEST = 3  # responses that hold an n-gram
_DRAWS = 200


@dataclass(frozen=True)
class GrownNgram:
    """An n-gram, and how its odds differ between two sides.

    Attributes:
        text: its words.
        count: among the anchor's responses.
        count_before: among the base's.
        num_responses: of the anchor's that hold it.
        num_responses_before: of the base's.
        log_odds: delta, nats.
        ci_low: the 95% interval's lower end.
        ci_high: its upper end.
    """

    text: str
    count: int
    count_before: int
    num_responses: int
    num_responses_before: int
    log_odds: float
    ci_low: float
    ci_high: float

    def to_dict(self) -> dict[str, str | int | float]:
        """The fields by name, ready for JSON."""
        return asdict(self)


def words_of(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return [word.lower() for word in _WORD.findall(text)]


def ngrams_of(text: str, longest: int = 3) -> list[str]:
    """All n-grams of a text's words, up to a length."""
    words = words_of(text)
    return [" ".join(words[i : i + n]) for n in range(1, longest + 1) for i in range(len(words) - n + 1)]


def grown_ngrams(
    after: Sequence[str],
    before: Sequence[str],
    prompts_after: Sequence[str],
    prompts_before: Sequence[str],
    *,
    most: int = 20,
    longest: int = 3,
    prior: float = PRIOR,
    certain: bool = True,
    seed: int = 0,
) -> list[GrownNgram]:
    """The n-grams whose odds grew most, by the lower end of their interval; only those whose interval is above 0.

    An n-gram that stands within a longer one with the same counts says nothing more, and is left out.

    Args:
        after: texts of the anchor.
        before: texts of the base.
        prompts_after: of each text its prompt, or its digest.
        prompts_before: likewise.
        most: so many at most.
        longest: words of an n-gram at most.
        prior: alpha_0, in n-grams.
        certain: whether the interval has to be above 0; otherwise the odds alone.
        seed: of the bootstrap.
    """
    sides = [[Counter(ngrams_of(text, longest)) for text in texts] for texts in (after, before)]
    holding = [Counter(ngram for counts in side for ngram in counts) for side in sides]
    vocabulary = sorted(ngram for ngram, number in holding[0].items() if number >= _FEWEST)
    if not vocabulary:
        return []
    places = {ngram: place for place, ngram in enumerate(vocabulary)}
    names = {prompt: number for number, prompt in enumerate(dict.fromkeys([*prompts_after, *prompts_before]))}
    # (prompts, vocabulary) counts of each side, and (prompts,) of all n-grams
    counts = np.zeros((2, len(names), len(vocabulary)))
    totals = np.zeros((2, len(names)))
    for side, (texts, prompts) in enumerate(zip(sides, (prompts_after, prompts_before), strict=True)):
        for text, prompt in zip(texts, prompts, strict=True):
            totals[side, names[prompt]] += text.total()
            for ngram, count in text.items():
                if ngram in places:
                    counts[side, names[prompt], places[ngram]] += count
    whole = counts.sum(axis=1), totals.sum(axis=1)
    share = prior * whole[0].sum(axis=0) / whole[1].sum()
    delta = log_odds_ratio(whole[0], whole[1], share, prior)
    variance = (1 / (whole[0] + share)).sum(axis=0)
    bootstrap = PromptBootstrap.draw(np.arange(len(names)), draws=_DRAWS, seed=seed)
    drawn = np.stack([bootstrap.counts @ each for each in counts]), np.stack([bootstrap.counts @ t for t in totals])
    spread = log_odds_ratio(drawn[0], drawn[1][..., None], share, prior).var(axis=0)
    reach = _NORMAL * np.sqrt(np.maximum(variance, spread))
    found = [
        GrownNgram(
            ngram, int(whole[0][0, place]), int(whole[0][1, place]), holding[0][ngram], holding[1][ngram],
            float(delta[place]), float(delta[place] - reach[place]), float(delta[place] + reach[place]),
        )
        for ngram, place in places.items()
    ]  # fmt: skip
    kept = (each for each in found if (each.ci_low if certain else each.log_odds) > 0)
    grown = sorted(kept, key=lambda each: (-each.ci_low, each.text))
    return _without_parts(grown)[:most]


def log_odds_ratio(counts: np.ndarray, totals: np.ndarray, share: np.ndarray, prior: float) -> np.ndarray:
    """Delta (..., vocabulary), nats.

    Args:
        counts: (2, ..., vocabulary) of the anchor and of the base.
        totals: (2,) or (2, ..., 1) n-grams of both.
        share: (vocabulary,) alpha_w.
        prior: alpha_0.
    """
    if totals.ndim == 1:
        totals = totals[:, None]
    odds = np.log((counts + share) / np.maximum(totals + prior - counts - share, 1e-9))
    found: np.ndarray = odds[0] - odds[1]
    return found


def _without_parts(grown: Sequence[GrownNgram]) -> list[GrownNgram]:
    def is_part(one: GrownNgram, other: GrownNgram) -> bool:
        same = (one.count, one.count_before) == (other.count, other.count_before)
        return same and one.text != other.text and f" {one.text} " in f" {other.text} "

    return [each for each in grown if not any(is_part(each, other) for other in grown)]
