"""The last hidden states of a causal LM: what its head predicts each labelled token from."""

from typing import Any

import torch
from torch import Tensor, nn

from gradsteer.models.batches import Batch, labelled_logits
from gradsteer.models.packing import Pack, pack_hidden


@torch.no_grad()
def labelled_states(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """The hidden state that predicts each labelled token of a batch, inside `running`.

    Args:
        model: a causal LM.
        batch: see `gradsteer.models.batches.BatchLayout.make`.

    Returns:
        states: (labelled, hidden size) float32; owners: (labelled,) the example of each.

    Raises:
        ValueError: the model's head does not run on one state a labelled token.
    """
    if isinstance(batch, Pack):
        return pack_hidden(model, batch).float(), batch.owners
    seen: list[Tensor] = []

    def note(_head: nn.Module, inputs: tuple[Tensor, ...], _logits: Any) -> None:
        seen.append(inputs[0].detach())

    head = model.get_output_embeddings()
    handle = head.register_forward_hook(note)
    try:
        _, targets, owners = labelled_logits(model, batch)
    finally:
        handle.remove()
    states = seen[0][0] if len(seen) == 1 else torch.empty(0, 0)
    if len(states) != len(targets):
        raise ValueError(f"{type(model).__name__} does not give its head one state a token: verdicts are not predicted")
    return states.float(), owners
