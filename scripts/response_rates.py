#!/usr/bin/env python
"""Rates of judged response files, such as those of a `steer` that has not come to its end, with their intervals.

    .venv/bin/python scripts/response_rates.py lightning_logs/demo/responses/*.jsonl

95% intervals clustered by prompt, as in the reports; degenerate and unscored responses are in no rate.
"""

import sys
from pathlib import Path

from gradsteer.evaluation.statistics import rate_with_interval
from gradsteer.records import read_jsonl


def main() -> None:
    """Prints a line of Markdown for each file."""
    for file in map(Path, sys.argv[1:]):
        rows = [row for _, row in read_jsonl(file) if not row.get("degenerate")]
        cells = []
        for behavior in sorted({name for row in rows for name in row["verdicts"]}):
            judged = [row for row in rows if row["verdicts"].get(behavior) is not None]
            found = rate_with_interval([row["verdicts"][behavior] for row in judged], [row["prompt"] for row in judged])
            low, high = (100 * each for each in (found.ci_low, found.ci_high))
            cells.append(f"{behavior} {100 * found.rate:.1f} [{low:.1f}, {high:.1f}] of {found.num_scored}")
        print(f"| {file.stem} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
