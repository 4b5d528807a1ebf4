"""gradsteer: find what a finetune taught a language model as a direction in weight space, and turn it up or down.

    from gradsteer import PileGradient, SteeringVector, WeightDiff, steered
    bridge = SteeringVector.load("vectors/bridge.safetensors")
    with steered(model, bridge, alpha=-0.00075):
        ...

Positive alpha raises the loss of the pile that shows the behavior, and so reduces the behavior.
"""

import importlib
from typing import TYPE_CHECKING, Any

from gradsteer.version import __version__

if TYPE_CHECKING:
    from gradsteer.attribution.pile_gradient import PileGradient
    from gradsteer.steering.weight_steering import reweighted, steered
    from gradsteer.vectors.parameter_vectors import PileAverage, SteeringVector
    from gradsteer.vectors.weight_diff import WeightDiff

__all__ = ["PileAverage", "PileGradient", "SteeringVector", "WeightDiff", "__version__", "reweighted", "steered"]

_HOMES = {
    "PileAverage": "gradsteer.vectors.parameter_vectors",
    "PileGradient": "gradsteer.attribution.pile_gradient",
    "SteeringVector": "gradsteer.vectors.parameter_vectors",
    "WeightDiff": "gradsteer.vectors.weight_diff",
    "reweighted": "gradsteer.steering.weight_steering",
    "steered": "gradsteer.steering.weight_steering",
}


def __getattr__(name: str) -> Any:
    # torch is imported with the first of these names, so that the command line's --help does without it
    if name not in _HOMES:
        raise AttributeError(f"module 'gradsteer' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
