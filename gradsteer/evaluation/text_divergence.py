"""A text's perplexity under the model's weights, and their KL divergence from the anchor on that text.

`torchmetrics.text.Perplexity` gives the same perplexity (to 6e-7 in float32) in 1.02 times the time, while every
token is likely enough. It takes the logarithm of a probability: in float32 the perplexity of the whole text is infinite
where the loss of one token passes some 90 nats, as it may for a model that a large step broke, whose perplexity is
wanted. In float64 that is some 700 nats, in 2.3 times the time. So the sum is of `losses.cross_entropy`, which has no
such end; the tests hold it against torchmetrics'.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gradsteer.data.chat import IGNORE_INDEX, EncodedExample, collate
from gradsteer.models.batches import labelled_logits
from gradsteer.models.exact import doubled
from gradsteer.models.losses import cross_entropy, kl_divergence, precise
from gradsteer.records import text_digest

# of a batch with its padding: a gigabyte of float32 logits where the vocabulary is large
_TOKENS = 2048
# log-probabilities of the anchor that are kept, in all: 512 MB of float32
_KEPT_ENTRIES = 1 << 27


class TextDivergence:
    """Some text, and the anchor's next-token distributions on a part of its tokens.

    Args:
        examples: the text; tokens that are labelled count.
        pad_token_id: fills shorter examples of a batch.
        temperature: divides the logits of which the divergence is taken: it is between what is sampled from.
        max_entries: numbers that are kept of the anchor: tokens times vocabulary. With more tokens, the divergence is
            taken on so many of them, evenly spaced.

    Raises:
        ValueError: no text, or a temperature that is not positive.
    """

    def __init__(
        self,
        examples: Sequence[EncodedExample],
        pad_token_id: int,
        *,
        temperature: float = 1.0,
        max_entries: int = _KEPT_ENTRIES,
    ) -> None:
        if not examples:
            raise ValueError("there is no text to take a divergence on; accepted: at least one example")
        if not temperature > 0:
            raise ValueError(f"the temperature is {temperature}; accepted: more than 0")
        self.examples, self.temperature, self.max_entries = list(examples), temperature, max_entries
        ordered = sorted(self.examples, key=lambda example: -len(example.input_ids))
        self._batches: list[dict[str, Tensor]] = []
        while ordered:
            size = max(1, _TOKENS // len(ordered[0].input_ids))
            self._batches.append(collate(ordered[:size], pad_token_id))
            ordered = ordered[size:]
        self.digest = examples_digest(self.examples)
        self._anchor: list[Tensor] | None = None
        self._every = 1

    @torch.no_grad()
    def remember(self, model: Any) -> None:
        """Keeps the model's distributions as the anchor's."""
        kept: list[Tensor] = []
        num_tokens = sum(int((batch["labels"][:, 1:] != IGNORE_INDEX).sum()) for batch in self._batches)
        start = 0
        for logits, _ in self._scored(model):
            if start == 0:
                self._every = max(1, math.ceil(num_tokens * logits.shape[1] / self.max_entries))
            # of a half precision too the logarithms are taken, and kept, in float32
            kept.append(self._tempered(logits[(-start) % self._every :: self._every]).log_softmax(-1).cpu())
            start += len(logits)
        self._anchor = kept

    @torch.no_grad()
    def measure(self, model: Any) -> dict[str, float | None]:
        """Perplexity of the text, and the divergence from the anchor.

        Args:
            model: a causal LM in eval mode, with the weights that are measured.

        Returns:
            ``perplexity``, ``exp`` of the mean token loss over all labelled tokens; ``kl_to_anchor``, the mean of
            `divergences`, None where `remember` was not called. None too where a value is not finite.
        """
        loss, divergence, num_tokens, num_kept = 0.0, 0.0, 0, 0
        for number, (logits, targets) in enumerate(self._scored(model)):
            loss += float(doubled(cross_entropy(logits, targets)).sum())
            if self._anchor is not None:
                terms = self._terms(number, logits, num_tokens)
                divergence, num_kept = divergence + float(terms.sum()), num_kept + len(terms)
            num_tokens += len(targets)
        mean = loss / num_tokens if num_tokens else math.nan
        found: dict[str, float | None] = {"perplexity": math.exp(mean) if mean <= 700 else None, "kl_to_anchor": None}
        if num_kept and math.isfinite(divergence):
            found["kl_to_anchor"] = max(0.0, divergence / num_kept)
        return found

    @torch.no_grad()
    def divergences(self, model: Any) -> Tensor:
        """``KL(p_weights || p_anchor)`` of the next token, at every token that `remember` kept.

        Args:
            model: a causal LM in eval mode, with the weights that are measured.

        Returns:
            (kept,) float64, nats.
        """
        found, num_tokens = [], 0
        for number, (logits, _) in enumerate(self._scored(model)):
            found.append(self._terms(number, logits, num_tokens).cpu())
            num_tokens += len(logits)
        return torch.cat(found)

    def _terms(self, number: int, logits: Tensor, start: int) -> Tensor:
        """Divergences (kept of the batch,) of a batch whose first labelled token is the text's `start`-th."""
        assert self._anchor is not None, "a divergence is from what `remember` kept"
        chosen = logits[(-start) % self._every :: self._every]
        return doubled(kl_divergence(self._anchor[number].to(logits.device), self._tempered(chosen), "forward"))

    def _tempered(self, logits: Tensor) -> Tensor:
        return precise(logits) / self.temperature

    def _scored(self, model: Any) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits (labelled tokens, vocabulary) and targets of each batch."""
        device = next(model.parameters()).device
        for batch in self._batches:
            moved: Mapping[str, Tensor] = {key: value.to(device) for key, value in batch.items()}
            yield labelled_logits(model, moved)[:2]


def examples_digest(examples: Sequence[EncodedExample]) -> str:
    """Of the text's tokens, and of which count."""
    return text_digest(json.dumps([[example.input_ids, example.labels] for example in examples]))
