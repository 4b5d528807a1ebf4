#!/usr/bin/env python
"""How often does this model do X, where X is rare: four ways to say, from equal numbers of sampled replies.

On the demo's organism (lightning_logs/demo, T = 0.6) X is digressing to the bridge, at steps along the bridge's vector
where the rate is about 1e-2, 1e-3 and 1e-4. The truth is brute force there. The estimators: naive sampling at the
target; ours, replies sampled where the behavior is common and weighed to the target (self-normalised importance
weights of whole responses); ours from several steps along the way, pooled by the balance heuristic; and the rival,
Logit Path Extrapolation (scripts/rare/rival.py says what was tried for it). Prompts are drawn again and again from
pools of replies, over several finetunes of the organism.

    OMP_NUM_THREADS=1 PYTHONPATH=. python scripts/bench_rare.py       # two cores for about three quarters of an hour
    OMP_NUM_THREADS=1 PYTHONPATH=. python scripts/bench_rare.py --rates 1e-2 --truth 2000 --finetunes 1 --pool 16 \
        --draws 50 --prompts 20 --directory lightning_logs/rare-small                             # does it run?

Everything sampled is kept in --directory as it is made: the same command goes on where it was interrupted, and with a
larger --truth it counts on. What it saves is the mean squared error of naive sampling over the estimator's: at 20x
naive sampling needs 20 times as many replies for the same error.
"""

import argparse
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rare.estimators import Found, naive, weighed
from rare.organism import Organism, finetuned, notes_vector
from rare.pools import brute_force, find_targets, read_pools
from rare.rival import PLANS, cross_validated, extrapolated
from rich.table import Table

from gradsteer.reports.printing import print_whole

OURS = {
    "ours, a step back (alpha -0.24)": ((), True),
    "ours, the anchor": ((0,), False),
    "ours, 1/3 of the way": ((1,), False),
    "ours, 2/3 of the way": ((2,), False),
    "ours, pooled: anchor, 2/3": ((0, 2), False),
    "ours, pooled: 1/3, 2/3": ((1, 2), False),
    "ours, pooled: anchor, 1/3, 2/3, target": ((0, 1, 2, 3), False),
}


def organism_of(options: argparse.Namespace, seed: int) -> Organism:
    """A finetune and its V."""
    place = finetuned(options.demo, options.directory, seed)
    return Organism(place, notes_vector(place, options.directory / f"vector-{seed}"), options.prompts)


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("lightning_logs/demo"), help="a finished demo run")
    parser.add_argument("--directory", type=Path, default=Path("lightning_logs/rare"), help="of everything kept")
    parser.add_argument(
        "--finetunes", type=int, default=3, help="the anchor, and the anchor finetuned with other seeds"
    )
    parser.add_argument(
        "--rates", type=float, nargs="+", default=[1e-2, 1e-3, 1e-4], help="about which the targets are"
    )
    parser.add_argument("--truth", type=int, nargs="+", default=[10_000, 100_000, 500_000], help="its replies, by rate")
    parser.add_argument("--prompts", type=int, default=100, help="of the evaluation prompts")
    parser.add_argument("--each", type=int, default=8, help="replies to a prompt of an estimate; a multiple of 8")
    parser.add_argument("--pool", type=int, default=32, help="replies to a prompt of a pool")
    parser.add_argument("--draws", type=int, default=400, help="resamplings of prompts")
    parser.add_argument("--processes", type=int, default=2, help="each takes one core")
    options = parser.parse_args()
    if len(options.truth) != len(options.rates):
        parser.error(f"--truth has {len(options.truth)} numbers for {len(options.rates)} rates")
    if options.each % 8 or options.pool < options.each:
        parser.error("--each is to be a multiple of 8, and --pool at least as large")
    return options


def targets_of(options: argparse.Namespace, seed: int) -> list[float]:
    """Makes the finetune; the steps of its targets, kept in a file."""
    file = options.directory / f"targets-{seed}-{options.prompts}.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    if missing := [rate for rate in options.rates if str(rate) not in known]:
        organism = organism_of(options, seed)
        known |= dict(zip(map(str, missing), find_targets(organism, missing, options.each), strict=True))
        file.write_text(json.dumps(known))
    said(f"finetune {seed}: steps {', '.join(f'{rate:g}: {known[str(rate)]:+.3f}' for rate in options.rates)}")
    return [known[str(rate)] for rate in options.rates]


