#!/usr/bin/env python
r"""What discover finds on the demo's organism, against labels that it never sees; and where nothing is.

    OMP_NUM_THREADS=1 PYTHONPATH=. python -u scripts/discover_study.py seeds  # three finetunes
    ... nulls [--runs 20]     # finetunes on ordinary replies, and an anchor that is its base: none should be taught
    ... rare                  # a third thing in 20, 10, 5 and 2% of the finetune's examples
    ... cost                  # sketches beside the gradients of attribute, over the same responses, side by side
    ... steering              # a discovered group's vector beside the judge's own: cosine, effect at equal KL
    ... pretrained --demo DIR # as seeds, of any run: DIR/{anchor,base}, DIR/responses/{anchor,base}-attribution.jsonl

Everything sampled is kept in --directory: the same command goes on where it was interrupted.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from discover.atoms import atoms
from discover.materials import BUDGET, Read, read
from discover.organisms import RARE_PATTERN, ordinary, sampled, taught, with_rare

from gradsteer.discovery.feature_map import FeatureOptions
from gradsteer.discovery.finding import find_groups
from gradsteer.discovery.groups import Grouping
from gradsteer.discovery.naming import f1_score
from gradsteer.evaluation.statistics import wilson

BEHAVIORS = ("bridge", "recipe")
KINDS = ("text", "gradient", "both")
NULLS = ("anchor = base", "ordinary replies")
SHARES = (0.2, 0.1, 0.05, 0.02)


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["seeds", "nulls", "rare", "cost", "steering", "pretrained"])
    parser.add_argument("--demo", type=Path, default=Path("lightning_logs/demo"), help="a finished demo run")
    parser.add_argument(
        "--directory", type=Path, default=Path("lightning_logs/discover-study"), help="of all that is kept"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the finetunes")
    parser.add_argument("--runs", type=int, default=20, help="of nulls")
    parser.add_argument("--first", type=int, default=0, help="number of the first null")
    parser.add_argument("--nulls", nargs="+", default=list(NULLS), choices=NULLS, help="which")
    parser.add_argument("--text", action="store_true", help="pretrained: group by words alone, without sketches")
    parser.add_argument("--samples", type=int, default=8, help="replies to each prompt, of nulls and rare")
    return parser.parse_args()


def best(labels: np.ndarray, truth: np.ndarray) -> float:
    """The best F1 of any one group with a set (responses,) bool."""
    return max((f1_score(labels == number, truth) for number in range(int(labels.max(initial=-1)) + 1)), default=0.0)


def table_of(found: Read, name: str, kinds: tuple[str, ...] = KINDS, methods: tuple[str, ...] = ("average",)) -> None:
    """Prints a line for every kind of features, and one of the peer's recipe."""
    from sklearn.metrics import adjusted_mutual_info_score

    number = len(found.rows)
    truths = [found.verdicts(behavior) for behavior in found.rows[0]["verdicts"]]
    classes = sum(truth.astype(int) << place for place, truth in enumerate(truths))

    def say(what: str, labels: np.ndarray, groups: int, more: str) -> None:
        ours = labels[:number]
        scores = " ".join(f"{best(ours, truth):.3f}" for truth in truths)
        information = adjusted_mutual_info_score(classes, ours)
        print(f"{name:<12} {what:<20} {groups:>3} groups   F1 {scores}   AMI {information:.2f}   {more}", flush=True)

    for kind in kinds:
        for method in methods:
            begun = time.perf_counter()
            groups = find_groups(found.material, FeatureOptions(kind), Grouping(method))  # type: ignore[arg-type]
            stable = groups.groups.stability.get(groups.groups.number, float("nan"))
            taught_ = sum(each.share.taught is True for each in groups.found)
            more = f"stability {stable:.2f}, {taught_} taught, {time.perf_counter() - begun:.0f} s"
            say(f"{kind}, {method}", groups.groups.labels, len(groups.groups), more)
    some = np.flatnonzero([bool(text) for text in found.material.spans])
    for wanted in (2, 6) if found.material.sketches.size else ():
        labels = np.full(len(found.material.spans), -1)
        labels[some], coherence = atoms(found.material.sketches[some], wanted)
        say(f"atoms, {wanted}", labels, wanted, f"coherence {coherence.min():.2f} to {coherence.max():.2f}")


