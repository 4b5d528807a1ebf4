"""The rival, Logit Path Extrapolation: blend the logits of two models, sample along the path, fit a trend, extrapolate.

The path goes from the anchor (share 1 of its logits), where the behavior is common, to the target (share 0), which is
not sampled. The trend is of the rate in the share. Which points of the path, how many replies at each and which form of
the trend it takes is chosen by its own cross-validation, on pilot draws from the same pools, which are not counted
among its replies: the smallest shares are left out, and the trend through the others must say what the rate is there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import expit, ndtr, ndtri
from scipy.stats import norm

from rare.estimators import Found, chosen

PATHS: dict[str, dict[float, int]] = {  # eighths of the replies at every share
    "wide, equal": {0.2: 2, 0.4: 2, 0.6: 2, 1.0: 2},
    "wide, most below": {0.2: 4, 0.4: 2, 0.6: 1, 1.0: 1},
    "middle, equal": {0.2: 2, 0.3: 2, 0.4: 2, 0.6: 2},
    "middle, most below": {0.2: 4, 0.3: 2, 0.4: 1, 0.6: 1},
    "low, equal": {0.1: 2, 0.2: 2, 0.3: 2, 0.4: 2},
    "low, most below": {0.1: 4, 0.2: 2, 0.3: 1, 0.4: 1},
    "three, equal": {0.1: 3, 0.3: 3, 0.6: 2},
    "long, equal": {0.1: 2, 0.2: 1, 0.3: 1, 0.4: 1, 0.6: 1, 0.8: 1, 1.0: 1},
}
FORMS = {"log-odds, line": ("logit", 1), "log-odds, parabola": ("logit", 2), "probit, line": ("probit", 1)}
_ROUNDS = 25


@dataclass(frozen=True)
class Plan:
    """A path with its replies, and a form of the trend."""

    path: str
    form: str

    def __str__(self) -> str:
        return f"{self.path}; {self.form}"


PLANS = [Plan(path, form) for path in PATHS for form in FORMS]


def fitted(shares: Sequence[float], shown: np.ndarray, totals: np.ndarray, form: str, at: float) -> np.ndarray:
    """The trend's rate at a share, by maximum likelihood (Fisher scoring), a fit for each row.

    Half a reply is added to both sides at every share, so that there is always a fit.

    Args:
        shares: (shares,) of the path.
        shown: (rows, shares) replies that show the behavior.
        totals: (shares,) or (rows, shares) replies.
        form: of `FORMS`.
        at: where the rate is asked for.
    """
    link, degree = FORMS[form]
    degree = min(degree, len(shares) - 1)
    design = np.stack([np.asarray(shares) ** power for power in range(degree + 1)], axis=1)
    y, n = shown + 0.5, np.broadcast_to(totals, shown.shape) + 1.0
    empirical = y / n
    eta = np.log(empirical / (1 - empirical)) if link == "logit" else ndtri(empirical)
    coefficients = np.zeros((len(shown), degree + 1))
    for _ in range(_ROUNDS):
        mean = np.clip(expit(eta) if link == "logit" else ndtr(eta), 1e-12, 1 - 1e-12)
        slope = mean * (1 - mean) if link == "logit" else np.maximum(norm.pdf(eta), 1e-12)
        weight = n * slope**2 / (mean * (1 - mean))
        working = eta + (empirical - mean) / slope
        left = np.einsum("rs,si,sj->rij", weight, design, design) + 1e-9 * np.eye(degree + 1)
        right = np.einsum("rs,si,rs->ri", weight, design, working)
        coefficients = np.linalg.solve(left, right[..., None])[..., 0]
        eta = np.clip(coefficients @ design.T, -30, 30)
    value = np.clip(coefficients @ np.array([at**power for power in range(degree + 1)]), -40, 40)
    result: np.ndarray = expit(value) if link == "logit" else ndtr(value)
    return result


def extrapolated(blends: dict[float, np.ndarray], plan: Plan, each: int, draws: int, seed: int) -> Found:
    """The rate at share 0 in every draw; its interval from a bootstrap over prompts, the fit repeated.

    Args:
        blends: share -> (prompts, replies) bool.
        plan: path and form.
        each: replies to a prompt over the whole path, a multiple of 8.
        draws: how often.
        seed: of the draws.
    """
    generator, lines = np.random.default_rng(seed), []
    path = PATHS[plan.path]
    num = len(blends[1.0])
    counts = np.random.default_rng(seed + 1).multinomial(num, np.full(num, 1 / num), size=200)
    for _ in range(draws):
        per_prompt, numbers = _drawn(generator, blends, path, each)  # (prompts, shares)
        both = np.concatenate([np.ones((1, num)), counts]) @ per_prompt
        rates = fitted(list(path), both, num * numbers, plan.form, 0.0)
        low, high = np.percentile(rates[1:], [2.5, 97.5])
        lines.append((rates[0], min(low, rates[0]), max(high, rates[0]), np.nan, False))
    return Found.of(lines)


def cross_validated(blends: dict[float, np.ndarray], each: int, draws: int, seed: int) -> tuple[Plan, dict[str, float]]:
    """The plan whose trend through the larger shares says best what is at its smallest, and what every plan scored.

    Left out are shares below twice the smallest, so that the trend reaches as far down, by factors, as it has to in the
    end. The score is the mean squared error of the log-odds there over pilot draws, negative: higher is better.
    """
    scores = {}
    for plan in PLANS:
        generator = np.random.default_rng(seed)
        smallest = min(PATHS[plan.path])
        path = {share: eighths for share, eighths in PATHS[plan.path].items() if share > 1.99 * smallest}
        rows = [_drawn(generator, blends, path, each) for _ in range(draws)]
        shown = np.stack([per_prompt.sum(axis=0) for per_prompt, _ in rows])
        found = np.clip(fitted(list(path), shown, len(blends[1.0]) * rows[0][1], plan.form, smallest), 1e-9, 1 - 1e-9)
        held = blends[smallest]
        known = (held.sum() + 0.5) / (held.size + 1)
        scores[str(plan)] = -float(np.square(np.log(found / (1 - found)) - np.log(known / (1 - known))).mean())
    return max(PLANS, key=lambda plan: scores[str(plan)]), scores


def _drawn(
    generator: np.random.Generator, blends: dict[float, np.ndarray], path: dict[float, int], each: int
) -> tuple[np.ndarray, np.ndarray]:
    """(prompts, shares) replies that show the behavior, and (shares,) replies to each prompt."""
    num, pool = blends[1.0].shape
    prompts, _ = chosen(generator, num, pool, 1)
    numbers = [eighths * each // 8 for eighths in path.values()]
    columns = [
        blends[share][prompts, chosen(generator, num, pool, number)[1]].sum(axis=1)
        for share, number in zip(path, numbers, strict=True)
    ]
    return np.stack(columns, axis=1).astype(np.float64), np.array(numbers)
