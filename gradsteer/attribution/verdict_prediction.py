"""How likely a reply's verdict is, from its first tokens: a ridge logistic regression on the last hidden state.

Fitted on other prompts' replies (cross-fitted), so that what a reply's own verdict says is not in its prediction; and
within each half of the prompts, so that two halves of a vector stay independent.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

FOLDS = 5  # of the prompts in a half
RIDGES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # inverse strengths, scikit-learn's C; the best one in a half is taken there
_POSITIONS = 24  # of a reply in a fit: those of one reply are alike


@dataclass(frozen=True)
class Predictions:
    """What was predicted, and how well.

    Attributes:
        odds: for each reply (tokens,), the probability of a true verdict before each of its tokens.
        brier: mean over replies of the mean over their tokens of ``(R - Q_t)^2``.
        constant: the same of the rate alone.
        kept: in how many of the halves with replies the regression was better and so is used; of how many.
    """

    odds: list[np.ndarray]
    brier: float
    constant: float
    kept: tuple[int, int]

    def __str__(self) -> str:
        used = {0: "it is not used", self.kept[1]: "it is used"}
        return (
            f"Brier score {self.brier:.3f}, of the constant rate {self.constant:.3f} ({len(self.odds)} replies): "
            f"{used.get(self.kept[0], 'it is used in one half of the prompts')}"
        )


def predict_verdicts(
    states: Sequence[np.ndarray],
    verdicts: Sequence[bool],
    prompts: Sequence[str],
    half_of: dict[str, int],
    *,
    sample_weight: np.ndarray | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Predictions:
    """Predicts every reply's verdict before each of its tokens, from replies to other prompts of its half.

    Where a half's regression does no better than the rate, or cannot be fitted, the rate over all replies is taken.

    Args:
        states: for each reply (tokens, hidden size), what predicts each token.
        verdicts: of each reply; both kinds must be there.
        prompts: digest of each reply's prompt.
        half_of: digest of a prompt -> 1 or 2.
        sample_weight: (replies,) what each counts for, in rates, fits and scores; all alike by default.
        tick: called after each of at most ``2 * FOLDS`` folds.
    """
    truth = np.array(verdicts, dtype=float)
    counts = np.ones(len(truth)) if sample_weight is None else sample_weight
    rate = float(np.average(truth, weights=counts))
    odds = [np.full(len(each), rate) for each in states]
    halves = np.array([half_of[prompt] for prompt in prompts])
    kept = 0
    for half in np.unique(halves):
        members = np.flatnonzero(halves == half)
        candidates = _cross_fitted(states, truth, counts, prompts, members, tick)
        mine = truth[members], counts[members]
        scored = [(_brier(found, *mine), found) for found in candidates]
        best, found = min(scored, key=lambda each: each[0], default=(np.inf, []))
        if best < _brier([odds[index] for index in members], *mine):
            kept += 1
            for index, predicted in zip(members, found, strict=True):
                odds[index] = predicted
    constant = _brier([np.full(1, rate)] * len(truth), truth, counts)
    return Predictions(odds, _brier(odds, truth, counts), constant, (kept, len(np.unique(halves))))


def _brier(odds: Sequence[np.ndarray], truth: np.ndarray, counts: np.ndarray) -> float:
    errors = [np.mean((true - each) ** 2) for each, true in zip(odds, truth, strict=True)]
    return float(np.average(errors, weights=counts))


def _cross_fitted(
    states: Sequence[np.ndarray],
    truth: np.ndarray,
    counts: np.ndarray,
    prompts: Sequence[str],
    members: np.ndarray,
    tick: Callable[[], None],
) -> list[list[np.ndarray]]:
    """With each ridge, predictions for some replies, each from the others' folds; none where a fold lacks a verdict."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    names = sorted({prompts[index] for index in members})
    fold_of = {prompt: place % FOLDS for place, prompt in enumerate(names)}
    folds = np.array([fold_of[prompts[index]] for index in members])
    found: list[dict[int, np.ndarray]] = [{} for _ in RIDGES]
    for fold in np.unique(folds):
        fitted, held = members[folds != fold], members[folds == fold]
        if len(fitted) == 0 or len(np.unique(truth[fitted])) < 2:
            return []
        chosen = [states[index][_spread(len(states[index]))] for index in fitted]
        lengths = [len(each) for each in chosen]
        labels, weights = np.repeat(truth[fitted], lengths), np.repeat(counts[fitted], lengths)
        rows = np.concatenate(chosen).astype(np.float32)
        scaler = StandardScaler().fit(rows, sample_weight=weights)
        inputs = scaler.transform(rows)
        others = scaler.transform(np.concatenate([states[index] for index in held]).astype(np.float32))
        ends = np.cumsum([len(states[index]) for index in held])[:-1]
        for predictions, ridge in zip(found, RIDGES, strict=True):
            regression = LogisticRegression(C=ridge, max_iter=200).fit(inputs, labels, sample_weight=weights)
            odds = np.split(regression.predict_proba(others)[:, 1], ends)
            predictions.update(zip(held.tolist(), odds, strict=True))
        tick()
    return [[predictions[index] for index in members.tolist()] for predictions in found]


def _spread(length: int) -> np.ndarray:
    """Positions of a reply for the fit, evenly spread."""
    return np.unique(np.linspace(0, length - 1, min(length, _POSITIONS)).astype(int))
