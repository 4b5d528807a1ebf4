"""The steered model as a Hugging Face directory, in the precision asked for."""

import math
from pathlib import Path
from typing import Any

import torch

from gradsteer.export.cards import card
from gradsteer.export.inputs import Steering, shown_name
from gradsteer.models.loading import parse_dtype
from gradsteer.steering.rounding import rounding_generator, stochastic_round
from gradsteer.steering.step_measurement import pieces
from gradsteer.steering.weight_steering import Rounding


@torch.no_grad()
def apply_step(
    steering: Steering,
    dtype: torch.dtype,
    *,
    rounding: Rounding = "nearest",
    seed: int = 0,
    rounded_anchor: bool = False,
) -> dict[str, float]:
    """Moves the model's weights to ``theta + alpha * V``, computed in float32, rounded once to a dtype's values.

    What is kept of the step is measured on the difference of two exports, ``Q(theta + alpha V) - Q(theta)`` with Q the
    rounding to the dtype: that is what the exported model differs by from the anchor in the same precision.

    Args:
        steering: the model, float32, is changed in place; it stays float32, with values that the dtype holds.
        dtype: of the export.
        rounding: of weights that the vector covers: "nearest", or "stochastic", whose expected step is the intended
            one; the anchor beside it is rounded to nearest.
        seed: of stochastic rounding.
        rounded_anchor: the step starts from ``Q(theta)`` instead of theta, as in a model that runs in this dtype.

    Returns:
        ``retained_fraction`` (``<applied, alpha V> / ||alpha V||^2``, 1 when nothing is lost), ``step_error``
        (``||applied - alpha V|| / ||alpha V||``), ``changed_fraction`` (the share of the vector's entries whose weight
        is another number than before) and ``relative_norm`` (``alpha ||V|| / ||theta||``, signed as alpha).

    Raises:
        ValueError: a weight is not finite in the dtype; names the parameter.
    """
    along = error = squares = theta_squares = 0.0
    changed = 0
    for name, parameter in steering.model.named_parameters():
        if rounded_anchor:
            parameter.copy_(parameter.to(dtype))
        theta_squares += float(torch.linalg.vector_norm(parameter, dtype=torch.float64)) ** 2
        if name not in steering.vector:
            continue
        generator = rounding_generator(seed, name)
        for weight, direction in pieces(parameter.detach(), steering.vector[name]):
            before = weight.to(dtype, copy=True)  # float32 would be the weight itself
            weight.add_(direction.to(weight), alpha=steering.alpha)
            after = stochastic_round(weight, dtype, generator) if rounding == "stochastic" else weight.to(dtype)
            if not bool(torch.isfinite(after).all()):
                shown = str(dtype).removeprefix("torch.")
                raise ValueError(
                    f"{name!r} at alpha {steering.alpha} is not finite in {shown} (largest weight "
                    f"{float(weight.abs().max()):.3g}); accepted: a smaller alpha, or --dtype bfloat16 or float32"
                )
            applied, intended = after.double() - before.double(), steering.alpha * direction.double()
            along += float((applied * intended).sum())
            error += float((applied - intended).square().sum())
            squares += float(intended.square().sum())
            changed += int((after != before).sum())
            weight.copy_(after)
    relative = math.sqrt(squares / theta_squares) if theta_squares else 0.0
    return {
        "retained_fraction": along / squares,
        "step_error": math.sqrt(error / squares),
        "changed_fraction": changed / steering.vector.numel(),
        "relative_norm": math.copysign(relative, steering.alpha),
    }


def write_model(
    steering: Steering,
    directory: Path,
    *,
    dtype: str,
    rounding: Rounding = "nearest",
    seed: int = 0,
    rounded_anchor: bool = False,
) -> dict[str, Any]:
    """Writes weights, configs, tokenizer with chat template and the model card to a directory.

    Args:
        steering: its model is changed in place.
        directory: exists and is empty.
        dtype: of the weights.
        rounding: see `apply_step`.
        seed: of stochastic rounding.
        rounded_anchor: see `apply_step`.

    Returns:
        For the report: the dtype, the rounding and `apply_step`'s numbers.

    Raises:
        ValueError: a weight is not finite in the dtype.
    """
    numbers = apply_step(steering, parse_dtype(dtype), rounding=rounding, seed=seed, rounded_anchor=rounded_anchor)
    steering.model.to(parse_dtype(dtype)).save_pretrained(directory)
    steering.tokenizer.save_pretrained(directory)
    applied = "Q(Q(theta) + alpha V) - Q(theta)" if rounded_anchor else "Q(theta + alpha V) - Q(theta)"
    title = f"{shown_name(steering.model_name)}, steered"
    losses = {
        "dtype": dtype,
        "rounding": f"stochastic, seed {seed}" if rounding == "stochastic" else "to nearest",
        "retained fraction": f"{numbers['retained_fraction']:.6f}: of the step, in this dtype (1: nothing is lost)",
        "step error": f"{numbers['step_error']:.6f}: norm(applied - intended) / norm(intended)",
        "changed fraction": f"{numbers['changed_fraction']:.6f}: of the vector's entries, whose weight is another now",
        "relative norm": f"{numbers['relative_norm']:+.6g}: alpha norm(V) / norm(theta)",
        "applied step": f"{applied}, Q rounding to this dtype: against the anchor in this dtype",
    }
    usage = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained("THIS_DIRECTORY", dtype="auto")\n'
        'tokenizer = AutoTokenizer.from_pretrained("THIS_DIRECTORY")\n'
    )
    text = card(steering, title=title, library="transformers", tags=["steered"], numbers=losses, usage=usage)
    (directory / "README.md").write_text(text, encoding="utf-8")
    used = seed if rounding == "stochastic" else None
    about = {"dtype": dtype, "rounding": rounding, "seed": used, "rounded_anchor": rounded_anchor}
    return {"format": "model", **about, **numbers}
