"""Differences from the anchor, tested: the table of comparisons."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gradsteer.reports.cells import broken_text, condition_text, interval_text

if TYPE_CHECKING:
    from rich.table import Table

Row = Mapping[str, Any]
_LEVEL = 0.05


def comparison_table(
    rows: Sequence[Row], title: str = "differences from the anchor (on base: from the base)"
) -> "Table | None":
    """Every condition's difference from the model that it started from, in points, with its interval and p-values.

    A line for each behavior that any prompt differs in under any of the conditions; the others are named below. An
    asterisk marks a Holm-corrected p of at most .05, a question mark small counts, an exclamation mark a finding that
    another way to count replies without a verdict would change.

    Args:
        rows: conditions as results.json holds them.
        title: shown above the table.

    Returns:
        None where nothing was compared.
    """
    from rich.table import Table
    from rich.text import Text

    compared = [row for row in rows if row.get("comparisons")]
    if not compared:
        return None
    caption = "paired by prompt; p (Holm) is corrected over this table; *: at most .05; ?: small counts"
    fragile = any(not each.get("robust", True) for row in compared for each in row["comparisons"].values())
    if fragile:
        caption += "; !: whether p is at most .05, or the sign, hangs on how replies without a verdict are counted"
    still = _never_differing([row["comparisons"] for row in compared])
    if still:
        caption += f"\nno prompt differs under any condition, and the correction counts it: {', '.join(still)}"
    caption += broken_text(compared)
    table = Table(title=Text(title), title_justify="left", caption=Text(caption), caption_justify="left")
    table.add_column("condition", no_wrap=True)
    table.add_column("behavior", no_wrap=True)
    for heading in ("points [95% interval]", "p", "p (Holm)"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("test", no_wrap=True)
    for row in compared:
        table.add_section()
        shown = [(behavior, each) for behavior, each in row["comparisons"].items() if behavior not in still]
        for index, (behavior, each) in enumerate(shown):
            marks = "?" if each.get("few") else " "
            if fragile:
                marks += " " if each.get("robust", True) else "!"
            certain = each["p_holm"] is not None and each["p_holm"] <= _LEVEL
            table.add_row(
                Text("" if index else condition_text(row)),
                Text(behavior),
                Text(interval_text(each, "difference", "+z.1f", 100) + marks, style="bold" if certain else ""),
                _p_text(each["p"]),
                _p_text(each["p_holm"]) + ("*" if certain else " "),
                Text(each["test"] or "-"),
            )
    return table


def _never_differing(compared: Sequence[Mapping[str, Row]]) -> list[str]:
    """Behaviors in which no prompt of any condition differs, whatever the replies without a verdict would have shown.

    None of them where that leaves no line to show.
    """

    def may_differ(found: Row) -> bool:
        return bool(found.get("num_differing", 1) or not found.get("num_pairs", 1) or not found.get("robust", True))

    names = list(dict.fromkeys(name for comparisons in compared for name in comparisons))
    moved = {name for comparisons in compared for name, found in comparisons.items() if may_differ(found)}
    return [name for name in names if name not in moved] if moved else []


def _p_text(p: float | None) -> str:
    if p is None:
        return "-"
    return "<0.001" if p < 0.001 else f"{p:.3f}"
