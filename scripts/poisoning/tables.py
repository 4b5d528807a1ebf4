"""The table, the figure and the summary of what was measured."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from poisoning.measuring import BUDGET, RANKS, SHIFT

Row = dict[str, Any]
HEADER = (
    "share", "seed", "anchor %", "V of", "cosine", "slope / norm +- error", "asked +1.5: forecast %", "realised %",
    "realised nats", "nulls, nats", *(f"rank {rank}: norm, KL" for rank in RANKS), "V of the other source",
)  # fmt: skip


def _cases(rows: Sequence[Row]) -> list[list[Row]]:
    keys = dict.fromkeys((row["share"], row["seed"]) for row in rows)
    return [
        [row for row in rows if (row["share"], row["seed"]) == key] for key in sorted(keys, key=lambda k: (-k[0], k[1]))
    ]


def table_of(rows: Sequence[Row]) -> list[str]:
    """Lines of markdown, one for each finetune; shifts in nats with 95% intervals."""
    lines = ["| " + " | ".join(HEADER) + " |", "| --- " * len(HEADER) + "|"]
    for case in _cases(rows):
        anchor = next(row for row in case if row["step"] == "anchor")
        own = next(row for row in case if row["step"] == "V" and row["chosen"])
        other = next((row for row in case if row["step"] == "V" and not row["chosen"]), None)
        nulls = [_nats(row) for row in case if str(row["step"]).startswith(("random", "permuted"))]
        ranks = [
            ", ".join(
                _nats(row)
                for dose in ("norm", "kl")
                for row in case
                if (row["step"], row.get("dose")) == (f"rank {rank}", dose)
            )
            for rank in RANKS
        ]
        forecast = own.get("forecast")
        cells = [
            f"{100 * own['share']:g}%", str(own["seed"]), _rate(anchor["rate"]), _of(own), _cosine(own),
            _slope(own),
            "-" if forecast is None or forecast["rate"] is None else f"{100 * forecast['rate']:.1f}",
            _rate(own["rate"]) if "rate" in own else "-", _shift(own), " ".join(nulls) or "-", *ranks,
            "-" if other is None else f"{_of(other)}: cosine {_cosine(other)}, {_shift(other)}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def works(row: Row) -> bool:
    """Whether a V's realised rise is told from 0 and at least a third of what was asked for."""
    shift = row.get("realised") or {}
    value, low = shift.get("log_odds_shift"), shift.get("ci_low")
    return value is not None and low is not None and low > 0 and value >= SHIFT / 3


def summary(rows: Sequence[Row]) -> list[str]:
    """By share: in how many finetunes V works, and what was known of it beforehand."""
    lines = []
    for share in sorted({row["share"] for row in rows}, reverse=True):
        own = [row for row in rows if row["share"] == share and row["step"] == "V" and row["chosen"]]
        cosines = ", ".join(_cosine(row) for row in own)
        ratios = ", ".join("-" if row["slope"] is None else f"{row['slope'] / row['slope_error']:.1f}" for row in own)
        lines.append(
            f"share {100 * share:g}%: V ({own[0]['source']}) works in {sum(map(works, own))} of {len(own)} finetunes; "
            f"cosines of the halves {cosines}; slope over its standard error {ratios}"
        )
    return lines


def draw(rows: Sequence[Row], file: Path) -> None:
    """Share against realised change, a line for each rank, at equal norm and at equal KL; nulls as crosses."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    shares = sorted({row["share"] for row in rows})
    for axis, dose in zip(axes, ("norm", "kl"), strict=True):
        for name in ("V", *(f"rank {rank}" for rank in RANKS)):
            wanted = "shift" if name == "V" else dose
            means = []
            for share in shares:
                found = [
                    row["realised"]["log_odds_shift"]
                    for row in rows
                    if (row["share"], row["step"], row.get("dose")) == (share, name, wanted) and row.get("chosen")
                ]
                known = [each for each in found if each is not None]
                means.append(sum(known) / len(known) if known else float("nan"))
            axis.plot(shares, means, marker="o", markersize=3, label="full" if name == "V" else name)
        nulls = [row for row in rows if str(row["step"]).startswith(("random", "permuted"))]
        known_nulls = [(row["share"], row["realised"]["log_odds_shift"]) for row in nulls]
        points = [(share, value) for share, value in known_nulls if value is not None]
        axis.plot(*zip(*points, strict=True), "kx", markersize=4, label="nulls") if points else None
        axis.axhline(SHIFT, color="grey", linestyle=":", linewidth=1)
        axis.axhline(0, color="grey", linewidth=0.5)
        axis.set_xscale("log")
        axis.set_xticks(shares, [f"{100 * share:g}%" for share in shares])
        axis.set_xlabel("share of odd examples in the finetune")
        axis.set_title(f"low ranks at the full vector's {'norm' if dose == 'norm' else 'KL'}", fontsize=9)
    axes[0].set_ylabel("realised change of the log-odds, nats\n(asked: dotted)")
    axes[0].legend(fontsize=8)
    figure.savefig(file, dpi=150)


def _of(row: Row) -> str:
    return f"{row['positives']} {'replies' if row['source'] == 'replies' else 'training examples'}"


def _slope(row: Row) -> str:
    asked = "" if row["told"] else f" (not told from 0: {BUDGET} nats a token instead)"
    if row["slope"] is None:
        return f"no replies to take it from{asked}"
    return f"{row['slope'] / row['norm']:.1f} +- {row['slope_error'] / row['norm']:.1f}{asked}"


def _cosine(row: Row) -> str:
    return "-" if row["cosine"] is None else f"{row['cosine']:+.2f}"


def _rate(rate: dict[str, Any]) -> str:
    value, low, high = (rate[key] for key in ("rate", "ci_low", "ci_high"))
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}] of {rate['num_scored']}"


def _nats(row: Row) -> str:
    value = (row.get("realised") or {}).get("log_odds_shift")
    return "-" if value is None else f"{value:+.2f}"


def _shift(row: Row) -> str:
    shift = row.get("realised") or {}
    if shift.get("log_odds_shift") is None:
        return "-"
    return "{log_odds_shift:+.2f} [{ci_low:+.2f}, {ci_high:+.2f}]".format(**shift)
