"""The densities of pooled responses at the weights of every file that they came from: a pass for each step."""

from collections.abc import Callable, Mapping

import numpy as np

from gradsteer.forecast.forecaster import Forecaster
from gradsteer.forecast.judged_responses import JudgedResponses
from gradsteer.progress import progress
from gradsteer.steering.condition_weights import ConditionWeights

Score = Callable[[Callable[[], None]], np.ndarray]  # (responses,) at the model's present weights; ticks every batch


def pool_sources(
    forecaster: Forecaster, weights: ConditionWeights, digests: Mapping[str, str], *, shown: bool
) -> tuple[tuple[str, str], dict[float, np.ndarray]] | None:
    """Scores the responses at the steps that they were sampled at, and has the forecaster weigh them from there.

    The model has the anchor's weights before and after (collective). Nothing is done where all are the anchor's.

    Args:
        forecaster: of the responses.
        weights: gives the model a step's weights.
        digests: vector -> digest of its file.
        shown: whether progress is shown.

    Returns:
        The vector with its transforms (its name, and their text), and alpha -> (responses,) ``log p(r)`` at every step
        that was scored; None where there was none.

    Raises:
        ValueError: the responses were sampled along a vector that this run does not have; names the file.
    """
    responses = forecaster.responses
    if not responses.is_steered:
        return None
    key, scores = source_scores(
        responses,
        forecaster.anchor_scores,
        lambda tick: forecaster.score(tick=tick),
        weights,
        digests,
        num_batches=len(forecaster.scorer),
        option=("forecasting.responses", "--steering.vectors.NAME"),
        shown=shown,
    )
    forecaster.pool(densities_of(responses, scores))
    return key, scores


def source_scores(
    responses: JudgedResponses,
    anchor_scores: np.ndarray,
    score: Score,
    weights: ConditionWeights,
    digests: Mapping[str, str],
    *,
    num_batches: int,
    option: tuple[str, str],
    shown: bool,
) -> tuple[tuple[str, str], dict[float, np.ndarray]]:
    """Scores responses, some of them sampled at steps, at every step that they were sampled at (collective).

    Args:
        responses: of several sources, or of one step.
        anchor_scores: (responses,) ``log p(r)`` at the anchor's weights.
        score: gives them at the model's present weights.
        weights: gives the model a step's weights.
        digests: vector -> digest of its file.
        num_batches: that a pass runs, for the progress.
        option: that names the responses, and the one that names the vector's file, for messages.
        shown: whether progress is shown.

    Returns:
        The vector with its transforms (its name, and their text), and alpha -> (responses,) ``log p(r)``, nats.

    Raises:
        ValueError: they were sampled along a vector that this run does not have, or steps are rounded otherwise; names
            the file.
    """
    source, step = next((source, source.step) for source in responses.sources if source.step is not None)
    names = {digest: name for name, digest in digests.items()}
    if step.vector not in names:
        raise ValueError(
            f"{option[0]}: {source.path!r} was sampled along a vector whose file has digest {step.vector[:16]}..., "
            f"which is none of this run's ({', '.join(digests)}): its densities are taken along it; give the same file "
            f"as {option[1]}"
        )
    if step.rounding != weights.rounding:
        raise ValueError(
            f"{option[0]}: the step of {source.path!r} was rounded {step.rounding or 'not at all'}, this run "
            f"rounds {weights.rounding or 'not at all'}: other weights; give the same --model.dtype, "
            "--steering.rounding and rounding_seed"
        )
    name = names[step.vector]
    vector = weights.transformed(name, step.transforms)
    scores = {0.0: anchor_scores}
    alphas = [alpha for alpha in dict.fromkeys(each.alpha for each in responses.sources) if alpha not in scores]
    with progress(
        "the responses' sources", len(alphas) * num_batches, unit="batch", shown=shown and bool(alphas)
    ) as tick:
        for alpha in alphas:
            with weights.at(vector, alpha):
                scores[alpha] = score(tick)
    return (name, repr(step.transforms)), scores


def densities_of(responses: JudgedResponses, scores: Mapping[float, np.ndarray]) -> np.ndarray:
    """(responses, sources) ``log p_k(r)``, from alpha -> (responses,) scores."""
    return np.stack([scores[source.alpha] for source in responses.sources], axis=1)
