"""What the estimators are compared on: pools of replies to resample from, and the truth by brute force. All of it is
kept in files as it is made, so that an interrupted run goes on where it was."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gradsteer.evaluation.mixtures import mixture_log_density
from rare.organism import Organism

STEPS = (0.0, 1 / 3, 2 / 3, 1.0)  # of the way from the anchor to the target, where sources are
COMMON = -0.24  # the step back where the behavior is more common still
SHARES = (0.1, 0.2, 0.3, 0.4, 0.6, 0.8)  # of the anchor's logits in the rival's blends; 1 is the anchor itself
_CHUNK = 40  # replies to each prompt between two notes of the truth


@dataclass
class Pools:
    """Replies of one finetune for one target.

    Attributes:
        alpha: the target's.
        shows: source -> (prompts, replies) bool; sources are numbers of `STEPS`, and ``back``.
        log_probs: source -> (prompts, replies, steps) ``log p(r)`` at every step, the target's last. Of ``back``
            (prompts, replies, 2): at its own step and the target's.
        blends: share of the anchor's logits -> (prompts, replies) bool.
    """

    alpha: float
    shows: dict[str, np.ndarray]
    log_probs: dict[str, np.ndarray]
    blends: dict[float, np.ndarray]


def find_targets(organism: Organism, rates: Sequence[float], number: int) -> list[float]:
    """Steps at which the behavior is about so rare, by replies from four steps pooled and weighed.

    Args:
        organism: the anchor.
        rates: from high to low.
        number: of replies to each prompt and step.
    """
    sources = [0.0, 0.25, 0.5, 0.75]
    found = [organism.at(alpha, number, f"pilot {alpha}") for alpha in sources]
    shows = np.concatenate([each.shows.reshape(-1) for each in found])
    examples = [example for each in found for example in each.examples]
    grid = [*sources, 0.12, 0.36, 0.6, 0.9, 1.05]
    scores = organism.log_probs(examples, grid)
    mixture = mixture_log_density(scores[:, : len(sources)], [each.shows.size for each in found])
    order = np.argsort(grid)
    odds = []
    for column in order:
        weights = np.exp(scores[:, column] - mixture)
        odds.append(np.log(weights[shows].sum() / weights[~shows].sum()))
    targets = []
    for rate in rates:  # the log-odds fall along the grid; the first step below
        goal = np.log(rate / (1 - rate))
        place = next((i for i in range(1, len(odds)) if odds[i] <= goal), len(odds) - 1)
        low, high = (np.array(grid)[order][i] for i in (place - 1, place))
        share = (odds[place - 1] - goal) / (odds[place - 1] - odds[place])
        targets.append(round(float(low + min(share, 1.5) * (high - low)), 3))
    return targets


def read_pools(organism: Organism, alpha: float, number: int, file: Path) -> Pools:
    """The pools for a target, made where the file is not there.

    Args:
        organism: the anchor.
        alpha: the target's.
        number: of replies to each prompt in a pool.
        file: where they are kept, an .npz.
    """
    if not file.is_file():
        steps = [round(step * alpha, 6) for step in STEPS]
        found: dict[str, Any] = {}
        for name, source, scored in [
            *((str(i), step, steps) for i, step in enumerate(steps)),
            ("back", COMMON, [COMMON, alpha]),
        ]:
            replies = organism.at(source, number, f"pool {source} for {alpha}")
            found[f"shows {name}"] = replies.shows
            scores = organism.log_probs(replies.examples, scored)
            found[f"log_probs {name}"] = scores.reshape(*replies.shows.shape, len(scored))
        for share in SHARES:
            found[f"blend {share}"] = organism.blended(alpha, share, number, f"blend {share} for {alpha}").shows
        partial = file.with_suffix(".part.npz")
        np.savez(partial, **found)
        partial.rename(file)
    with np.load(file) as kept:
        parts: dict[str, dict[str, np.ndarray]] = {"shows": {}, "log_probs": {}, "blend": {}}
        for key in kept.files:
            kind, name = key.split(" ", 1)
            parts[kind][name] = kept[key]
    blends = {float(share): shows for share, shows in parts["blend"].items()} | {1.0: parts["shows"]["0"]}
    return Pools(alpha, parts["shows"], parts["log_probs"], blends)


def brute_force(organism: Organism, alpha: float, number: int, file: Path) -> dict[str, Any]:
    """Counts replies at the target until there are so many; the file is written after every few.

    Args:
        organism: the anchor.
        alpha: the target's.
        number: of replies in all, at least; as many to each prompt.
        file: of the counts; what it holds counts.

    Returns:
        ``alpha``, ``num_each`` (replies to each prompt), ``positives`` (by prompt) and ``tokens``.
    """
    counts = {"alpha": alpha, "num_each": 0, "positives": [0] * len(organism.prompts), "tokens": 0}
    if file.is_file():
        counts = json.loads(file.read_text())
        if counts["alpha"] != alpha or len(counts["positives"]) != len(organism.prompts):
            raise ValueError(f"{file} is of another target or of other prompts; choose another --directory")
    each = -(-number // len(organism.prompts))
    while counts["num_each"] < each:
        more = min(_CHUNK, each - counts["num_each"])
        replies = organism.at(alpha, more, f"truth at {alpha}", first=counts["num_each"])
        counts["num_each"] += more
        counts["tokens"] += replies.tokens
        counts["positives"] = (np.array(counts["positives"]) + replies.shows.sum(axis=1)).tolist()
        partial = file.with_suffix(".part")
        partial.write_text(json.dumps(counts))
        partial.rename(file)
    return counts