def measured(options: argparse.Namespace, case: tuple[int, float, float, int]) -> dict[str, Any]:
    """All estimators for one finetune and one target.

    Args:
        options: the bench's.
        case: finetune, rate, alpha, replies of the truth.
    """
    seed, rate, alpha, number = case
    organism = organism_of(options, seed)
    stem = f"{seed}-{rate:g}-{options.prompts}"
    pools = read_pools(organism, alpha, options.pool, options.directory / f"pools-{stem}-{options.pool}.npz")
    said(f"finetune {seed}, about {rate:g}: pools are there; {number} replies of the truth")
    truth = brute_force(organism, alpha, number, options.directory / f"truth-{stem}.json")
    positives, each = np.array(truth["positives"]), truth["num_each"]
    of_prompts = positives / each
    exact = float(of_prompts.mean())
    error = float(np.sqrt((of_prompts * (1 - of_prompts)).sum() / each)) / len(positives)
    how = {"each": options.each, "draws": options.draws, "seed": 1000 + seed}
    estimates: dict[str, Found] = {"naive": naive(of_prompts, **how)}
    for name, (sources, back) in OURS.items():
        estimates[name] = weighed(pools, sources, back=back, **how)
    plan, scores = cross_validated(pools.blends, options.each, 40, seed)
    rivals = {str(one): extrapolated(pools.blends, one, **how) for one in PLANS}
    estimates["rival, by its cross-validation"] = rivals[str(plan)]
    errors = {name: float(np.square(found.rates - exact).mean()) for name, found in rivals.items()}
    best = min(errors, key=errors.__getitem__)
    estimates["rival, the best plan in hindsight"] = rivals[best]
    said(f"finetune {seed}, about {rate:g}: the rate is {exact:.3g}, {positives.sum()} of {each * len(positives)}")
    relative = {name: float(np.sqrt(value)) / max(exact, 1e-12) for name, value in errors.items()}
    return {
        "finetune": seed, "about": rate, "alpha": alpha, "rate": exact, "standard_error": error,
        "positives": int(positives.sum()), "replies": int(each * len(positives)), "tokens": truth["tokens"],
        "estimators": {name: _summary(found, exact) for name, found in estimates.items()},
        "rival": {"plan": str(plan), "best": best, "scores": scores, "relative_errors": relative},
    }  # fmt: skip


def _summary(found: Found, exact: float) -> dict[str, float | None]:
    scale = max(exact, 1e-12)
    return {
        "bias": float(found.rates.mean() - exact) / scale,
        "relative_error": float(np.sqrt(np.square(found.rates - exact).mean())) / scale,
        "coverage": float(((found.lows <= exact) & (exact <= found.highs)).mean()),
        "width": float(np.median(found.highs - found.lows)) / scale,
        "bounds": float(found.bounds.mean()),
        "effective_sample_size": None if np.isnan(found.sizes).all() else float(np.median(found.sizes)),
    }


def table_of(cases: list[dict[str, Any]], rates: list[float], replies: int) -> Table:
    """One row for each target and estimator, over the finetunes."""
    number = len({case["finetune"] for case in cases})
    table = Table(title=f"a rare rate from {replies} replies; finetunes: {number}", title_justify="left")
    for column in (
        "estimator",
        "bias %",
        "relative error",
        "covers %",
        "interval / rate",
        "effective",
        "bounds %",
        "saves",
    ):
        table.add_column(column, justify="left" if column == "estimator" else "right", no_wrap=True)
    for rate in rates:
        own = [case for case in cases if case["about"] == rate]
        shown = ", ".join(f"{100 * case['rate']:.2g} +- {100 * case['standard_error']:.1g}" for case in own)
        table.add_section()
        table.add_row(f"true rates {shown} %", style="bold")
        plain = np.mean([case["estimators"]["naive"]["relative_error"] ** 2 for case in own])
        for name in own[0]["estimators"]:
            found = [case["estimators"][name] for case in own]
            error = np.mean([each["relative_error"] ** 2 for each in found])
            sizes = [each["effective_sample_size"] for each in found]
            table.add_row(
                name,
                f"{100 * np.mean([each['bias'] for each in found]):+.0f}",
                f"{np.sqrt(error):.2f}",
                f"{100 * np.mean([each['coverage'] for each in found]):.0f}",
                f"{np.mean([each['width'] for each in found]):.1f}",
                "-" if None in sizes else f"{np.mean(sizes):.0f}",
                f"{100 * np.mean([each['bounds'] for each in found]):.0f}",
                f"{plain / error:.1f}x",
            )
        plans = " / ".join(dict.fromkeys(case["rival"]["plan"] for case in own))
        table.add_row(f"  chosen: {plans}", style="dim")
    return table


def said(text: str) -> None:
    """A line of progress."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def main() -> None:
    """Samples what is not there yet, compares, prints one table and writes rare.json."""
    options = parse()
    options.directory.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with ProcessPoolExecutor(options.processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        seeds = range(options.finetunes)
        alphas = dict(zip(seeds, pool.map(partial(targets_of, options), seeds), strict=True))
        cases = [
            (seed, rate, alphas[seed][place], options.truth[place])
            for place, rate in sorted(enumerate(options.rates), key=lambda pair: pair[1])  # the longest first
            for seed in seeds
        ]
        found = list(pool.map(partial(measured, options), cases))
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    (options.directory / "rare.json").write_text(json.dumps({"settings": settings, "cases": found}, indent=1) + "\n")
    table = table_of(found, options.rates, options.each * options.prompts)
    print_whole(table)
    print("bias and relative error: of the truth; covers: how often the 95% interval holds the truth; bounds: draws in")
    print(
        "which the rate hangs on one reply, so that only its interval would be printed (they count here all the same)"
    )
    said(f"{time.perf_counter() - start:.0f} s; {options.directory / 'rare.json'}")


if __name__ == "__main__":
    main()
