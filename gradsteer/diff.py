"""The weight diff (task vector): what the finetune changed, ``Delta = anchor - base``."""

from collections.abc import Mapping
from typing import Self

from torch import Tensor, nn

from gradsteer.vectors import ParameterVector

DELTA = "delta"  # the diff's name among an experiment's vectors


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """The model's parameters by name, tied weights once, detached and not copied."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


class WeightDiff(ParameterVector):
    """``Delta = theta_anchor - theta_base``, computed in float32 whatever the weights' dtype.

    A subtraction in bfloat16 would lose the small differences that matter.
    """

    kind = "diff"

    @classmethod
    def between(cls, anchor: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Self:
        """The diff of two sets of weights (see `named_weights`).

        Raises:
            ValueError: names or shapes differ: the two are not the same architecture.
        """
        ParameterVector(anchor).check_same_shapes(base)
        return cls({name: weight.float() - base[name].to(weight.device).float() for name, weight in anchor.items()})
