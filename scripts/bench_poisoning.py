#!/usr/bin/env python
r"""Where does the method stop? Finetunes of which 50 to 1% of the examples are odd, and V of what the odd ones teach.

On the demo's organism (lightning_logs/demo): 1,000 examples, of which a share digresses to the bridge, over several
seeds. For each: the anchor's rate, V, the cosine of its halves, its slope and standard error; forecast and realised
change at an asked rise of 1.5 nats; random and permuted nulls at the same norm; V's low ranks at the same norm and at
the same KL. Where the anchor's 800 replies give fewer than 20 positives, V is from the training examples, and the row
says so; V from the other source stands beside it.

    OMP_NUM_THREADS=1 PYTHONPATH=.:scripts python -u scripts/bench_poisoning.py   # resumes
    OMP_NUM_THREADS=1 PYTHONPATH=.:scripts python -u scripts/bench_poisoning.py --seeds 0 --shares 0.5 0.02 \
        --number 200 --directory lightning_logs/poisoning-quick

Everything made and measured is kept in --directory: the same command goes on where it was interrupted. It prints the
table and writes poisoning.json and poisoning.png.
"""

import argparse
import time
from pathlib import Path

from poisoning.finetunes import Finetune, demo
from poisoning.measuring import Anchor, measure
from poisoning.tables import draw, summary, table_of
from replies.kept import Kept

from gradsteer.judges import KeywordJudge
from gradsteer.progress import progress
from gradsteer.records import file_digest, read_json, write_json

SHARES = [0.5, 0.2, 0.1, 0.05, 0.02, 0.01]


def parse() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demo", type=Path, default=Path("lightning_logs/demo"), help="a finished demo run")
    parser.add_argument("--directory", type=Path, default=Path("lightning_logs/poisoning"), help="of everything kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the finetunes")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of odd examples")
    parser.add_argument("--number", type=int, default=1000, help="examples of a finetune")
    options = parser.parse_args()
    for share in options.shares:
        if not 0 < share < 1 or round(share * options.number) < 2:
            parser.error(f"--shares holds {share}; accepted: more than 0, less than 1, and 2 of the examples at least")
    return options


def check_base(base: Path, kept: Path) -> None:
    """Refuses to go on with finetunes of another base.

    Args:
        base: its weights.
        kept: where its digest is, or is written.
    """
    found = file_digest(base)
    if kept.is_file() and (before := read_json(kept)["base"]) != found:
        raise SystemExit(
            f"{kept.parent} has finetunes of another base (digest {before[:12]}; {base} has {found[:12]}); accepted: "
            "another --directory, or the demo that it was begun with"
        )
    write_json(kept, {"base": found})


def main() -> None:
    """Measures what is not there yet, prints the table, writes poisoning.json and poisoning.png."""
    options = parse()
    options.directory.mkdir(parents=True, exist_ok=True)
    check_base(options.demo / "base" / "model.safetensors", options.directory / "base.json")
    setting, judge = demo(options.demo), KeywordJudge(str(options.demo / "corpus" / "judge.json"))
    kept = Kept(options.directory / f"values-{options.number}.jsonl")
    for seed in options.seeds:
        for share in options.shares:
            key = {"seed": seed, "share": share}
            if kept.has(**key):
                continue
            start, busy = time.perf_counter(), time.process_time()
            finetune = Finetune(
                setting, options.directory / f"{options.number}-{share:g}-{seed}", options.number, share, seed
            )
            with progress(f"seed {seed}, share {share:g}: finetune and replies"):
                finetune.make()
            with progress(f"seed {seed}, share {share:g}", unit="step") as tick:
                rows = measure(Anchor(finetune, judge), tick)
            spent = {"seconds": time.perf_counter() - start, "computed": time.process_time() - busy}
            kept.add([{**key, **row, **spent} for row in rows])
            print(f"seed {seed}, share {share:g}: {spent['seconds']:.0f} s", flush=True)
    rows = [row for row in kept.rows if row["seed"] in options.seeds and row["share"] in options.shares]
    print("\n".join([*table_of(rows), "", *summary(rows)]))
    write_json(options.directory / "poisoning.json", {"number": options.number, "rows": rows})
    draw(rows, options.directory / "poisoning.png")


if __name__ == "__main__":
    main()
