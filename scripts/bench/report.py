"""From measured rounds to tables and goals."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

MIB = 2**20
# relative error of the whole gradient against float64: rounding stays far below, a wrong mean is far above
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}


@dataclass
class Row:
    """What is known of a contender.

    Attributes:
        name: on the command line.
        title: in the table.
        note: its own setting.
        failure: why it could not run.
        rounds: tokens, seconds and peak of each round.
        error: relative error of its gradient, None where it claims none.
        covered: share of the parameters that it covers.
    """

    name: str
    title: str
    note: str = ""
    failure: str | None = None
    rounds: list[dict[str, float]] = field(default_factory=list)
    error: float | None = None
    covered: float | None = None

    @property
    def speeds(self) -> list[float]:
        """Tokens a second of every round."""
        return [round_["tokens"] / round_["seconds"] for round_ in self.rounds]


@dataclass(frozen=True)
class Goal:
    """A goal and what was measured; `measured` is None where it could not be."""

    text: str
    measured: float | None
    passed: bool | None
    shown: str


def ratios(one: Row, other: Row) -> list[float]:
    """Round by round, so that what slows the machine down slows both."""
    return [a / b for a, b in zip(one.speeds, other.speeds, strict=False)]


def spread(values: Sequence[float], digits: int) -> str:
    """Median [smallest .. largest]."""
    if not values:
        return "-"
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle} [{low} .. {high}]"


def contender_table(rows: Mapping[str, Row], dtype: str) -> str:
    """A line a contender."""
    header = ["contender", "tokens/s", "ours is faster by", "of the floor", "peak memory, MiB", "error", "covers"]
    lines = []
    ours, floor = rows.get("ours"), rows.get("floor")
    for row in rows.values():
        if row.failure is not None:
            lines.append([row.title, row.failure, *[""] * 5])
            continue
        faster = spread(ratios(ours, row), 2) if ours and ours.rounds and row is not ours else ""
        share = spread(ratios(row, floor), 3) if floor and floor.rounds and row is not floor else ""
        error = "" if row.error is None else f"{row.error:.1e}" + (" MISMATCH" if row.error > TOLERANCE[dtype] else "")
        covered = "" if row.covered is None else f"{row.covered:.0%}"
        peak = f"{row.rounds[0]['peak'] / MIB:,.0f}" if row.rounds else ""
        title = f"{row.title}: {row.note}" if row.note else row.title
        lines.append([title, spread(row.speeds, 0), faster, share, peak, error, covered])
    return markdown(header, lines)


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in row) + " |" for row in rows
    )


def speed_goals(rows: Mapping[str, Row], dtype: str) -> list[Goal]:
    """The goals on tokens a second."""
    least = {"float32": 0.95, "bfloat16": 0.90}[dtype]
    wanted = [
        ("floor", "gradsteer / dense floor", least),
        ("padded8", "gradsteer / padded batches of 8", 2.0),
        ("padded32", "gradsteer / padded batches of 32", 3.0),
        ("bergson", "gradsteer / bergson at its best", 1.5),
        ("bergson-default", "gradsteer / bergson by default", 2.5),
        *((name, f"gradsteer / {name}", 1.4) for name in ("trainer", "kronfluence", "opacus", "func")),
    ]
    goals = []
    for name, text, goal in wanted:
        if name not in rows or "ours" not in rows:
            continue
        found = ratios(rows["ours"], rows[name])
        middle = statistics.median(found) if found else None
        goals.append(Goal(f"{text} >= {goal}", middle, None if middle is None else middle >= goal, spread(found, 3)))
    checked = [row for row in rows.values() if row.error is not None]
    worst = max((row.error for row in checked if row.error is not None), default=None)
    if worst is not None:
        shown = f"{worst:.1e} ({max(checked, key=lambda row: row.error or 0).name})"
        text = f"all gradients equal the float64 oracle's within {TOLERANCE[dtype]:g}"
        goals.append(Goal(text, worst, worst <= TOLERANCE[dtype], shown))
    return goals


def study_goals(studies: Mapping[str, Mapping[str, Any]]) -> list[Goal]:
    """The goals on the studies; those that failed have no measurement."""
    goals = []
    if "trainer" in studies:
        found = studies["trainer"]
        failed = found.get("failure")
        overhead = [] if failed else [100 * (a / b - 1) for a, b in zip(found["one"], found["bare"], strict=True)]
        several = [] if failed else [100 * (a / b - 1) for a, b in zip(found["several"], found["one"], strict=True)]
        goals.append(_at_most("the Trainer's loop over the bare loop, in percent of a step, < 3", overhead, 3, failed))
        goals.append(_at_most("several piles over one with the same tokens, in percent, within 3", several, 3, failed))
    if "ours memory" in studies and "plain memory" in studies:
        ours, plain = studies["ours memory"], studies["plain memory"]
        failed = ours.get("failure") or plain.get("failure")
        found = [] if failed else [ours["peak"] / (plain["peak"] + plain["buffers"])]
        goals.append(_at_most("peak memory over a plain backward and float32 buffers <= 1.05", found, 1.05, failed))
    if "chunked head" in studies and "whole head" in studies:
        chunked, whole = studies["chunked head"], studies["whole head"]
        failed = chunked.get("failure") or whole.get("failure")
        found = [] if failed else [chunked["peak"] / whole["peak"]]
        vocabulary = "" if failed else f" ({whole['vocabulary']:,} entries)"
        goals.append(_at_most(f"peak memory, chunked head over all logits{vocabulary} <= 0.4", found, 0.4, failed))
    return goals


def _at_most(text: str, values: list[float], limit: float, failed: str | None) -> Goal:
    if failed is not None or not values:
        return Goal(text, None, None, failed or "-")
    middle = statistics.median(values)
    return Goal(text, middle, middle <= limit, spread(values, 3))


def fair_lines(rows: Mapping[str, Row]) -> list[str]:
    """Ratios where gradsteer covers no more than the other does."""
    if "ours-linear" not in rows:
        return []
    pairs = [(name, ratios(rows["ours-linear"], rows[name])) for name in ("bergson", "bergson-default") if name in rows]
    return [f"* gradsteer on bergson's parameters / {name}: {spread(found, 2)}" for name, found in pairs if found]


def study_lines(studies: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The studies' raw numbers, a line each."""
    lines = []
    for name, found in studies.items():
        if "failure" in found:
            lines.append(f"* {name}: not run: {found['failure']}")
        elif name == "trainer":
            seconds = {key: spread(found[key], 2) for key in ("bare", "one", "several", "besides")}
            lines.append(
                f"* loops over {found['responses']} responses ({found['tokens']:,} tokens, packs of {found['budget']}),"
                f" seconds: bare {seconds['bare']}; Trainer, one pile {seconds['one']}; Trainer, {found['piles']} piles"
                f" {seconds['several']}. Besides its loop `attribute` takes {seconds['besides']} s, once a run"
            )
        else:
            parts = [f"peak {found['peak'] / MIB:,.1f} MiB"]
            parts += [f"float32 buffers {found['buffers'] / MIB:,.1f} MiB"] if "buffers" in found else []
            parts += (
                [f"{found['labelled']:,} logit rows, {found['chunk'] or 'all'} at once"] if "chunk" in found else []
            )
            lines.append(f"* {name}: " + ", ".join(parts))
    return lines


def goal_table(goals: Sequence[Goal]) -> str:
    """A line a goal."""
    verdicts = {True: "pass", False: "**FAIL**", None: "not measured"}
    return markdown(["goal", "measured", ""], [[goal.text, goal.shown, verdicts[goal.passed]] for goal in goals])


def as_record(
    about: Mapping[str, Any],
    rows: Mapping[str, Row],
    studies: Mapping[str, Mapping[str, Any]],
    goals: Sequence[Goal],
) -> dict[str, Any]:
    """Everything, for a JSON file."""
    return {
        "about": dict(about),
        "contenders": {name: {**asdict(row), "tokens_per_second": row.speeds} for name, row in rows.items()},
        "studies": {name: dict(found) for name, found in studies.items()},
        "goals": [asdict(goal) for goal in goals],
    }
