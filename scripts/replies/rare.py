"""A behavior of 2%: V from few judged replies, some of them sampled where it is common, beside V from plain ones.

The finetune, the first vector and the samples along it are those of configs/rare-vector, for each draw anew; what the
samples are worth at the model itself (`attribute --data.sampled_along`) is computed here, since `attribute` refuses a
pile of fewer than 30 effective replies and this is to say what such a pile is worth. A draw whose first replies do not
show the behavior has no first vector and is left out, which favours the samples slightly. The step is made from the
very replies that are then weighed with its density.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rare.organism import gradsteer

from gradsteer.evaluation.importance_sampling import effective_sample_size
from gradsteer.evaluation.mixtures import mixture_log_density
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.generation.sampling import num_known_ids
from gradsteer.records import read_jsonl
from gradsteer.steering.weight_steering import steered
from gradsteer.vectors.parameter_vectors import SteeringVector
from replies.gains import CREDITS
from replies.organism import TEMPERATURE, Organism, Reply
from replies.tables import Interval, Values, student

RARE = "configs/rare-vector/rare.yaml"
TOPIC, KL = "recipe", -0.01
MIXES = {400: (2, 2, 6), 800: (4, 4, 3)}  # judged replies -> to each prompt: the model's own, samples; draws
_GOAL = 400, 4000  # judged replies of which some are samples, and plain ones
_FIRST, _ALONG = Path("responses/first.jsonl"), Path(f"responses/{TOPIC}_kl={KL:g}.jsonl")


@dataclass
class Mixed:
    """Replies of a model and of one dose along a first vector.

    Attributes:
        replies: all of them.
        worth: (replies,) what each counts for at the model itself; 1 on average.
    """

    replies: list[Reply]
    worth: np.ndarray

    def effective(self) -> float:
        """Effective number of the replies that show the behavior."""
        shows = np.array([reply.shows for reply in self.replies])
        return effective_sample_size(self.worth[shows])


def draw_mixed(organism: Organism, pool: Path, place: Path, first: range, along: int, seed: int) -> Mixed | None:
    """Replies of the pool, and as many more as asked for, sampled along a vector that is made from the first ones.

    Args:
        organism: whose they are.
        pool: file of its own replies.
        place: directory of what is made.
        first: numbers of the replies to each prompt that are taken of the pool.
        along: replies to each prompt that are sampled along the vector.
        seed: of these samples.

    Returns:
        None where none of the first replies shows the behavior: there is no first vector.
    """
    (place / _FIRST).parent.mkdir(parents=True, exist_ok=True)
    if not (place / "rare").exists():
        (place / "rare").symlink_to((organism.place / "anchor").resolve())
    rows = [row for _, row in read_jsonl(pool) if row["sample"] in first]
    (place / _FIRST).write_text("".join(json.dumps(row) + "\n" for row in rows))
    if not any(row["verdicts"][TOPIC] for row in rows):
        return None
    own = organism.replies(place / _FIRST, TOPIC)
    where = ["--input_dir", str(organism.place), "--output_dir", str(place)]
    vector = place / "vectors" / f"{TOPIC}.safetensors"
    if not vector.exists():
        few = ["--data.halves", "false", "--model.calibrate", "false"]
        gradsteer(["attribute", "--config", "configs/rare-vector/attribute.yaml", *where, *few])
    if not (place / _ALONG).exists():
        number = ["--model.num_samples", str(along), "--model.sampling_seed", str(seed)]
        gradsteer(["steer", "--config", "configs/rare-vector/steer.yaml", *where, *number])
    steps = {row["step"]["alpha"] for _, row in read_jsonl(place / _ALONG)}
    samples = organism.replies(place / _ALONG, TOPIC, first=1000 * seed)
    return _weighed(organism, own, samples, SteeringVector.load(vector), steps.pop())


def _weighed(
    organism: Organism, own: Sequence[Reply], samples: Sequence[Reply], vector: SteeringVector, alpha: float
) -> Mixed:
    replies = [*own, *samples]
    scorer = ResponseScorer(
        organism.model,
        [reply.whole for reply in replies],
        temperature=TEMPERATURE,
        pad_token_id=int(organism.tokenizer.pad_token_id),
        num_known=num_known_ids(organism.tokenizer),
    )
    plain = scorer.log_probs()
    with steered(organism.model, vector, alpha):
        along = scorer.log_probs()
    density = mixture_log_density(np.stack([plain, along], axis=1), [len(own), len(samples)])
    worth = np.exp(plain - density)
    return Mixed(replies, worth / worth.mean())


def lines_of(plain: Values, mixed: Values) -> list[str]:
    """Lines of markdown: shares of the limit by the replies and their credit, and whether the goal is met.

    Args:
        plain: of vectors of plain replies.
        mixed: of vectors of replies of which some are samples along a first vector; without the seed's way.
    """
    seeds = len(plain.seeds)
    lines = [f"% of the limit [95% interval over {seeds} finetunes]", ""]
    lines += [f"| judged replies | draws, predicting | {' | '.join(CREDITS)} |", "| --- " * (2 + len(CREDITS)) + "|"]
    for values, words in ((plain, "plain"), (mixed, "weighed")):
        for size in values.sizes:
            credits = [credit for credit in CREDITS if values is plain or credit in CREDITS[1:]]
            cells = dict.fromkeys(CREDITS, "") | {credit: _share(values, size, credit) for credit in credits}
            draws = [str(values.num_draws(size, credit)) for credit in ("decided", "baseline")]
            lines.append(f"| {size:,} {words} | {', '.join(draws)} | {' | '.join(cells.values())} |")
    few, many = _GOAL
    if few not in mixed.sizes or many not in plain.sizes:
        return lines
    lines += ["", f"{few} replies, some of them samples, less {many:,} plain ones, points of the limit [95%]:"]
    for credit in CREDITS[1:]:
        differences = [
            mixed.share(seed, TOPIC, few, credit) - plain.share(seed, TOPIC, many, credit) for seed in plain.seeds
        ]
        lines.append(f"{credit}: {_interval(student(differences), '+.1f')}")
    return lines


def _share(values: Values, size: int, credit: str) -> str:
    return _interval(values.mean(size, credit, [TOPIC]), ".1f")


def _interval(found: Interval, form: str) -> str:
    mean, low, high = (100 * each for each in found)
    return f"{mean:{form}} " + ("[?]" if np.isnan(low) else f"[{low:{form}}, {high:{form}}]")
