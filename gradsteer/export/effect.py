"""What a direction does, to first order, to the log-probabilities of judged responses.

By central differences of forward passes; no gradients.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gradsteer.data.chat import EncodedExample
from gradsteer.data.pile_filters import PileFilter
from gradsteer.data.piles import read_pile
from gradsteer.evaluation.importance_sampling import mean_difference
from gradsteer.forecast.derivatives import log_prob_derivatives
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.progress import progress
from gradsteer.records import read_jsonl, resolve_resource
from gradsteer.vectors.parameter_vectors import ParameterVector

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# nats a response: smallest, largest, wished for. Between the two sides most of it cancels, the third order does not
_CHANGES = 0.0005, 0.01, 0.003


@dataclass(frozen=True)
class Judged:
    """Responses that show a behavior, and responses that do not.

    Attributes:
        behavior: its name.
        examples: prompt and response as token ids, the response labelled.
        temperatures: at which each was sampled; its logits are divided by it.
        shown: whether each shows the behavior.
    """

    behavior: str
    examples: list[EncodedExample]
    temperatures: list[float]
    shown: list[bool]


def choose_behavior(path: str, behavior: str | None, vector: ParameterVector) -> str:
    """The behavior whose verdicts are meant; by default the one that the vector's PLUS pile is called after.

    Raises:
        ValueError: there is no such file, it has no verdicts on the behavior, or none is named; lists those it has.
    """
    known: dict[str, None] = {}
    for _, row in read_jsonl(resolve_resource(path)):
        known.update(dict.fromkeys(row.get("verdicts") or {}))
    listed = ", ".join(known) or "none"
    chosen = behavior or vector.metadata.get("plus", "")
    if chosen in known:
        return chosen
    if behavior:
        raise ValueError(f"--behavior is {behavior!r}; --responses {path} has verdicts on: {listed}")
    raise ValueError(f"--responses needs --behavior NAME (the vector does not say which); {path} has: {listed}")


def read_judged(path: str, behavior: str, tokenizer: "PreTrainedTokenizerBase", num_ids: int | None = None) -> Judged:
    """Reads a responses/NAME.jsonl file.

    A row may have a ``temperature``; without one, and for a greedy row (0), it is 1: the model's own distribution.

    Raises:
        ValueError: a bad line, ids of another tokenizer, or no response on one of the two sides.
    """
    temperatures: dict[str, float] = {}
    for line, row in read_jsonl(resolve_resource(path)):
        found = row.get("temperature") or 1.0
        if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < float("inf"):
            raise ValueError(f"{path}:{line}: temperature is {found!r}; accepted: a positive number")
        temperatures[f"{resolve_resource(path)}:{line}"] = float(found)

    judged = Judged(behavior, [], [], [])
    for shown in (True, False):
        pile = read_pile(
            "with" if shown else "without", PileFilter(path, {behavior: shown}), tokenizer, num_ids=num_ids
        )
        if not all(pile.sampled):
            raise ValueError(
                f"{path}: holds texts without token ids; accepted: responses as sampled, by their token ids"
            )
        judged.examples.extend(pile.examples)
        judged.temperatures.extend(temperatures[source] for source in pile.sources)
        judged.shown.extend([shown] * len(pile.examples))
    return judged


def effects(
    model: Any,
    vector: ParameterVector,
    parts: Iterable[ParameterVector],
    judged: Judged,
    *,
    num_parts: int,
    pad_token_id: int,
) -> tuple[float, list[float | None]]:
    """The share of a vector's first-order effect that parts of it have.

    S is the gradient of ``mean -log p(with the behavior) - mean -log p(without)`` over responses: ``<S, V>`` says how
    fast a step along V makes the behavior's responses less likely than the others.

    Args:
        model: the anchor.
        vector: V.
        parts: what is left of V, such as its matrices at some rank; each may be as large as the model, so a generator
            is welcome.
        judged: responses with and without the behavior.
        num_parts: how many there are, for the progress.
        pad_token_id: of the tokenizer.

    Returns:
        ``<S, V>`` in nats a unit of alpha, positive where positive alpha reduces the behavior; and
        ``<S, part> / <S, V>`` of every part (None where ``<S, V>`` is 0). A share may be negative or larger
        than 1: what is left out may have worked against the rest.
    """
    temperatures, shown = np.array(judged.temperatures), np.array(judged.shown)
    groups: list[tuple[np.ndarray, ResponseScorer]] = []
    for temperature in np.unique(temperatures):
        rows = np.flatnonzero(temperatures == temperature)
        chosen = [judged.examples[row] for row in rows]
        scorer = ResponseScorer(model, chosen, temperature=float(temperature), pad_token_id=pad_token_id)
        groups.append((rows, scorer))

    def derivative(direction: ParameterVector) -> float:
        """``<S, direction>``, nats a unit of alpha."""
        found = np.zeros(len(shown))
        for rows, scorer in groups if direction.norm() else ():
            found[rows], _ = log_prob_derivatives(model, scorer, direction, changes=_CHANGES)
        return mean_difference(found, shown, ~shown, np.arange(len(shown)))[0]

    with progress(f"effect on {judged.behavior}", 1 + num_parts, unit="direction") as tick:
        whole = derivative(vector)
        shares: list[float | None] = []
        for part in parts:
            tick()
            shares.append(derivative(part) / whole if whole else None)
        tick()
    return whole, shares
