#!/usr/bin/env python
r"""Vectors from fewer replies: what a vector of n judged replies is worth, by the credit that their tokens are given.

On the demo's organism (lightning_logs/demo, T = 0.6), over several finetunes of it and both topics: the first-order
fall of the log-odds for a step of norm 1 along V, ``<S, V> / ||V||`` nats, against a reference S of 10,000 replies to
prompts that V has not seen. The piles are {topic: true} and {topic: false}. A draw has as many replies to each of 100
prompts as to every other one; draws are disjoint.

    OMP_NUM_THREADS=1 PYTHONPATH=. python -u scripts/bench_replies.py             # half an hour of one idle core
    OMP_NUM_THREADS=1 PYTHONPATH=. python -u scripts/bench_replies.py --quick --directory lightning_logs/replies-quick

Everything sampled and measured is kept in --directory: the same command goes on where it was interrupted.

A behavior of 2% (configs/rare-vector): V from 400 and 800 judged replies, half of them sampled along a first vector
and weighed back, beside V from 400 to 4,000 plain ones:

    OMP_NUM_THREADS=1 PYTHONPATH=. python -u scripts/bench_replies.py --rare   # estimated: half an hour of one core

Of a pretrained model with judged replies: every credit's vectors, their split-half cosines, norms and slopes, and a
config file for `steer` to sample them at one norm and at one KL (scripts/replies/smollm2 runs all of it):

    OMP_NUM_THREADS=2 PYTHONPATH=. python -u scripts/bench_replies.py --model out/anchor \
        --responses out/responses/anchor-attribution.jsonl --behaviors bridge recipe --directory out/credit
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from rare.organism import DEMO, finetuned
from replies.gains import BLOCKS, PLAIN, limit, plain_vectors, predicting_vectors, reference, weighted_vectors
from replies.kept import Kept
from replies.organism import REFERENCE, TOPICS, TRAINING, Organism, draws
from replies.pretrained import CREDITS, first_samples, measured_vectors
from replies.rare import MIXES, RARE, TOPIC, draw_mixed, lines_of
from replies.tables import Values, tables_of

from gradsteer.progress import progress
from gradsteer.records import write_json

NUM_PROMPTS = 100  # of each set of the corpus
_DEFAULTS: dict[str, tuple[Any, Any]] = {  # of the demo's organism, and with --rare
    "directory": (Path("lightning_logs/replies"), Path("lightning_logs/replies-rare")),
    "sizes": ([100, 200, 400, 800, 1600, 3200], [400, 800, 4000]),
    "draws": ([6, 12, 5, 2, 1, 1], [6, 3, 1]),
    "pool": (None, 12_000),
    "reference": (10_000, 20_000),
}


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("lightning_logs/demo"), help="a finished demo run")
    parser.add_argument(
        "--directory", type=Path, help="of everything kept; lightning_logs/replies, or replies-rare there with --rare"
    )
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the finetunes; 0 is the demo's own, the anchor"
    )
    parser.add_argument(
        "--sizes", type=int, nargs="+", help="replies of a vector; 100, 200, 400 and so on to 3200, or 400, 800, 4000"
    )
    parser.add_argument(
        "--draws",
        type=int,
        nargs="+",
        help="disjoint sets of replies whose verdicts are predicted, by size; 6 12 5 2 1 1, or 6 3 1",
    )
    parser.add_argument("--pool", type=int, help="replies that draws are from; the largest size, or 12000")
    parser.add_argument("--reference", type=int, help="replies that S is from; 10000, or 20000")
    parser.add_argument("--rare", action="store_true", help="a behavior of 2%%; the second ones above are its defaults")
    parser.add_argument("--quick", action="store_true", help="two finetunes, few replies: nothing to conclude from")
    parser.add_argument("--model", type=Path, help="a directory: vectors of this model instead, by --responses")
    parser.add_argument("--responses", type=Path, help="its judged replies, of evaluate")
    parser.add_argument("--behaviors", nargs="+", default=list(TOPICS), help="of the judge's, for --model")
    parser.add_argument("--samples", type=int, help="of each prompt, for --model: the first ones; all if not given")
    parser.add_argument("--credits", nargs="+", default=list(CREDITS), choices=list(CREDITS), help="for --model")
    parser.add_argument("--norm", type=float, default=-0.06, help="of a step, alpha ||V||, with alpha's sign")
    parser.add_argument("--kl", type=float, default=-0.02, help="of a step, nats a token, with alpha's sign")
    parser.add_argument("arguments", nargs="*", help="with --model, behind --: passed to attribute")
    options = parser.parse_args()
    for name, given in vars(options).items():
        if given is None and name in _DEFAULTS:
            setattr(options, name, _DEFAULTS[name][options.rare])
    options.pool = options.pool or options.sizes[-1]
    if options.quick:
        options.seeds, options.sizes, options.draws = options.seeds[:2], [100, 200, 400], [2, 2, 1]
        options.reference = BLOCKS * NUM_PROMPTS
        options.pool = max(options.sizes[-1], smallest_pool() if options.rare else 0)
    if len(options.draws) != len(options.sizes):
        parser.error(f"--draws has {len(options.draws)} numbers for {len(options.sizes)} sizes")
    if options.sizes != sorted(set(options.sizes)) or min(options.draws) < 1:
        parser.error("--sizes are to rise, and --draws to be 1 or more")
    if wrong := [size for size in options.sizes if size < NUM_PROMPTS or size % NUM_PROMPTS]:
        parser.error(f"--sizes holds {wrong[0]}; accepted: multiples of {NUM_PROMPTS}, the number of prompts")
    if options.reference < BLOCKS * NUM_PROMPTS or options.reference % (BLOCKS * NUM_PROMPTS):
        parser.error(f"--reference is {options.reference}; accepted: multiples of {BLOCKS * NUM_PROMPTS}")
    if options.rare and options.pool < smallest_pool():
        parser.error(f"--pool is {options.pool}; accepted: at least {smallest_pool()}, of which the mixed draws are")
    if (options.model is None) != (options.responses is None):
        parser.error("--model and --responses go together")
    return options


def smallest_pool() -> int:
    """Replies that the mixed draws of every size take from the pool."""
    return NUM_PROMPTS * max(first * draws for first, _, draws in MIXES.values())


class Case:
    """One finetune and topic: its replies, S and the limit.

    Args:
        options: the bench's.
        organism: the finetune.
        seed: its seed.
        topic: of the two.
    """

    def __init__(self, options: argparse.Namespace, organism: Organism, seed: int, topic: str) -> None:
        self.organism, self.key = organism, {"seed": seed, "topic": topic}
        with progress(f"finetune {seed}: replies"):
            file = organism.sample(REFERENCE, options.reference // NUM_PROMPTS)
            self.pool = organism.sample(TRAINING, options.pool // NUM_PROMPTS)
        kept = options.directory / f"reference-{seed}-{topic}-{options.reference}.npy"
        with progress(f"finetune {seed}, {topic}: reference", options.reference, unit="response") as tick:
            blocks = reference(organism, file, topic, kept, tick)
        self.direction, (self.limit, self.error) = blocks.mean(axis=0), limit(blocks)
        self.replies = organism.replies(self.pool, topic)
        self.rate = sum(reply.shows for reply in self.replies) / len(self.replies)
        said(f"finetune {seed}, {topic}: {self}")

    def __str__(self) -> str:
        return (
            f"limit {self.limit:.2f} +- {self.error:.2f} nats, shown by {100 * self.rate:.1f}% of {len(self.replies):,}"
        )

    def row(self, credit: str, size: int, draw: int, vector: np.ndarray) -> dict[str, Any]:
        """What is kept of a vector."""
        norm = float(np.linalg.norm(vector))
        gain = float(self.direction @ vector) / norm
        return {**self.key, "size": size, "draw": draw, "credit": credit, "gain": gain, "norm": norm}


def measure(options: argparse.Namespace, cases: list[Case], kept: Kept) -> None:
    """Measures what is not there yet: small sizes first, so that an interrupted run says something of all finetunes."""
    for case in cases:
        if all(kept.has(**case.key, size=size, credit=credit) for size in options.sizes for credit in PLAIN):
            continue
        title = "finetune {seed}, {topic}: plain".format(**case.key)
        with progress(title, len(PLAIN) * len(case.replies), unit="response") as tick:
            each = [size // NUM_PROMPTS for size in options.sizes]
            found = list(plain_vectors(case.organism, case.replies, each, tick))
        kept.add([case.row(name, number * NUM_PROMPTS, draw, vector) for name, number, draw, vector in found])
    plan = [
        (case, size, draw, part)
        for size, most in zip(options.sizes, options.draws, strict=True)
        for case in cases
        for draw, part in zip(range(most), draws(case.replies, size // NUM_PROMPTS), strict=False)
        if not kept.has(**case.key, size=size, draw=draw, credit="baseline")
    ]
    with progress("predicting verdicts", sum(size for _, size, _, _ in plan), unit="response") as tick:
        for case, size, draw, part in plan:
            vectors, predicted = predicting_vectors(case.organism, part, tick)
            scores = {"brier": predicted.brier, "brier_of_rate": predicted.constant}
            kept.add([{**case.row(name, size, draw, vector), **scores} for name, vector in vectors.items()])
            tick(size)


def measure_mixed(options: argparse.Namespace, cases: list[Case], kept: Kept) -> None:
    """Measures what is not there yet of V from replies of which half are samples along a first vector."""
    plan = [
        (case, size, draw)
        for size, (*_, number) in MIXES.items()
        for draw in range(number)
        for case in cases
        if not kept.has(**case.key, size=size, draw=draw)
    ]
    with progress("steered samples", len(plan), unit="draw") as tick:
        for case, size, draw in plan:
            first, along, _ = MIXES[size]
            place = options.directory / f"mixed-{case.key['seed']}" / f"{size}-{draw}"
            own = range(first * draw, first * (draw + 1))
            found = draw_mixed(case.organism, case.pool, place, own, along, 1 + draw + size)
            if found is None:  # counted, and left out
                kept.add([{**case.key, "size": size, "draw": draw, "credit": None}])
            else:
                vectors = weighted_vectors(case.organism, found.replies, found.worth, lambda _: None)
                shows = sum(reply.shows for reply in found.replies)
                sizes = {"shows": shows, "effective": found.effective()}
                kept.add([{**case.row(name, size, draw, vector), **sizes} for name, vector in vectors.items()])
            tick()


def demo(options: argparse.Namespace) -> None:
    """Measures what is not there yet, prints the tables and writes replies.json."""
    options.directory.mkdir(parents=True, exist_ok=True)
    start, busy = time.perf_counter(), time.process_time()
    kept = Kept(options.directory / f"values-{options.reference}-{options.pool}.jsonl")
    config, topics = (RARE, (TOPIC,)) if options.rare else (DEMO, TOPICS)
    with progress("finetunes", len(options.seeds), unit="finetune") as tick:
        organisms = {}
        for seed in options.seeds:
            place = finetuned(options.demo, options.directory, seed, config)
            organisms[seed] = Organism(place, options.directory / f"replies-{seed}")
            tick()
    cases = [Case(options, organism, seed, topic) for seed, organism in organisms.items() for topic in topics]
    measure(options, cases, kept)
    rows = [row for row in kept.rows if row["seed"] in options.seeds and row["size"] in options.sizes]
    limits = {(case.key["seed"], case.key["topic"]): case.limit for case in cases}
    values, mixed = Values(rows, limits), []
    if options.rare:
        other = Kept(options.directory / f"mixed-{options.reference}-{options.pool}.jsonl")
        measure_mixed(options, cases, other)
        mixed = [row for row in other.rows if row["seed"] in options.seeds]
        lines = [*lines_of(values, Values([row for row in mixed if row["credit"]], limits)), "", *said_of(mixed)]
    else:
        lines = tables_of(values)
    print("\n".join([*lines, "", *("finetune {seed}, {topic}: ".format(**case.key) + str(case) for case in cases)]))
    for size in options.sizes:
        own = [
            row["brier"] / row["brier_of_rate"] for row in rows if row["size"] == size and row["credit"] == "baseline"
        ]
        print(
            f"{size:,} replies: Brier score of predictions {np.mean(own):.3f} of the constant rate's ({len(own)} fits)"
        )
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    limits_found = [
        {**case.key, "limit": case.limit, "standard_error": case.error, "rate": case.rate} for case in cases
    ]
    found = {"settings": settings, "limits": limits_found, "shares": values.to_list(), "vectors": [*rows, *mixed]}
    write_json(options.directory / "replies.json", found)
    said(
        f"{time.perf_counter() - start:.0f} s, of which this process computed {time.process_time() - busy:.0f} s; "
        f"{options.directory / 'replies.json'}"
    )


def said_of(mixed: list[dict[str, Any]]) -> list[str]:
    """Lines of how many replies showed the behavior where some were samples."""
    lines = []
    for size in MIXES:
        rows = {(row["seed"], row["draw"]): row for row in mixed if row["size"] == size}
        shows = [row["shows"] for row in rows.values() if row["credit"]]
        effective = [row["effective"] for row in rows.values() if row["credit"]]
        if not shows:
            lines.append(f"{size:,} replies, half of them samples: none of {len(rows)} draws had a first vector")
            continue
        counted = f"{np.mean(effective):.1f} ({min(effective):.1f} to {max(effective):.1f})"
        lines.append(
            f"{size:,} replies, half of them samples: {np.mean(shows):.0f} show it ({min(shows)} to {max(shows)}) and "
            f"count as {counted}; {len(shows)} draws, {len(rows) - len(shows)} without a first vector"
        )
    return lines


def said(text: str) -> None:
    """A line of progress."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def main() -> None:
    """One of the two modes."""
    options = parse()
    if options.model is None:
        demo(options)
    else:
        responses = options.responses
        if options.samples is not None:
            responses = first_samples(responses, options.samples, options.directory / "replies.jsonl")
        own = options.model, responses, options.behaviors, options.directory, options.credits
        measured_vectors(*own, (options.norm, options.kl), options.arguments)


if __name__ == "__main__":
    main()