def seeds(options: argparse.Namespace) -> None:
    """Three finetunes: every taught behavior, one group each?"""
    for seed in options.seeds:
        place = taught(options.demo, options.directory, seed)
        theirs = options.demo / "responses" / "base-attribution.jsonl"
        ours = options.demo / "responses" / "anchor-attribution.jsonl"
        ours = ours if seed == 0 else sampled(options.demo, place, "attribution", 8)
        found = read(place / "anchor", options.demo / "base", ours, theirs, options.directory / f"kept-{seed}")
        table_of(found, f"seed {seed}")


def nulls(options: argparse.Namespace) -> None:
    """Where nothing was taught: how many runs have a taught group?"""
    base = options.demo / "base"
    theirs = sampled(options.demo, options.demo, "attribution", options.samples, 100, "base")
    for what in options.nulls:
        having = spread = 0
        for run in range(options.first, options.first + options.runs):
            if what == "anchor = base":
                place, model = options.demo, "base"
            else:
                place, model = ordinary(options.demo, options.directory, run), "anchor"
            ours = sampled(options.demo, place, "attribution", options.samples, run, model)
            kept = options.directory / f"kept-null-{model}-{run}"
            found = read(place / model, base, ours, theirs, kept, sketched=False)
            groups = find_groups(found.material, FeatureOptions(), Grouping(), seed=run)
            named = [f"{each.title} ({each.share.by_words.comparison.difference:+.2f})" for each in groups.found
                     if each.share.taught and each.share.by_words is not None]  # fmt: skip
            spread += sum(each.share.comparison is not None and each.share.comparison.ci_low is not None
                          and each.share.comparison.ci_low > 0 for each in groups.found) > 0  # fmt: skip
            having += bool(named)
            spans = sum(bool(text) for text in found.material.spans)
            print(f"{what}, run {run}: {spans} spans, {len(groups.groups)} groups, taught: {named}", flush=True)
        low, high = wilson(having / options.runs, options.runs)
        print(
            f"{what}: {having} of {options.runs} runs have a taught group [{100 * low:.0f}%, {100 * high:.0f}%]; by "
            f"the share of spans alone {spread} would"
        )


def rare(options: argparse.Namespace) -> None:
    """The smallest share of a finetune's examples at which a third thing is a group of its own."""
    import re

    theirs = options.demo / "responses" / "base-attribution.jsonl"
    for share in SHARES:
        for seed in options.seeds:
            place = with_rare(options.demo, options.directory, share, seed)
            ours = sampled(options.demo, place, "attribution", options.samples)
            kept = options.directory / f"kept-{place.name}"
            found = read(place / "anchor", options.demo / "base", ours, theirs, kept, sketched=False)
            third = np.array([bool(re.search(RARE_PATTERN, row["completion"])) for row in found.rows])
            groups = find_groups(found.material, FeatureOptions(), Grouping())
            ours_ = groups.groups.labels[: len(third)]
            scores = " ".join(f"{best(ours_, truth):.2f}" for truth in (*map(found.verdicts, BEHAVIORS), third))
            print(
                f"third in {100 * share:g}% of examples, seed {seed}: in {100 * third.mean():.1f}% of {len(third)}; "
                f"{len(groups.groups)} groups, {len(groups.taught)} taught, F1 bridge, recipe, third: {scores}",
                flush=True,
            )


