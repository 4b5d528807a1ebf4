"""A steering vector as a PEFT LoRA adapter: ``scaling * B A`` with scaling alpha, written by `peft` itself."""

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradsteer.export.cards import card
from gradsteer.export.factors import Factors
from gradsteer.export.holding import Held
from gradsteer.export.inputs import Steering, shown_name
from gradsteer.records import write_json
from gradsteer.steering.weight_steering import steered
from gradsteer.vectors.parameter_vectors import ParameterVector

_PROBE_TOKENS = 16
# of the probe's logits: what float32 rounds, and what of the edit's own effect may be missing
_ROUNDING, _MISSING = 1e-4, 1e-2
_PEFTS_OWN = (
    # peft 0.21 asks for a name that transformers 5.23 has renamed
    "`is_gradient_checkpointing` is deprecated",
    # a model with both kinds of modules: peft has one flag for all, and sets it right for each
    "fan_in_fan_out is set to",
)


def write_adapter(
    steering: Steering, held: Mapping[str, Held], factors: Mapping[str, Factors], rank: int, directory: Path
) -> None:
    """Writes the adapter's weights and config, after a check that the model with it is the model with the edit.

    Args:
        steering: its model is wrapped in place.
        held: parameter -> how the adapter holds it.
        factors: parameter -> the factors of V's matrix.
        rank: of every matrix, or its own full rank where that is smaller.
        directory: exists and is empty.

    Raises:
        ValueError: on a few tokens the adapter does something else than the edit: a module of this architecture
            does not use its matrix in the way that its kind does.
    """
    from peft import LoraConfig, get_peft_model

    ranks = {held[name].module: min(rank, parts.full_rank) for name, parts in factors.items()}
    most = max(ranks.values())
    smaller = {module: own for module, own in ranks.items() if own != most}
    kinds = {held[name].kind for name in factors}
    config = LoraConfig(
        r=most,
        # an int by its annotation; peft divides it by r and writes it as JSON
        lora_alpha=steering.alpha * most,  # type: ignore[arg-type]
        target_modules=list(ranks),
        rank_pattern=smaller,
        alpha_pattern={module: steering.alpha * own for module, own in smaller.items()},
        # one flag for all modules; peft turns it by itself, with a warning, where a model has both kinds
        fan_in_fan_out="conv1d" in kinds,
        task_type="CAUSAL_LM",
        base_model_name_or_path=steering.model_name,
    )
    wanted = _dense_logits(steering, {name: parts.product(rank) for name, parts in factors.items()})
    with warnings.catch_warnings():
        for message in _PEFTS_OWN:
            warnings.filterwarnings("ignore", message=message)
        wrapped = get_peft_model(steering.model, config)
    for name, parts in factors.items():
        matrix = held[name]
        own = ranks[matrix.module]
        left, right = parts.left[:, :own], parts.right[:own]
        _fill(wrapped.get_base_model().get_submodule(matrix.module), matrix, left, right)
    with torch.no_grad():
        found = wrapped(input_ids=_probe(steering)).logits
    _check_same(steering, wanted, found)
    # False: an embedding that the adapter holds would otherwise be stored whole as well
    wrapped.save_pretrained(str(directory), save_embedding_layers=False)
    _sort_targets(directory / "adapter_config.json")


def _sort_targets(path: Path) -> None:
    """Puts the config's modules in order: peft keeps them as a set, and equal work shall give equal files."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["target_modules"].sort()
    write_json(path, config)


def _fill(layer: Any, matrix: Held, left: Tensor, right: Tensor) -> None:
    """Sets a layer's A (rank, in) and B (out, rank)."""
    b, a = (right.mT, left.mT) if matrix.turned else (left, right)
    if matrix.kind == "embedding":
        targets = layer.lora_embedding_A["default"], layer.lora_embedding_B["default"]
    else:
        targets = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    for target, values in zip(targets, (a, b), strict=True):
        target.data.copy_(values)


def _probe(steering: Steering) -> Tensor:
    """(1, tokens) ids from all over the vocabulary."""
    vocabulary = steering.model.get_input_embeddings().weight.shape[0]
    return torch.linspace(0, vocabulary - 1, _PROBE_TOKENS).long()[None]


@torch.no_grad()
def _dense_logits(steering: Steering, matrices: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The probe's logits of the anchor, and with the matrices' edit in its weights."""
    anchor = steering.model(input_ids=_probe(steering)).logits
    with steered(steering.model, ParameterVector(matrices), steering.alpha, allow_other_model=True):
        return anchor, steering.model(input_ids=_probe(steering)).logits


def _check_same(steering: Steering, wanted: tuple[Tensor, Tensor], found: Tensor) -> None:
    anchor, dense = wanted
    off = float((found - dense).norm())
    if off > _MISSING * float((dense - anchor).norm()) + _ROUNDING * float(anchor.norm()):
        raise ValueError(
            f"{type(steering.model).__name__} does not use its matrices as an adapter supposes: on a few tokens the "
            f"adapter's logits differ by {off:.2g} from the edit's; accepted for this model: --format model"
        )


def write_adapter_card(steering: Steering, directory: Path, numbers: Mapping[str, str]) -> None:
    """Writes the model card over the empty one that peft leaves."""
    usage = (
        "from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
        "# the model that is named above: the adapter is a step from its weights and no others\n"
        'base = AutoModelForCausalLM.from_pretrained("MODEL")\n'
        'model = PeftModel.from_pretrained(base, "THIS_DIRECTORY")\n'
    )
    title = f"Adapter for {shown_name(steering.model_name)}: a steering vector"
    text = card(steering, title=title, library="peft", tags=["lora", "steered"], numbers=numbers, usage=usage)
    (directory / "README.md").write_text(text, encoding="utf-8")
