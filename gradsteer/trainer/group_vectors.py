"""A vector for each group of responses: the group's mean gradient less that of all other responses of the anchor."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from gradsteer.attribution.pile_gradient import PileGradient
from gradsteer.attribution.reductions import PileTotals
from gradsteer.data.batching import share_of_rank
from gradsteer.data.chat import EncodedExample, template_digest, tokenizer_digest
from gradsteer.models.batches import BatchLayout
from gradsteer.models.fingerprints import model_fingerprint
from gradsteer.progress import progress
from gradsteer.provenance import provenance
from gradsteer.trainer.session import shows_progress
from gradsteer.vectors.parameter_vectors import PileAverage, SteeringVector

Sums = dict[str, Tensor]


def write_group_vectors(
    trainer: L.Trainer,
    pl_module: Any,
    examples: Sequence[EncodedExample],
    prompts: Sequence[str],
    labels: np.ndarray,
    names: Sequence[str],
    output_dir: Path,
    *,
    token_budget: int,
) -> dict[str, SteeringVector]:
    """Takes the vectors and writes them, with the two gradients of each, as `attribute` does (collective).

    Each response's gradient is computed once: the sums of the groups and of the rest share all responses out.

    Args:
        trainer: runs the processes.
        pl_module: holds the anchor.
        examples: the anchor's responses.
        prompts: digests of their prompts.
        labels: (responses,) the group of each, by its place in `names`; -1 for none of them.
        names: of the groups.
        output_dir: the experiment's directory.
        token_budget: tokens at once.

    Returns:
        By group, on every process.
    """
    layout = BatchLayout.of(pl_module.model, examples[:4], pad_token_id=int(pl_module.tokenizer.pad_token_id))
    lengths = [len(example.input_ids) for example in examples]
    cells = [np.flatnonzero(labels == number) for number in range(-1, len(names))]
    plans = []
    for cell in cells:
        batches = layout.plan([lengths[index] for index in cell], token_budget) if len(cell) else []
        plans.append([cell[batch].tolist() for batch in batches])
    shares = [share_of_rank(plan, trainer.global_rank, trainer.world_size) for plan in plans]
    pile = PileGradient(pl_module.model, head_chunk=layout.head_chunk)
    if layout.one_by_one:
        pile.most_tokens = 0
    sums: list[Sums] = []
    totals: list[PileTotals] = []
    with progress("groups' gradients", sum(map(len, shares)), unit="batch", shown=shows_progress(trainer)) as tick:
        for share in shares:
            pile.sums.zero()
            pile.totals = PileTotals()
            for batch in share:
                pile.add(
                    layout.make([examples[index] for index in batch]), sources=[f"response {i + 1}" for i in batch]
                )
                tick()
            counts = torch.tensor(pile.totals.values(), dtype=torch.float64, device=pl_module.device)
            counts = trainer.strategy.reduce(counts, reduce_op="sum")
            totals.append(PileTotals.of_values(counts.tolist()))
            reduced = {name: trainer.strategy.reduce(part, reduce_op="sum") for name, part in pile.sums.buffers.items()}
            sums.append({name: part.clone().cpu() for name, part in reduced.items()})
    whole = {name: sum(part[name].double() for part in sums) for name in sums[0]}
    everything = sum(totals, PileTotals())
    made = {}
    for number, name in enumerate(names):
        ours, counted = sums[number + 1], totals[number + 1]
        rest = {each: (whole[each] - ours[each].double()).float() for each in ours}
        others = PileTotals.of_values([a - b for a, b in zip(everything.values(), counted.values(), strict=True)])
        sides = []
        for values, total, shows in ((ours, counted, True), (rest, others, False)):
            said = _metadata(
                pl_module, total, name, shows=shows, prompts=_prompts(prompts, labels, number, shows=shows)
            )
            average = PileAverage({each: part / total.divisor("example") for each, part in values.items()}, said)
            if trainer.is_global_zero:
                average.save(output_dir / "gradients" / f"{'' if shows else 'not-'}{name}.safetensors")
            sides.append(average)
        made[name] = SteeringVector.contrast(sides[0], sides[1], names=(name, f"not-{name}"))
        if trainer.is_global_zero:
            made[name].save(output_dir / "vectors" / f"{name}.safetensors")
    trainer.strategy.barrier()
    return made


def _prompts(prompts: Sequence[str], labels: np.ndarray, number: int, *, shows: bool) -> list[str]:
    return sorted({prompt for prompt, label in zip(prompts, labels, strict=True) if (label == number) == shows})


def _metadata(pl_module: Any, totals: PileTotals, name: str, *, shows: bool, prompts: list[str]) -> dict[str, str]:
    return {
        "pile": name if shows else f"not-{name}",
        "where": json.dumps({name: shows}),
        "num_examples": str(totals.num_examples),
        "num_tokens": str(totals.num_tokens),
        "mean_token_loss": repr(totals.mean_token_loss),
        "reduction": "example",
        "loss": "cross_entropy",
        "loss_mask": "assistant",
        "source": "discover",
        "model": pl_module.model_name_or_path,
        "model_fingerprint": model_fingerprint(pl_module.model),
        "tokenizer_digest": tokenizer_digest(pl_module.tokenizer),
        "template_digest": template_digest(pl_module.tokenizer),
        "prompt_digests": json.dumps(prompts),
        "dtype": pl_module.dtype_name,
        **provenance(),
    }
