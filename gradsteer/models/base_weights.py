"""A base's weights by the names of the anchor's parameters: as they are, untied, or as a point of adapter space."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from gradsteer.models.adapter_space import base_in_adapter_space, is_in_adapter_space, pairs
from gradsteer.models.loading import Loading, load_causal_lm


def base_weights(
    model: Any, loading: Loading, base: str, load: Callable[[], Mapping[str, Tensor]]
) -> Mapping[str, Tensor]:
    """The base's weights by the names of a model's parameters.

    Args:
        model: the anchor.
        loading: of the anchor.
        base: directory or hub id.
        load: reads the base's weights, where it is a model as the anchor is one.

    Raises:
        ValueError: the model is in adapter space, and the base is neither the adapter's nor another adapter on it.
    """
    if is_in_adapter_space(model):
        return _in_space(model, loading, base)
    weights = load()
    inward, outward = model.get_input_embeddings(), model.get_output_embeddings()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    head = None if outward is None else names.get(id(outward.weight))
    embedding = names.get(id(inward.weight))
    if head is None or embedding is None or head in weights or embedding not in weights:
        return weights
    return {**weights, head: weights[embedding]}  # an adapter untied what the base ties


def check_base(loading: Loading, base: str) -> None:
    """Refuses a base that does not go with an anchor, as far as that is seen before anything is loaded.

    Args:
        loading: of the anchor.
        base: directory or hub id.

    Raises:
        ValueError: the base is an adapter that does not fit its own base, or no point of the anchor's adapter space.
    """
    if loading.adapter is not None and loading.adapter_reading == "adapter":
        _other_in_space(loading, base)
    elif Loading(base).adapter is not None:
        Loading(base).check()


def _in_space(model: Any, loading: Loading, base: str) -> Mapping[str, Tensor]:
    other = _other_in_space(loading, base)
    if other is None:
        return base_in_adapter_space(model)
    loaded = load_causal_lm(other)
    # the other's matrices run under this one's scaling
    own, theirs = ({pair.b: pair.scaling for pair in pairs(each)} for each in (model, loaded))
    factors = {name: scaling / own[name] for name, scaling in theirs.items() if own.get(name)}
    return {name: weight.detach() * factors.get(name, 1.0) for name, weight in loaded.named_parameters()}


def _other_in_space(loading: Loading, base: str) -> Loading | None:
    """Another adapter on the same base as an anchor's; None where the base itself is named."""
    own = loading.base_loading
    assert own is not None
    if _same(own.name_or_path, base):
        return None
    other = replace(loading, name_or_path=base, revision=None, adapter_base=None)
    if other.base_loading is None or not _same(own.name_or_path, other.base_loading.name_or_path):
        raise ValueError(
            f"with --model.adapter_reading adapter the base is a point of the adapter's space, and {base!r} is none; "
            f"accepted: {own.name_or_path}, which the adapter was trained on, or another adapter on it"
        )
    other.check()
    return other


def delta_rank(loading: Loading, base: str) -> int | None:
    """The largest rank of Delta in the matrices that an adapter adds a step to; of whole modules it says nothing.

    Args:
        loading: of the anchor.
        base: directory or hub id.

    Returns:
        None where the anchor is no adapter, or where the base is not the adapter's own: Delta can have any rank then.
    """
    own = loading.base_loading
    if loading.adapter is None or own is None or not _same(own.name_or_path, base):
        return None
    return loading.adapter.rank


def _same(one: str, other: str) -> bool:
    """Whether two names are of one model."""
    return one == other or (Path(one).exists() and Path(other).exists() and os.path.samefile(one, other))
