#!/usr/bin/env python
"""The rates of two runs of the same conditions beside each other, and how good the forecasts of each were.

    .venv/bin/python scripts/compare_precisions.py FLOAT32/results.json BFLOAT16/results.json

The interval of a difference is Newcombe's (1998, "Interval estimation for the difference between independent
proportions", method 10) from the two rates' own intervals, which are clustered by prompt. Both runs sample the same
prompts, so it is wide rather than narrow.
"""

import math
import sys
from typing import Any

from gradsteer.reports.cells import rate_text
from gradsteer.reports.predictions import agreement_lines
from gradsteer.reports.results import read_results


def difference(first: dict[str, Any], second: dict[str, Any]) -> tuple[float, float, float]:
    """Second rate less the first one, and its 95% interval."""
    one, two = first["rate"], second["rate"]
    low = math.hypot(two - second["ci_low"], first["ci_high"] - one)
    high = math.hypot(second["ci_high"] - two, one - first["ci_low"])
    return two - one, two - one - low, two - one + high


def lines(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    """The table and what follows from it.

    Raises:
        ValueError: the runs have other conditions.
    """
    names = [[row["name"] for row in report["conditions"]] for report in (first, second)]
    if names[0] != names[1]:
        raise ValueError(f"the runs have other conditions: {', '.join(sorted(set(names[0]) ^ set(names[1])))}")
    dtypes = [report["evaluation"]["dtype"] for report in (first, second)]
    found = [f"| condition | behavior | {dtypes[0]}, % [95%] of n | {dtypes[1]} | difference, points [95%] |"]
    found.append("| --- | --- | --- | --- | --- |")
    alike = number = 0
    for one, two in zip(first["conditions"], second["conditions"], strict=True):
        for behavior, rate in one["behaviors"].items():
            other = two["behaviors"][behavior]
            if rate["rate"] is None or other["rate"] is None:
                continue
            change, low, high = (100 * value for value in difference(rate, other))
            number += 1
            alike += low <= 0 <= high
            cells = [f"{rate_text(each)} of {each['num_scored']}" for each in (rate, other)]
            found.append(
                f"| {one['name']} | {behavior} | {' | '.join(cells)} | {change:+.1f} [{low:+.1f}, {high:+.1f}] |"
            )
    found += ["", f"{alike} of {number} differences have an interval that holds 0"]
    for dtype, report in zip(dtypes, (first, second), strict=True):
        found += ["", f"{dtype}:", *agreement_lines(report["conditions"])]
        for row in report.get("precision_check", ()):
            slope = "none" if row["slope"] is None else f"{row['slope']:.3f} +- {row['slope_error'] or math.nan:.2g}"
            correlation = "none" if row["correlation"] is None else f"{row['correlation']:.3f}"
            counts = f"{row['num_tokens']} tokens of {row['num_responses']} responses"
            took = f"retained {row['retained_fraction']:.3f}, step error {row['step_error']:.2f}"
            found.append(f"{row['condition']}: slope on float32 {slope}, correlation {correlation} ({counts}), {took}")
    return found


if __name__ == "__main__":
    print("\n".join(lines(*(read_results(path) for path in sys.argv[1:3]))))
