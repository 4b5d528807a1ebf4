"""Responses of an anchor and its base, read as discover reads them."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradsteer.data.piles import read_pile
from gradsteer.discovery.finding import Material
from gradsteer.discovery.group_file import ReadingOptions
from gradsteer.discovery.material import ResponseReader, all_spans, loss_weights, span_texts
from gradsteer.discovery.spans import labelled_ids
from gradsteer.models.loading import load_causal_lm, load_tokenizer
from gradsteer.records import read_jsonl

BUDGET = 1024


@dataclass
class Read:
    """What was read.

    Attributes:
        material: for `find_groups`.
        rows: of the anchor's responses, whose verdicts the groups are compared with.
        examples: of all responses.
        ratios: log-ratios of all responses.
        seconds: of the sketches.
    """

    material: Material
    rows: list[dict[str, Any]]
    examples: list[Any]
    ratios: list[np.ndarray]
    seconds: float

    def verdicts(self, behavior: str) -> np.ndarray:
        """(anchor's responses,) bool."""
        return np.array([row["verdicts"].get(behavior) is True for row in self.rows])


def read(anchor: Path, base: Path, ours: Path, theirs: Path, kept: Path, *, sketched: bool = True) -> Read:
    """Reads both sides.

    Args:
        anchor: directory of the model.
        base: likewise.
        ours: responses of the anchor.
        theirs: of the base.
        kept: where parts are kept.
        sketched: whether sketches are wanted; grouping by words reads none.
    """
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(str(anchor))
    piles = [read_pile("anchor", str(ours), tokenizer), read_pile("base", str(theirs), tokenizer)]
    examples = [example for pile in piles for example in pile.examples]
    reader = ResponseReader(examples, kept, token_budget=BUDGET, pad_token_id=int(tokenizer.pad_token_id))
    model, other = load_causal_lm(str(anchor)).eval(), load_causal_lm(str(base)).eval()
    ratios = [own - their for own, their in zip(reader.log_probs(model), reader.log_probs(other), strict=True)]
    options = ReadingOptions()
    spans = all_spans(examples, ratios, threshold=options.threshold, reach=options.reach)
    begun = time.perf_counter()
    sketches = np.zeros((len(examples), 0))
    if sketched:
        weights = loss_weights(options.token_weights, ratios, spans)
        sketches, _ = reader.sketches(model, size=options.size, seed=0, weights=weights)
    seconds = time.perf_counter() - begun
    material = Material(
        [tokenizer.decode(labelled_ids(example), skip_special_tokens=True) for example in examples],
        span_texts(tokenizer, examples, spans),
        sketches,
        [prompt for pile in piles for prompt in pile.prompts],
        np.repeat([True, False], [len(pile.examples) for pile in piles]),
    )
    return Read(material, [row for _, row in read_jsonl(ours)], examples, ratios, seconds)
