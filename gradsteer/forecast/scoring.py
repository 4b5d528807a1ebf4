"""How likely a model finds responses, at whatever weights it has: ``log p(r)`` of whole responses as they were sampled.

Forward passes only, over packs as in attribution. Knows of encoded responses and a causal LM; knows nothing of
verdicts, files or Trainers.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradsteer.data.batching import plan_batches, share_of_rank
from gradsteer.data.chat import IGNORE_INDEX, EncodedExample, collate
from gradsteer.models.losses import cross_entropy, precise
from gradsteer.models.packing import Pack, attending, pack_logits, pack_token_losses, plan_packs
from gradsteer.models.packing_check import why_not_packs
from gradsteer.models.parallel import gathered

# logits at a time in the chunked head: 128 MB of float32
_HEAD_ENTRIES = 1 << 25
_CPU_TOKEN_BUDGET, _DEVICE_TOKEN_BUDGET = 2048, 16384
_PADDED_BATCH = 16

Nuclei = list[Tensor]  # of each batch (entries, 2): a labelled position and a token in its nucleus


class ResponseScorer:
    """``log p(r) = sum_t log p(r_t | prompt, r_<t)`` of a fixed set of responses, under the sampling settings.

    p is the softmax of ``logits / temperature``; with ``top_p`` below 1 it is renormalised over the nucleus, the
    smallest set of tokens that holds this probability, and a token outside of it has probability 0.

    Args:
        model: a causal LM in eval mode. Its weights may change between calls: that is the point.
        examples: the responses; labelled tokens are scored.
        temperature: that they were sampled at, more than 0.
        top_p: that they were sampled with.
        token_budget: tokens at once; changes the speed and the memory, not the result. By default 2048 on a CPU, 16384
            on other devices, an eighth of that where top_p is below 1.
        pad_token_id: fills padded batches, where the model does not take packs.
        rank: of this process; the batches are shared out, and every process is given all results.
        world_size: number of processes.

    Raises:
        ValueError: a setting out of its range, or no response.
    """

    def __init__(
        self,
        model: Any,
        examples: Sequence[EncodedExample],
        *,
        temperature: float = 1.0,
        top_p: float = 1.0,
        token_budget: int | None = None,
        pad_token_id: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; accepted: more than 0 (greedy replies have no weights)")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p is {top_p}; accepted: more than 0, at most 1")
        if not examples:
            raise ValueError("there are no responses to score; accepted: at least one")
        self.model, self.examples, self.temperature, self.top_p = model, list(examples), temperature, top_p
        self._pad, self._world_size = pad_token_id, world_size
        self.device = next(model.parameters()).device
        vocabulary = model.get_output_embeddings().weight.shape[0]
        self._head_chunk: int | None = max(64, _HEAD_ENTRIES // vocabulary)
        probe = self.examples[:2]
        self.packs = why_not_packs(model, probe, head_chunk=1) is None
        if not self.packs and why_not_packs(model, probe) is None:
            self.packs, self._head_chunk = True, None
        lengths = [len(example.input_ids) for example in self.examples]
        budget = _CPU_TOKEN_BUDGET if self.device.type == "cpu" else _DEVICE_TOKEN_BUDGET
        # a nucleus sorts all logits of a batch
        budget = token_budget or (budget if top_p == 1 else budget // 8)
        plan = plan_packs(lengths, budget) if self.packs else plan_batches(lengths, _PADDED_BATCH)
        plan += [[]] * (-len(plan) % world_size)  # where weights are split, processes meet in every forward pass
        self._batches = [(indices, self._batch(indices)) for indices in share_of_rank(plan, rank, world_size)]

    def __len__(self) -> int:
        """Batches that this process runs in a pass."""
        return len(self._batches)

    @property
    def num_tokens(self) -> int:
        """Scored tokens over all responses."""
        return sum(example.num_target_tokens for example in self.examples)

    @torch.no_grad()
    def log_probs(
        self, *, sampled_here: bool = False, nuclei: Nuclei | None = None, tick: Callable[[], None] | None = None
    ) -> np.ndarray:
        """One forward pass over the responses (collective).

        Args:
            sampled_here: the model has the weights that the responses were sampled from: every token was in its
                nucleus, whatever rounding says.
            nuclei: renormalise over these instead of over the nucleus of the present weights; see `nuclei`.
            tick: called after each batch.

        Returns:
            (responses,) float64, nats; -inf where a token is outside of its nucleus.
        """
        found: list[tuple[list[int], list[float]]] = []
        for number, (indices, batch) in enumerate(self._batches):
            if self.top_p == 1:
                losses, owners = self._losses(batch)
                values = -losses.double()
            else:
                logits, targets, owners = self._logits(batch)
                inside = _nucleus(logits, self.top_p) if nuclei is None else _dense(nuclei[number], logits)
                if sampled_here:
                    inside = inside.scatter(1, targets[:, None], True)
                within = logits.masked_fill(~inside, -torch.inf).log_softmax(dim=-1)
                values = within.gather(1, targets[:, None])[:, 0].double()
            sums = torch.zeros(max(1, len(indices)), dtype=torch.float64)
            sums.index_add_(0, owners.cpu(), values.cpu())
            found.append((indices, sums[: len(indices)].tolist()))
            if tick is not None:
                tick()
        everyone = gathered(found) if self._world_size > 1 else [found]
        result = np.full(len(self.examples), np.nan)
        for indices, sums_ in (pair for part in everyone for pair in part):
            result[indices] = sums_
        return result

    @torch.no_grad()
    def nuclei(self) -> Nuclei:
        """The tokens of every nucleus at the present weights, on this process; the sampled ones are among them.

        Differences between nearby weights are taken over these: the nucleus of each would jump.
        """
        found = []
        for _, batch in self._batches:
            logits, targets, _ = self._logits(batch)
            found.append(_nucleus(logits, self.top_p).scatter(1, targets[:, None], True).nonzero())
        return found

    def _batch(self, indices: Sequence[int]) -> Pack | dict[str, Tensor]:
        # a process that has run out takes part with a sequence whose loss is not counted
        nothing = EncodedExample([self._pad, self._pad], [IGNORE_INDEX, IGNORE_INDEX])
        chosen = [self.examples[index] for index in indices] or [nothing]
        if self.packs:
            return Pack.of(chosen, self.device)
        return {key: value.to(self.device) for key, value in collate(chosen, self._pad).items()}

    def _losses(self, batch: Pack | dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(labelled,) nats of the labelled tokens, and whose each is."""
        if isinstance(batch, Pack):
            with attending(self.model, batch):
                losses = pack_token_losses(self.model, batch, head_chunk=self._head_chunk, temperature=self.temperature)
                return losses, batch.owners
        logits, targets, owners = self._logits(batch)  # these are divided by the temperature already
        return cross_entropy(logits, targets), owners

    def _logits(self, batch: Pack | dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """``logits / temperature`` (labelled, vocabulary), the tokens (labelled,) and whose each is (labelled,)."""
        with attending(self.model, batch) if isinstance(batch, Pack) else nullcontext():
            if isinstance(batch, Pack):
                logits, targets, owners = pack_logits(self.model, batch), batch.targets, batch.owners
            else:
                output = self.model(
                    input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
                )
                following = batch["labels"][:, 1:]
                counted = following != IGNORE_INDEX
                logits, targets = output.logits[:, :-1][counted], following[counted]
                owners = counted.nonzero()[:, 0]
        return precise(logits) / self.temperature, targets, owners


def _nucleus(logits: Tensor, top_p: float) -> Tensor:
    """(positions, vocabulary) bool: the smallest set of tokens that holds `top_p`, as the sampler takes it."""
    ordered, indices = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
    before = torch.zeros_like(ordered, dtype=torch.float64)
    before[:, 1:] = ordered.cumsum(dim=-1, dtype=torch.float64)[:, :-1]
    return torch.zeros_like(logits, dtype=torch.bool).scatter(1, indices, before < top_p)


def _dense(entries: Tensor, like: Tensor) -> Tensor:
    mask = torch.zeros_like(like, dtype=torch.bool)
    mask[entries[:, 0], entries[:, 1]] = True
    return mask
