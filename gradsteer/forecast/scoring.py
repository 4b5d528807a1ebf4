"""How likely a model finds responses, at whatever weights it has: ``log p(r)`` of whole responses as they were sampled.

Forward passes only, over packs as in attribution; what replies to one prompt share of them, the prompt, is read once.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradsteer.data.batching import share_of_rank
from gradsteer.data.chat import EncodedExample
from gradsteer.generation.sampling import nucleus
from gradsteer.models.batches import (
    Batch,
    BatchLayout,
    labelled_logits,
    num_run,
    running,
    token_losses,
    token_weights,
)
from gradsteer.models.exact import doubled
from gradsteer.models.losses import precise
from gradsteer.models.parallel import gathered
from gradsteer.models.shared_prompts import prompt_of

_CPU_TOKEN_BUDGET, _DEVICE_TOKEN_BUDGET = 2048, 16384

Nuclei = list[Tensor]  # of each batch (entries, 2): a labelled position and a token in its nucleus


class ResponseScorer:
    """``log p(r) = sum_t log p(r_t | prompt, r_<t)`` of a fixed set of responses, under the sampling settings.

    p is the softmax of ``logits / temperature``; with ``top_p`` below 1 it is renormalised over the nucleus, the
    smallest set of tokens that holds this probability, and a token outside of it has probability 0. Ids that the
    sampler never draws (`num_known_ids`) have probability 0 too, unless a response was sampled with one.

    Args:
        model: a causal LM in eval mode. Its weights may change between calls: that is the point.
        examples: the responses; labelled tokens are scored. Where they have weights, the sums over tokens are weighted.
        temperature: that they were sampled at, more than 0.
        top_p: that they were sampled with.
        token_budget: tokens at once; changes the speed and the memory, not the result. By default 2048 on a CPU, 16384
            on other devices, an eighth of that where top_p is below 1.
        pad_token_id: fills padded batches, where the model does not take packs.
        num_known: ids from this one on are never drawn; by default all of the model's are.
        rank: of this process; the batches are shared out, and every process is given all results.
        world_size: number of processes.
        shared_prompts: read equal prompts once; changes the speed, not the result. False is for comparison.

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
        num_known: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        shared_prompts: bool = True,
    ) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; accepted: more than 0 (greedy replies have no weights)")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p is {top_p}; accepted: more than 0, at most 1")
        if not examples:
            raise ValueError("there are no responses to score; accepted: at least one")
        self.model, self.examples, self.temperature, self.top_p = model, list(examples), temperature, top_p
        self._world_size = world_size
        drawn = max(max(example.labels) for example in self.examples)
        # responses of other samplers may hold ids that this one never draws: theirs drew from all
        self._num_known = num_known if num_known is not None and drawn < num_known else None
        shared = shared_prompts and len({prompt_of(example) for example in self.examples}) < len(self.examples)
        self.layout = BatchLayout.of(model, self.examples[:2], pad_token_id=pad_token_id, shared_prompts=shared)
        # a nucleus sorts all logits of a batch
        default = _CPU_TOKEN_BUDGET if self.layout.device.type == "cpu" else _DEVICE_TOKEN_BUDGET
        budget = token_budget or (default if top_p == 1 else default // 8)
        plan = self.layout.plan_examples(self.examples, budget)
        plan += [[]] * (-len(plan) % world_size)  # where weights are split, processes meet in every forward pass
        self._batches = [
            (indices, self.layout.make([self.examples[index] for index in indices]))
            for indices in share_of_rank(plan, rank, world_size)
        ]

    def __len__(self) -> int:
        """Batches that this process runs in a pass."""
        return len(self._batches)

    @property
    def num_tokens(self) -> int:
        """Scored tokens over all responses."""
        return sum(example.num_target_tokens for example in self.examples)

    @property
    def tokens_per_pass(self) -> int:
        """Tokens, padding among them, that this process runs in a pass."""
        return sum(num_run(batch) for _, batch in self._batches)

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
                with self._running(batch):
                    losses, owners = token_losses(
                        self.model, batch, head_chunk=self.layout.head_chunk, temperature=self.temperature
                    )
                values = -doubled(losses)
            else:
                logits, targets, owners = self._logits(batch)
                inside = (
                    nucleus(logits.softmax(dim=-1), self.top_p) if nuclei is None else _dense(nuclei[number], logits)
                )
                if sampled_here:
                    inside = inside.scatter(1, targets[:, None], True)
                within = logits.masked_fill(~inside, -torch.inf).log_softmax(dim=-1)
                values = doubled(within.gather(1, targets[:, None])[:, 0])
            if (weights := token_weights(batch)) is not None:
                values = values * weights.to(values.device)
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
            found.append(self._nucleus(logits).scatter(1, targets[:, None], True).nonzero())
        return found

    @contextmanager
    def _running(self, batch: Batch) -> Iterator[None]:
        """Within the block the model can run the batch, and its head rules out what the sampler never draws."""

        def rule_out(_head: Any, _inputs: Any, logits: Tensor) -> Tensor:
            return logits.index_fill(-1, torch.arange(known, logits.shape[-1], device=logits.device), -torch.inf)

        head = self.model.get_output_embeddings()
        rows = 0 if head is None else head.weight.shape[0]
        known = rows if self._num_known is None else self._num_known
        handle = head.register_forward_hook(rule_out) if known < rows else None
        try:
            with running(batch, self.model):
                yield
        finally:
            if handle is not None:
                handle.remove()

    def _nucleus(self, logits: Tensor) -> Tensor:
        """(labelled, vocabulary) bool: what the sampler would draw from."""
        return nucleus(logits.softmax(dim=-1), self.top_p)

    def _logits(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """``logits / temperature`` (labelled, vocabulary), the tokens (labelled,) and whose each is (labelled,)."""
        with self._running(batch):
            logits, targets, owners = labelled_logits(self.model, batch)
        return precise(logits) / self.temperature, targets, owners


def _dense(entries: Tensor, like: Tensor) -> Tensor:
    mask = torch.zeros_like(like, dtype=torch.bool)
    mask[entries[:, 0], entries[:, 1]] = True
    return mask
