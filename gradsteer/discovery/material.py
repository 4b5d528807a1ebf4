"""What a model and its base make of responses: log-ratios and sketches, in parts that are kept."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from gradsteer.data.chat import EncodedExample
from gradsteer.discovery.kept_work import PART, KeptWork
from gradsteer.discovery.sketches import Sketcher
from gradsteer.discovery.spans import Span, in_spans, labelled_ids, spans_of, token_log_probs, weighted
from gradsteer.models.batches import BatchLayout
from gradsteer.models.fingerprints import model_fingerprint
from gradsteer.records import text_digest

TokenWeights = Literal["plain", "spans", "log_ratio"]
_VERSION = 1  # of what is made; kept work of another one is not read
_BETWEEN = " … "  # spans

Tick = Callable[[], None]


class ResponseReader:
    """Takes log-probabilities and sketches of fixed responses, and keeps them.

    Args:
        examples: the responses.
        directory: where parts are kept.
        token_budget: tokens at once.
        pad_token_id: fills padded batches.
        rank: of this process.
        world_size: number of processes.
        barrier: waits for all of them.
    """

    def __init__(
        self,
        examples: Sequence[EncodedExample],
        directory: Path,
        *,
        token_budget: int,
        pad_token_id: int = 0,
        rank: int = 0,
        world_size: int = 1,
        barrier: Callable[[], None] = lambda: None,
    ) -> None:
        self.examples, self.directory, self.token_budget = list(examples), directory, token_budget
        self.pad_token_id, self._barrier = pad_token_id, barrier
        self._processes = {"rank": rank, "world_size": world_size}

    def log_probs(self, model: Any, *, tick: Tick | None = None) -> list[np.ndarray]:
        """Of each response, (tokens,) nats; see `token_log_probs` (collective)."""
        layout = self._layout(model)

        def make(indices: Sequence[int]) -> list[np.ndarray]:
            chosen = [self.examples[index] for index in indices]
            return token_log_probs(model, chosen, layout, token_budget=self.token_budget, tick=tick)

        return self._kept("log_probs", [model_fingerprint(model)], make)

    def sketches(
        self,
        model: Any,
        *,
        size: int,
        seed: int,
        weights: Sequence[np.ndarray] | None = None,
        tick: Tick | None = None,
    ) -> tuple[np.ndarray, Sketcher]:
        """(responses, size) sketches, and what made them (collective).

        Args:
            model: whose gradients.
            size: see `Sketcher`.
            seed: likewise.
            weights: of each response, (tokens,) what its losses are multiplied by; None for 1.
            tick: called after every batch.
        """
        layout, sketcher = self._layout(model), Sketcher(model, size=size, seed=seed)

        def make(indices: Sequence[int]) -> list[np.ndarray]:
            chosen = [self.examples[index] for index in indices]
            if weights is not None:
                chosen = [weighted(each, weights[index]) for each, index in zip(chosen, indices, strict=True)]
            found = np.zeros((len(indices), sketcher.size), dtype=np.float32)
            for batch in layout.plan([len(each.input_ids) for each in chosen], self.token_budget):
                made = sketcher.add(layout.make([chosen[place] for place in batch]), head_chunk=layout.head_chunk)
                found[batch] = made.float().cpu().numpy()
                if tick is not None:
                    tick()
            if not np.isfinite(found).all():
                bad = indices[int(np.flatnonzero(~np.isfinite(found).all(axis=1))[0])]
                raise ValueError(f"the gradient of response {bad + 1} of {len(self.examples)} holds NaN or Inf")
            return list(found)

        given = "" if weights is None else text_digest(json.dumps([np.round(each, 6).tolist() for each in weights]))
        rows = self._kept("sketches", [model_fingerprint(model), size, seed, given], make)
        return np.array(rows, dtype=np.float64).reshape(len(rows), -1), sketcher

    def num_batches(self, model: Any) -> int:
        """How often a tick comes in all processes together, where nothing is kept yet."""
        layout, lengths = self._layout(model), [len(each.input_ids) for each in self.examples]
        parts = [lengths[start : start + PART] for start in range(0, len(lengths), PART)]
        return sum(len(layout.plan(part, self.token_budget)) for part in parts)

    def _layout(self, model: Any) -> BatchLayout:
        return BatchLayout.of(model, self.examples[:4], pad_token_id=self.pad_token_id)

    def _kept(
        self, name: str, decides: list[Any], make: Callable[[Sequence[int]], list[np.ndarray]]
    ) -> list[np.ndarray]:
        said = [_VERSION, *decides, [[each.input_ids, each.labels] for each in self.examples]]
        work = KeptWork(
            self.directory, name, text_digest(json.dumps(said)), len(self.examples), **self._processes
        )  # fmt: skip
        work.make(make)
        self._barrier()
        return work.read()


def loss_weights(
    how: TokenWeights, ratios: Sequence[np.ndarray], spans: Sequence[Sequence[Span]]
) -> list[np.ndarray] | None:
    """Of each response (tokens,) what its losses are multiplied by; None where all count alike.

    Args:
        how: ``plain``; ``spans``, 1 within them and 0 elsewhere; ``log_ratio``, ``max(0, r_t)``.
        ratios: log-ratios, nats.
        spans: of each response.
    """
    if how == "plain":
        return None
    if how == "spans":
        return [in_spans(each, len(ratio)) for each, ratio in zip(spans, ratios, strict=True)]
    if how != "log_ratio":
        raise ValueError(f"discovery.token_weights is {how!r}; accepted: {', '.join(get_args(TokenWeights))}")
    return [np.maximum(ratio, 0) for ratio in ratios]


def all_spans(
    examples: Sequence[EncodedExample], ratios: Sequence[np.ndarray] | None, *, threshold: float, reach: int
) -> list[list[Span]]:
    """The spans of every response; without log-ratios each response is one."""
    if ratios is None:
        return [[(0, len(labelled_ids(example)))] for example in examples]
    return [spans_of(each, threshold=threshold, reach=reach) for each in ratios]


def span_texts(tokenizer: Any, examples: Sequence[EncodedExample], spans: Sequence[Sequence[Span]]) -> list[str]:
    """What the spans of each response say."""
    found = []
    for example, each in zip(examples, spans, strict=True):
        ids = labelled_ids(example)
        texts = [tokenizer.decode(ids[start:stop], skip_special_tokens=True).strip() for start, stop in each]
        found.append(_BETWEEN.join(text for text in texts if text))
    return found
