"""The forecast of every group's rate along every group's vector, at a few doses, from the curve: nothing is sampled."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from gradsteer.forecast.curve import VectorCurve
from gradsteer.forecast.forecaster import Forecaster
from gradsteer.forecast.judged_responses import read_judged_responses
from gradsteer.forecast.target_rate import solve_rate
from gradsteer.models.fingerprints import model_fingerprint
from gradsteer.steering.weight_steering import steered
from gradsteer.trainer.response_scorers import response_scorer
from gradsteer.trainer.session import shows_progress
from gradsteer.vectors.parameter_vectors import SteeringVector


def group_forecasts(
    trainer: L.Trainer,
    pl_module: Any,
    path: Path,
    vectors: Mapping[str, SteeringVector],
    shifts: Sequence[float],
    *,
    token_budget: int | None,
) -> list[dict[str, Any]]:
    """The rates of all groups at doses that would shift the log-odds of a vector's own group (collective).

    Args:
        trainer: runs the processes.
        pl_module: holds the anchor.
        path: responses of the anchor whose verdicts are their groups.
        vectors: by group.
        shifts: of the group's log-odds against the anchor, nats; each dose is the alpha at which the forecast is there.
        token_budget: tokens at once; None for the default of scoring.

    Returns:
        A row for each vector and dose: ``vector``, ``shift``, ``alpha`` (None where no alpha gets there, with
        ``reason``), ``method``, ``effective_sample_size``, ``kl_per_token`` and ``rates`` (group -> rate and interval).
    """
    responses = read_judged_responses(str(path), pl_module.tokenizer, num_ids=pl_module.num_ids)
    temperature = 1.0 if responses.temperature is None else responses.temperature
    if temperature == 0:
        rank_zero_warn("no forecast: greedy replies have no importance weights; sample at 1")
        return []
    top_p = 1.0 if responses.top_p is None else responses.top_p
    for doubt in responses.doubts(model_fingerprint(pl_module.model), temperature, top_p):
        rank_zero_warn(f"forecast of groups: {doubt}")
    scorer = response_scorer(trainer, pl_module, responses.examples, temperature, top_p, token_budget)
    forecaster = Forecaster(responses, scorer)
    rows = []
    for name, vector in vectors.items():
        weights = partial(_weights, pl_module.model, vector)
        curve = VectorCurve(name, forecaster, weights, partial(_same, vector), shown=shows_progress(trainer))
        for shift in shifts:
            row: dict[str, Any] = {"vector": name, "shift": shift, "alpha": None}
            try:
                alpha, method = solve_rate(curve, name, _shifted(forecaster.anchor_rate(name), shift))
            except ValueError as error:
                rows.append({**row, "reason": str(error)})
                continue
            found = curve.forecast(alpha, {name: True}, {name: False})
            rates = {
                each: {"rate": rate.rate, "ci_low": rate.ci_low, "ci_high": rate.ci_high, "reliable": rate.reliable}
                for each, rate in found.rates.items()
            }
            size, divergence = found.effective_sample_size, found.kl_per_token
            row |= {"alpha": alpha, "method": method, "effective_sample_size": size, "kl_per_token": divergence}
            rows.append({**row, "rates": rates})
        rank_zero_info(str(curve))
    return rows


def _shifted(rate: float, shift: float) -> float:
    """A rate whose log-odds are shifted."""
    from scipy.special import expit, logit

    return float(expit(logit(rate) + shift))


def _weights(model: Any, vector: SteeringVector, alpha: float) -> Any:
    return steered(model, vector, alpha)


def _same(vector: SteeringVector) -> SteeringVector:
    return vector
