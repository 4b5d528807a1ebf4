"""Batches of a causal LM: packs where it takes them, padded rows otherwise, and how either is run."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from gradsteer.data.batching import plan_batches
from gradsteer.data.chat import IGNORE_INDEX, EncodedExample, collate
from gradsteer.models.losses import Reference, padded_logits, position_losses
from gradsteer.models.packing import Pack, attending, pack_logits, pack_token_losses, plan_packs
from gradsteer.models.packing_check import why_not_packs, why_not_padded, why_not_shared
from gradsteer.models.parallel import is_split_model
from gradsteer.models.shared_prompts import pack_shared, plan_shared

Batch = Mapping[str, Any] | Pack

# logits at a time in the chunked head: 128 MB of float32
_HEAD_ENTRIES = 1 << 25
_PADDED_BATCH = 16
_PADDED_KEYS = ("input_ids", "attention_mask", "labels", "weights")


@dataclass(frozen=True)
class BatchLayout:
    """How a model runs sequences. `BatchLayout.of` chooses it.

    Example::

        layout = BatchLayout.of(model, examples)
        for indices in layout.plan([len(example.input_ids) for example in examples], token_budget=2048):
            batch = layout.make([examples[index] for index in indices])
            with torch.no_grad(), running(batch, model):
                losses, owners = token_losses(model, batch, head_chunk=layout.head_chunk)

    Attributes:
        packs: sequences lie end to end in one row, each attending to itself; otherwise they are padded on the right.
        head_chunk: for packs, positions at a time in the head and its loss; None for all of them.
        device: of the model.
        pad_token_id: fills padded batches.
        reason: why there are no packs where they were wanted, or why not even padded batches.
        one_by_one: no sequence may share a batch with another, as padding would change it.
        shared_prompts: packs read a prompt once for all of its replies; see `gradsteer.models.shared_prompts`.
    """

    packs: bool
    head_chunk: int | None
    device: torch.device
    pad_token_id: int = 0
    reason: str | None = None
    one_by_one: bool = False
    shared_prompts: bool = False

    @classmethod
    def of(
        cls,
        model: Any,
        examples: Sequence[EncodedExample],
        *,
        reference: Any = None,
        pad_token_id: int = 0,
        packing: bool = True,
        shared_prompts: bool = False,
    ) -> Self:
        """Chooses packs, with a chunked head where possible, if a check says that they change nothing.

        Otherwise padded batches, if a check says that of them; otherwise sequences run one by one. The checks run once
        for each model; see `why_not_packs`.

        Args:
            model: a causal LM in eval mode.
            examples: what will run, for the check.
            reference: a second model that will run the same batches.
            pad_token_id: fills padded batches.
            packing: False for no packs in any case.
            shared_prompts: packs read a prompt once for all of its replies if a check says that it changes nothing.

        Raises:
            ValueError: neither packs nor padded batches would do, and the weights are split over processes, which run
                whole batches together.
        """
        device = next(model.parameters()).device
        models = [model] if reference is None else [model, reference]
        if not packing:
            return cls._without_packs(models, examples, pad_token_id, None)
        chunk = max(64, _HEAD_ENTRIES // model.get_output_embeddings().weight.shape[0])
        # a divergence magnifies rounding where the two are close: the models are checked one by one
        reasons: list[str | None] = []
        for head_chunk in (chunk, None):
            # a chunk of 1 runs the same code on the few positions of the check
            checked = 1 if head_chunk else None
            reasons = [why_not_packs(each, examples, head_chunk=checked) for each in models]
            if not any(reasons):
                share = shared_prompts and not any(why_not_shared(e, examples, head_chunk=checked) for e in models)
                return cls(True, head_chunk, device, pad_token_id, shared_prompts=share)
        return cls._without_packs(models, examples, pad_token_id, next(filter(None, reasons)))

    @classmethod
    def _without_packs(
        cls, models: Sequence[Any], examples: Sequence[EncodedExample], pad_token_id: int, reason: str | None
    ) -> Self:
        device = next(models[0].parameters()).device
        padded = next(filter(None, [why_not_padded(each, examples) for each in models]), None)
        if padded is not None and any(is_split_model(each) for each in models):
            raise ValueError(
                f"{type(models[0]).__name__} takes neither packs nor padded batches ({padded}): it runs one example at "
                "a time, which weights split over processes do not; accepted: a strategy that keeps them whole"
            )
        return cls(False, None, device, pad_token_id, padded or reason, padded is not None)

    @property
    def warning(self) -> str | None:
        """How sequences run, and why, where it is not as it was wanted."""
        how = "one by one" if self.one_by_one else "in padded batches of similar lengths instead of packs"
        return None if self.reason is None else f"sequences run {how}: {self.reason}"

    def plan_examples(self, examples: Sequence[EncodedExample], token_budget: int) -> list[list[int]]:
        """As `plan`, of examples; where packs share prompts, those with equal ones come together."""
        if self.shared_prompts:
            return plan_shared(examples, token_budget)
        return self.plan([len(example.input_ids) for example in examples], token_budget)

    def plan(self, lengths: Sequence[int], token_budget: int) -> list[list[int]]:
        """Shares sequences out over batches.

        Args:
            lengths: tokens of each sequence.
            token_budget: the most tokens in a pack; padded batches hold 16 sequences of like lengths, or one.

        Returns:
            The indices into `lengths`, each once; the largest batches first.
        """
        if self.packs:
            return plan_packs(lengths, token_budget)
        return plan_batches(lengths, 1 if self.one_by_one else _PADDED_BATCH)

    def make(self, examples: Sequence[EncodedExample]) -> Batch:
        """A batch of examples, on the model's device; of none, one that scores nothing.

        A process that has run out of examples takes part in a forward pass with the latter.
        """
        nothing = EncodedExample([self.pad_token_id] * 2, [IGNORE_INDEX] * 2)
        chosen = list(examples) or [nothing]
        if self.packs:
            return pack_shared(chosen, self.device) if self.shared_prompts else Pack.of(chosen, self.device)
        return {key: value.to(self.device) for key, value in collate(chosen, self.pad_token_id).items()}


def lengths_of(batch: Batch) -> list[int]:
    """Tokens of each example of a batch, without padding."""
    if isinstance(batch, Pack):
        return list(batch.lengths)
    lengths: list[int] = batch["attention_mask"].sum(dim=1).tolist()
    return lengths


def num_run(batch: Batch) -> int:
    """Tokens that a forward pass runs, padding among them."""
    tokens: Tensor = batch.input_ids if isinstance(batch, Pack) else batch["input_ids"]
    return tokens.numel()


def part_of(batch: Batch, start: int, stop: int) -> Batch:
    """Some of a batch's examples, from start up to stop, as a batch of their own."""
    if isinstance(batch, Pack):
        return batch.part(start, stop)
    longest = max(lengths_of(batch)[start:stop])
    return {key: value[start:stop, :longest] for key, value in batch.items() if key in _PADDED_KEYS}


