"""The densities of pooled responses at the weights of every file that they came from: a pass for each step."""

from collections.abc import Mapping

import numpy as np

from gradsteer.forecast.forecaster import Forecaster
from gradsteer.progress import progress
from gradsteer.steering.condition_weights import ConditionWeights


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
    sources = forecaster.responses.sources
    steps = [(source, source.step) for source in sources if source.step is not None]
    if not steps:
        return None
    source, step = steps[0]
    names = {digest: name for name, digest in digests.items()}
    if step.vector not in names:
        raise ValueError(
            f"forecasting.responses: {source.path!r} was sampled along a vector whose file has digest "
            f"{step.vector[:16]}..., which is none of this run's ({', '.join(digests)}): its densities are taken along "
            "it; give the same file as --steering.vectors.NAME"
        )
    if step.rounding != weights.rounding:
        raise ValueError(
            f"forecasting.responses: the step of {source.path!r} was rounded {step.rounding or 'not at all'}, this run "
            f"rounds {weights.rounding or 'not at all'}: other weights; give the same --model.dtype, "
            "--steering.rounding and rounding_seed"
        )
    name = names[step.vector]
    vector = weights.transformed(name, step.transforms)
    scores = {0.0: forecaster.anchor_scores}
    alphas = [alpha for alpha in dict.fromkeys(source.alpha for source in sources) if alpha not in scores]
    with progress(
        "the responses' sources", len(alphas) * len(forecaster.scorer), unit="batch", shown=shown and bool(alphas)
    ) as tick:
        for alpha in alphas:
            with weights.at(vector, alpha):
                scores[alpha] = forecaster.score(tick=tick)
    forecaster.pool(np.stack([scores[source.alpha] for source in sources], axis=1))
    return (name, repr(step.transforms)), scores
