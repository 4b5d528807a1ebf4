"""Rows of an experiment of any size, as results.json holds them."""

from gradsteer.evaluation.condition_result import ConditionResult
from gradsteer.evaluation.counting import Counts
from gradsteer.evaluation.statistics import Rate, wilson
from gradsteer.steering.conditions import Condition, alpha_text


def _rates(behaviors, share, num=400):
    return {
        name: Rate(num, 0, round(num * share), share, *wilson(share, num), effective_n=float(num)) for name in behaviors
    }


def _row(name, kind, behaviors, share, vector=None, alpha=0.0, *, forecast=True, model="anchor"):
    condition = Condition(name, kind, model=model, vector=vector, alpha=alpha)
    metrics = {"perplexity": 1.2 + share, "mean_length": 30 + share, "unfinished": 0.0, "refusal_benign": 0.0}
    if kind != "base":
        metrics["kl_to_anchor"] = share / 10
    result = ConditionResult(condition, counts=Counts(_rates(behaviors, share), metrics=metrics))
    if forecast:
        rate = {"rate": share, "ci_low": share - 0.05, "ci_high": share + 0.05, "importance": share, "linear": share}
        result.predicted = {
            "role": kind, "reliable": alpha is None or abs(alpha) < 0.3, "rates": dict.fromkeys(behaviors, rate),
            "classes": {}, "num_responses": 400, "effective_sample_size": 200.0,
            "log_odds_shift": -1.0, "linear_log_odds_shift": -1.0,
        }  # fmt: skip
    if kind == "steered":
        result.realised = {
            "log_odds_shift": -1.1, "ci_low": -1.3, "ci_high": -0.9, "num_plus": 50, "num_minus": 50,
            "num_plus_before": 50, "num_minus_before": 50,
        }  # fmt: skip
    row = result.row()
    row["behavior"] = vector
    if kind != "anchor":
        shift = {
            "log_odds_shift": share - 0.5, "ci_low": share - 0.7, "ci_high": share - 0.3, "num_shown": 50,
            "num_neither": 50,
        }  # fmt: skip
        selectivity = {"value": share, "ci_low": share - 0.1, "ci_high": share + 0.1, "largest_other": behaviors[-1]}
        measured = vector is not None and len(behaviors) > 1
        row["specificity"] = {
            "shifts": dict.fromkeys(behaviors, shift),
            "selectivity": selectivity if measured else None,
        }
    return row


def experiment(number, behaviors=("bridge", "recipe"), *, forecast=True, suffix=""):
    """A number of conditions of these behaviors, a third of them nulls, with a forecast or without."""
    options = {"forecast": forecast}
    rows = [
        _row("base", "base", behaviors, 0.05, alpha=None, model="base", **options),
        _row("anchor", "anchor", behaviors, 0.4, **options),
        _row("anchor resampled", "control", behaviors, 0.41, **options),
        _row("anchor - 0.5 Delta", "baseline", behaviors, 0.1, alpha=-0.5, **options),
    ]
    vectors = behaviors[:2]
    for index in range(number - len(rows)):
        vector, step = vectors[index % len(vectors)], index // 3 + 1
        alpha = 0.02 * step * (-1 if index % 2 else 1)
        share = 0.4 + 0.3 * (step % 7) / 7 * (1 if index % 2 else -1)
        name = f"{vector}{suffix} alpha={alpha_text(alpha)}"
        if index % 3 == 2:
            rows.append(
                _row(
                    f"random-{step} of {name}",
                    "control",
                    behaviors,
                    0.3 + 0.01 * (step % 9),
                    vector,
                    alpha,
                    **options,
                )
            )
        else:
            rows.append(_row(name, "steered", behaviors, share, vector, alpha, **options))
    assert len({row["name"] for row in rows}) == number
    return rows