@contextmanager
def running(batch: Batch, *models: Any) -> Iterator[None]:
    """Within the block the models can run a batch forward and backward: a pack's segments see themselves only."""
    with ExitStack() as stack:
        if isinstance(batch, Pack):
            for model in models:
                stack.enter_context(attending(model, batch))
        yield


def token_losses(
    model: Any,
    batch: Batch,
    *,
    head_chunk: int | None = None,
    reference: Reference | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The loss of every labelled token of a batch, inside `running` of the model and the reference.

    Args:
        model: a causal LM.
        batch: see `BatchLayout.make`.
        head_chunk: see `gradsteer.models.packing.pack_losses`.
        reference: take the divergence from it instead of the cross-entropy.
        temperature: divides the logits.

    Returns:
        losses: (labelled,) nats, differentiable; owners: (labelled,) the example of each.
    """
    if isinstance(batch, Pack):
        losses = pack_token_losses(model, batch, head_chunk=head_chunk, reference=reference, temperature=temperature)
        return losses, batch.owners
    logits, targets, owners = labelled_logits(model, batch)
    compared = None
    if reference is not None:
        with torch.no_grad():
            compared = labelled_logits(reference.model, batch)[0]
    return position_losses(logits, targets, compared, reference, temperature), owners


def token_weights(batch: Batch) -> Tensor | None:
    """(labelled,): what the losses that `token_losses` gives are multiplied by where they are weighted; None for 1."""
    if isinstance(batch, Pack):
        return batch.weights
    if "weights" not in batch:
        return None
    weights: Tensor = batch["weights"][:, 1:][batch["labels"][:, 1:] != IGNORE_INDEX]
    return weights


def labelled_logits(model: Any, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """The logits that predict each labelled token of a batch, inside `running`.

    Returns:
        logits: (labelled, vocabulary), differentiable; targets: (labelled,) token ids; owners: (labelled,) the example
        of each.
    """
    if isinstance(batch, Pack):
        return pack_logits(model, batch), batch.targets, batch.owners
    return padded_logits(model, batch)
