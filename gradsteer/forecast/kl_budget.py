"""How far steered weights move the next-token distributions, and the alpha at which they have moved by a given amount.

Knows of encoded text, a causal LM and vectors; knows nothing of files or Trainers.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch

from gradsteer.data.chat import IGNORE_INDEX, EncodedExample, collate
from gradsteer.models.losses import Reference, kl_divergence
from gradsteer.models.packing import Pack, attending, pack_token_losses, plan_packs
from gradsteer.models.packing_check import why_not_packs
from gradsteer.vectors.parameter_vectors import ParameterVector

Statistic = Literal["mean", "p95"]
_CLOSE = 0.01  # of the budget
_TOKEN_BUDGET = 2048
# logits at a time in the chunked head: 128 MB of float32
_HEAD_ENTRIES = 1 << 25


class TokenDivergence:
    """``KL(p_steered || p_anchor)`` of the next token, at every labelled token of some text.

    Holds a second copy of the model, whose weights are the steered ones.

    Args:
        model: a causal LM in eval mode, with the anchor's weights.
        examples: text; the divergence is taken where tokens are labelled.
        temperature: that responses are sampled at: the divergence is between what is sampled from.
        statistic: ``mean`` over these tokens, or ``p95``, their 95th percentile.
        pad_token_id: fills padded batches, where the model does not take packs.

    Raises:
        ValueError: no text, or an unknown statistic.
    """

    def __init__(
        self,
        model: Any,
        examples: Sequence[EncodedExample],
        *,
        temperature: float = 1.0,
        statistic: Statistic = "mean",
        pad_token_id: int = 0,
    ) -> None:
        if statistic not in get_args(Statistic):
            raise ValueError(f"the statistic is {statistic!r}; accepted: {', '.join(get_args(Statistic))}")
        if not examples:
            raise ValueError("there is no text to take a divergence on; accepted: at least one example")
        if not temperature > 0:
            raise ValueError(f"the temperature is {temperature}; accepted: more than 0")
        self.model, self.temperature, self.statistic = model, temperature, statistic
        self._steered = copy.deepcopy(model)
        device = next(model.parameters()).device
        lengths = [len(example.input_ids) for example in examples]
        chosen = [[examples[index] for index in pack] for pack in plan_packs(lengths, _TOKEN_BUDGET)]
        self._head_chunk: int | None = None
        if why_not_packs(model, list(examples[:2]), head_chunk=1) is None:
            self._head_chunk = max(64, _HEAD_ENTRIES // model.get_output_embeddings().weight.shape[0])
        if self._head_chunk is not None or why_not_packs(model, list(examples[:2])) is None:
            self._batches: list[Any] = [Pack.of(pack, device) for pack in chosen]
        else:
            padded = [collate(pack, pad_token_id) for pack in chosen]
            self._batches = [{key: value.to(device) for key, value in batch.items()} for batch in padded]

    def __len__(self) -> int:
        """Batches of one measurement."""
        return len(self._batches)

    @torch.no_grad()
    def measure(self, vector: ParameterVector, alpha: float, *, tick: Callable[[], None] | None = None) -> float:
        """The statistic at ``theta + alpha V``, nats a token."""
        originals, moved = dict(self.model.named_parameters()), dict(self._steered.named_parameters())
        for name, original in originals.items():
            if name not in vector:  # an earlier vector may have moved it
                moved[name].copy_(original)
                continue
            value = original.double() if original.dtype == torch.float64 else original.float()
            moved[name].copy_(torch.add(value, vector[name].to(value), alpha=alpha))
        values = []
        for batch in self._batches:
            values.append(self._divergences(batch).double().cpu())
            if tick is not None:
                tick()
        every = torch.cat(values)
        return float(every.mean() if self.statistic == "mean" else every.kthvalue(math.ceil(0.95 * len(every))).values)

    def _divergences(self, batch: Any) -> torch.Tensor:
        """(labelled,)."""
        if isinstance(batch, Pack):
            with attending(self.model, batch), attending(self._steered, batch):
                return pack_token_losses(
                    self.model,
                    batch,
                    head_chunk=self._head_chunk,
                    reference=Reference(self._steered, "forward"),
                    temperature=self.temperature,
                )
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
        counted = batch["labels"][:, 1:] != IGNORE_INDEX
        ours, theirs = (model(**inputs).logits[:, :-1][counted] for model in (self.model, self._steered))
        return kl_divergence(ours, theirs, "forward", self.temperature)


def solve_budget(
    measure: Callable[[float], float], budget: float, *, start: float, max_measurements: int = 12
) -> tuple[float, float]:
    """The alpha above 0 at which a divergence reaches the budget, within 1%.

    A divergence grows as alpha squared where alpha is small: secant steps on its logarithm against that of alpha, from
    an exponent of 2, take a few measurements.

    Args:
        measure: the divergence at an alpha above 0, nats.
        budget: nats, more than 0.
        start: a first alpha.
        max_measurements: at most so many.

    Returns:
        alpha, and the divergence measured there.

    Raises:
        ValueError: the budget is not positive, or was not reached.
    """
    if not 0 < budget < math.inf:
        raise ValueError(f"the budget is {budget}; accepted: nats a token, more than 0")
    below: tuple[float, float] | None = None
    above: tuple[float, float] | None = None
    point, exponent = math.log(start), 2.0
    value = math.nan
    last: tuple[float, float] | None = None
    for _ in range(max_measurements):
        value = measure(math.exp(point))
        if abs(value - budget) <= _CLOSE * budget:
            return math.exp(point), value
        # what rounding leaves of a tiny divergence, even below 0, says only that alpha is far too small
        gap = math.log(max(value, budget * 1e-12) / budget) if math.isfinite(value) else math.log(1e6)
        if last is not None and point != last[0] and 0.2 < (gap - last[1]) / (point - last[0]) < 8:
            exponent = (gap - last[1]) / (point - last[0])
        last = point, gap
        if gap < 0:
            below = last
        else:
            above = last
        ahead = point - max(-8.0, min(8.0, gap / exponent))
        if below is not None and above is not None and not below[0] < ahead < above[0]:
            ahead = (below[0] + above[0]) / 2
        point = ahead
    raise ValueError(f"no alpha was found at which the divergence is {budget} nats a token; the last gave {value:.3g}")