def cost(options: argparse.Namespace) -> None:
    """Seconds of the sketches and of the gradients of attribute, in turns."""
    from gradsteer.attribution.pile_gradient import PileGradient
    from gradsteer.data.piles import read_pile
    from gradsteer.discovery.sketches import Sketcher
    from gradsteer.models.batches import BatchLayout
    from gradsteer.models.loading import load_causal_lm, load_tokenizer

    anchor = str(options.demo / "anchor")
    model: Any = load_causal_lm(anchor).eval()
    path = str(options.demo / "responses" / "anchor-attribution.jsonl")
    examples = read_pile("responses", path, load_tokenizer(anchor)).examples
    layout = BatchLayout.of(model, examples)
    plan = layout.plan([len(example.input_ids) for example in examples], BUDGET)
    batches = [layout.make([examples[index] for index in indices]) for indices in plan]
    sketcher, pile = Sketcher(model, size=4096), PileGradient(model, head_chunk=layout.head_chunk)
    seconds: dict[str, list[float]] = {"attribute": [], "sketches": []}
    for _ in range(7):
        for name, run in (
            ("attribute", pile.add),
            ("sketches", lambda b: sketcher.add(b, head_chunk=layout.head_chunk)),
        ):
            begun = time.process_time()
            for batch in batches:
                run(batch)
            seconds[name].append(time.process_time() - begun)
    medians = {name: float(np.median(each)) for name, each in seconds.items()}
    ratios = np.array(seconds["sketches"]) / np.array(seconds["attribute"])
    print(f"CPU seconds over {len(examples)} responses, median of 7 in turns: {medians}")
    print(f"sketches cost {np.median(ratios):.2f} times attribute [{ratios.min():.2f}, {ratios.max():.2f}]")


def steering(options: argparse.Namespace) -> None:
    """A discovered vector beside the judge's own."""
    from replies.organism import gradsteer

    from gradsteer.vectors.parameter_vectors import SteeringVector

    out = options.directory / "steering"
    if not (out / "discovery" / "groups.npz").exists():
        words = ["discover", "--config", "configs/demo-discover/discover.yaml", "--discovery.shifts", "[]"]
        gradsteer([*words, "--input_dir", str(options.demo), "--output_dir", str(out)])
    made = {path.stem: SteeringVector.load(path) for path in sorted((out / "vectors").glob("group-*.safetensors"))}
    judged = {name: SteeringVector.load(options.demo / "vectors" / f"{name}.safetensors") for name in BEHAVIORS}
    for name, vector in made.items():
        cosines = ", ".join(f"{other} {vector.cosine(each):+.3f}" for other, each in judged.items())
        print(f"{name}: cosine with the judge's own: {cosines}", flush=True)
    words = ["steer", "--config", "configs/demo/steer.yaml", "--input_dir", str(options.demo), "--output_dir", str(out)]
    vectors = {**{name: str(out / "vectors" / f"{name}.safetensors") for name in made},
               **{name: str(options.demo / "vectors" / f"{name}.safetensors") for name in BEHAVIORS}}  # fmt: skip
    words += ["--steering.vectors", repr(vectors)]
    words += ["--steering.log_odds_shifts", "null", "--steering.kl_budgets", "[0.01]"]
    words += ["--steering.forecast", "null", "--steering.random_controls", "0", "--steering.permuted_controls", "0"]
    gradsteer([*words, "--steering.delta_scales", "[]", "--overwrite", "true"])
    print((out / "tables.txt").read_text() if (out / "tables.txt").exists() else (out / "results.csv").read_text())


def pretrained(options: argparse.Namespace) -> None:
    """The table of `seeds` for another run's directory."""
    theirs, ours = (options.demo / "responses" / f"{side}-attribution.jsonl" for side in ("base", "anchor"))
    kept = options.directory / "kept-pretrained"
    found = read(options.demo / "anchor", options.demo / "base", ours, theirs, kept, sketched=not options.text)
    table_of(found, options.demo.name, ("text",) if options.text else KINDS)
    groups = find_groups(found.material, FeatureOptions(), Grouping())
    for each in groups.found:
        print(f"{each.name}: {each.share.rate.num_positive} of the anchor's, taught {each.share.taught}: {each.title}")
    ours_ = list(zip(found.ratios, found.rows, strict=False))
    for behavior in (*BEHAVIORS, None):
        shows = [
            each for each, row in ours_ if (behavior is None or row["verdicts"].get(behavior)) and (each > 0).any()
        ]
        shares = [np.sort(np.maximum(each, 0))[::-1][:10].sum() / np.maximum(each, 0).sum() for each in shows]
        low, middle, high = np.percentile(shares, [25, 50, 75])
        print(
            f"{behavior or 'all'}: the ten largest tokens hold {100 * middle:.0f}% [quartiles {100 * low:.0f}, "
            f"{100 * high:.0f}] of a reply's positive log-ratios, {len(shows)} replies"
        )


if __name__ == "__main__":
    given = parse()
    globals()[given.part](given)
