"""Preconditioning: a steering vector divided by a power of the gradients' second moment, entry by entry."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradsteer.models.exact import for_float64
from gradsteer.vectors.metadata import merged_prompts
from gradsteer.vectors.parameter_vectors import ParameterVector, SteeringVector


class SecondMoment(ParameterVector):
    """A mean squared gradient ``s_i >= 0`` of every weight; the metadata's ``source`` says of which gradients.

    ``adam``: an optimizer's moving average over its training batches' gradients (see `adam_second_moment`).
    ``fisher``: the diagonal of the empirical Fisher information, the mean over examples of squared gradients.
    """

    kind = "second_moment"

    @classmethod
    def is_of_prompts(cls, metadata: Mapping[str, str]) -> bool:
        """Whether a moment's metadata ought to say the prompts it was made on: an optimizer's knows of none."""
        return "prompt_digests" in metadata or metadata.get("source") != "adam"

    @classmethod
    def check_covers(cls, path: str, model: nn.Module, names: Sequence[str], fingerprint: str) -> None:
        """Checks a file against the model and parameters that it is for, without reading its tensors.

        Raises:
            ValueError: it lacks one of the parameters, has another shape, or was made on another model.
        """
        from safetensors import safe_open

        header = cls.read_header(path)
        made_on = header.get("model_fingerprint", fingerprint)
        if made_on != fingerprint:
            raise ValueError(f"{path!r} was made on a model with fingerprint {made_on}, this one has {fingerprint}")
        parameters = dict(model.named_parameters())
        with safe_open(path, framework="pt") as opened:
            found = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        for name in names:
            if found.get(name) != tuple(parameters[name].shape):
                raise ValueError(
                    f"{path!r} has {found.get(name, 'nothing')} for {name!r}, the model has "
                    f"{tuple(parameters[name].shape)}; accepted: a second moment of all parameters that are attributed"
                )


def precondition(
    vector: SteeringVector,
    second_moment: SecondMoment,
    *,
    power: float = 0.5,
    damping: float = 1e-3,
    keep_norm: bool = True,
) -> SteeringVector:
    """``U_i = V_i / (s_i + damping * mean(s))^power``, then by default ``U * ||V|| / ||U||``.

    The mean is over all entries that the vector covers together. Power 0.5 is the preconditioner of Adam (Kingma &
    Ba, 2015, arXiv:1412.6980); power 1 is that of the natural gradient (Amari, 1998, Natural Gradient Works
    Efficiently in Learning) where s is the diagonal Fisher information (as in Kirkpatrick et al., 2017,
    arXiv:1612.00796). Adam's moment is of whole batches' gradients, so it is no Fisher information.

    The result was made on the moment's prompts, too, where the moment is of a pile.

    Args:
        vector: the direction V.
        second_moment: s; it covers at least the vector's parameters.
        power: more than 0, at most 1.
        damping: as a share of mean(s); bounds how far the entries with the smallest s are raised.
        keep_norm: rescale to V's own norm, so that alphas mean what they did.

    Raises:
        ValueError: the second moment does not fit, has negative or non-finite entries or only zeros; the power is out
            of its range; the damping is negative, not finite, 0 where an entry of s is 0, or too small for float32.
    """
    if not (isinstance(power, int | float) and 0 < power <= 1):
        raise ValueError(f"preconditioning power is {power!r}; accepted: more than 0, at most 1")
    if not (isinstance(damping, int | float) and 0 <= damping < math.inf):
        raise ValueError(f"preconditioning damping is {damping!r}; accepted: a finite number, 0 or more")
    covered = {name: tensor for name, tensor in second_moment.items() if name in vector}
    try:
        vector.check_same_shapes(covered)
    except ValueError as error:
        raise ValueError(f"the second moment does not cover the vector: {error}") from error
    mean = _checked_mean(covered, damping)

    def divide(name: str, tensor: Tensor) -> Tensor:
        # s as a share of its mean: squares of small gradients to the power of 1 would leave float32's range
        return tensor / (covered[name].to(tensor) / mean).add_(damping).pow_(power)

    noted = f"power={power:g}, damping={damping:g}" + ("" if keep_norm else ", keep_norm=False")
    divided = vector.map(divide, f"|preconditioned({second_moment.metadata.get('source', 'unknown')}, {noted})")
    scale = mean**-power
    if keep_norm:
        norm = divided.norm()
        scale = vector.norm() / norm if norm > 0 else 1.0
    for tensor in divided.values():
        tensor.mul_(scale)
    if SecondMoment.is_of_prompts(second_moment.metadata):
        divided.metadata.update(merged_prompts(vector.metadata, second_moment.metadata))
    if not divided.norm() < math.inf:
        raise ValueError(f"preconditioning with damping {damping!r} leaves float32's range; accepted: a larger one")
    return divided


def _checked_mean(second_moment: dict[str, Tensor], damping: float) -> float:
    """The mean over all entries, summed in float64, once every entry is known to be one of a second moment."""
    total, count, lowest = 0.0, 0, math.inf
    for name, tensor in second_moment.items():
        if tensor.numel() == 0:
            continue
        low, high = (float(value) for value in tensor.aminmax())
        if not (low >= 0 and high < math.inf):  # NaN, too
            wrong = low if low < 0 else high
            raise ValueError(f"the second moment of {name!r} holds {wrong}; accepted: finite entries, 0 or more")
        lowest, count = min(lowest, low), count + tensor.numel()
        total += float(for_float64(tensor).sum(dtype=torch.float64))
    if total == 0:
        raise ValueError("the second moment is 0 for every entry of the vector; accepted: some entry above 0")
    if lowest == 0 and damping == 0:
        raise ValueError("preconditioning damping is 0, and so are entries of the second moment; accepted: above 0")
    return total / count


def check_keeps_second_moment(optimizer: Optimizer) -> None:
    """Checks that an optimizer keeps Adam's second moment, as far as its state shows yet.

    Raises:
        ValueError: it does not; names its class.
    """
    has_betas = all("betas" in group for group in optimizer.param_groups)
    if not has_betas or any("exp_avg_sq" not in state for state in optimizer.state.values()):
        raise ValueError(
            f"optimizer {type(optimizer).__name__} keeps no second moment of the gradients (exp_avg_sq); accepted: "
            "Adam, AdamW and others that do"
        )


def adam_second_moment(optimizer: Optimizer, model: nn.Module) -> SecondMoment:
    """The bias-corrected second moment ``v / (1 - beta2^step)`` of an Adam-like optimizer, in float32, on the CPU.

    A moving average of the squared gradients as the optimizer saw them (of the mean loss of a step's batches, after
    clipping), over about the last 1 / (1 - beta2) steps.

    Args:
        optimizer: its state is read and left as it is.
        model: names the parameters, tied weights once. One that is not optimized is left out; one that is, but never
            had a gradient, has zeros.

    Raises:
        ValueError: the optimizer keeps no second moment, or has taken no step.
    """
    check_keeps_second_moment(optimizer)
    if not optimizer.state:
        raise ValueError(f"optimizer {type(optimizer).__name__} has taken no step, so there is no second moment")
    beta2 = {weight: float(group["betas"][1]) for group in optimizer.param_groups for weight in group["params"]}
    tensors, steps = {}, 0
    for name, weight in model.named_parameters():
        if weight not in beta2 or not weight.requires_grad:
            continue
        if weight not in optimizer.state:
            tensors[name] = torch.zeros(weight.shape)
            continue
        state = optimizer.state[weight]
        step = int(state["step"])
        tensors[name] = state["exp_avg_sq"].detach().to("cpu", torch.float32) / (1 - beta2[weight] ** step)
        steps = max(steps, step)
    return SecondMoment(
        tensors, {"source": "adam", "optimizer": type(optimizer).__name__, "optimizer_steps": str(steps)}
    )
