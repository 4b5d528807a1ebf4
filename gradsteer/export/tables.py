"""What an adapter keeps and loses, as tables on the screen and lines in its model card."""

from collections.abc import Mapping
from typing import Any

_WORST = 5


def print_tables(report: Mapping[str, Any]) -> None:
    """Prints an adapter's report: what each rank keeps, what is not held, the matrices that lose most."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console, energy = Console(), report["energy"]
    has_effect = report["derivative"] is not None
    ranks = Table("rank", "of the held matrices", "of the whole vector", box=None, pad_edge=False)
    if has_effect:
        ranks.add_column("effect")
    for row in report["table"]:
        mark = " <- written" if row["rank"] == report["rank"] else ""
        label = f"{row['rank']}{' (full)' if row['is_full'] else ''}{mark}"
        effect = [_share(row["effect"])] if has_effect else []
        ranks.add_row(label, _share(row["share_of_held"]), _share(row["share_of_whole"]), *effect)
    print("shares of the vector's squared norm that an adapter of a rank keeps:")
    console.print(ranks)
    if has_effect:
        print(
            f"effect: the share of what V does, to first order, to the log-probabilities of responses with and without "
            f"{report['behavior']!r} ({report['derivative']:+.4g} nats a unit of alpha)"
        )
    for reason, row in report["not_held"].items():
        print(f"not held: {reason}: {_share(row['energy'] / energy)} of the whole vector ({_tensors(row)})")
    lossy = [row for row in report["matrices"] if row["residual_energy"] > 0][:_WORST]
    if lossy:
        worst = Table("matrices that lose most", "rank", "of itself", "of the whole vector", box=None, pad_edge=False)
        for row in lossy:
            shares = _share(row["residual_share"]), _share(row["residual_energy"] / energy)
            worst.add_row(escape(row["name"]), f"{row['rank']} of {row['full_rank']}", *shares)
        console.print(worst)


def card_numbers(report: Mapping[str, Any]) -> dict[str, str]:
    """What an adapter loses, for its model card."""
    held, energy = report["held_energy"], report["energy"]
    numbers = {
        "rank": str(report["rank"]),
        "scaling": f"{report['alpha']!r} (alpha; lora_alpha / r)",
        "kept": f"{_share(report['kept_share'])} of the squared norm of V",
        "kept of the held matrices": _share(report["kept_share"] * energy / held),
    }
    for reason, row in report["not_held"].items():
        numbers[f"not held: {reason}"] = f"{_share(row['energy'] / energy)} of it ({_tensors(row)})"
    for row in report["table"]:
        if row["rank"] == report["rank"] and row["effect"] is not None:
            numbers["effect"] = (
                f"{_share(row['effect'])} of V's first-order effect on the log-probabilities of responses with and "
                f"without {report['behavior']!r}"
            )
    return numbers


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _tensors(row: Mapping[str, Any]) -> str:
    return "1 tensor" if row["num_tensors"] == 1 else f"{row['num_tensors']} tensors"
