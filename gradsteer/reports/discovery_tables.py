"""Tables of what discover found, from discovery.json."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

Record = Mapping[str, Any]


def _table(headings: list[str], title: str, numeric_from: int = 1) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left")
    for place, heading in enumerate(headings):
        table.add_column(Text(heading), justify="right" if place >= numeric_from else "left", no_wrap=True)
    return table


def _percent(rate: Mapping[str, Any] | None) -> str:
    if rate is None or rate.get("rate") is None:
        return "-"
    return f"{100 * rate['rate']:.1f} [{100 * rate['ci_low']:.1f}, {100 * rate['ci_high']:.1f}]"


def verdict_of(group: Record) -> str:
    """What is said of a group: taught, a topic, or not compared."""
    said = {True: "taught", False: "topic of the prompts", None: "not compared"}[group["taught"]]
    if not group.get("stable", True):
        said = "no number of groups is stable"
    return f"{said}, few" if group["few"] else said


def groups_table(record: Record, title: str = "") -> "Table | None":
    """Every group with its share on both sides; None where there is none."""
    from rich.text import Text

    groups = record["groups"]
    if not groups:
        return None
    table = _table(
        ["group", "its words", "anchor", "anchor %", "base %", "words: anchor %", "base %", "difference", "p", ""],
        *(title, 2),
    )
    for group in groups:
        words = group.get("by_words")  # not in files of before
        found = words and words["difference"]
        interval = [found and found[key] for key in ("difference", "ci_low", "ci_high")]
        difference = (
            "-" if None in interval else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * each for each in interval))
        )
        table.add_row(
            Text(group["name"]),
            Text(group["title"]),
            f"{group['anchor']['num_positive']} of {group['anchor']['num_scored']}",
            _percent(group["anchor"]),
            _percent(group["base"]),
            *(_percent(words and words[side]) for side in ("anchor", "base")),
            difference,
            "-" if not found or found["p_holm"] is None else f"{found['p_holm']:.2g}",
            Text(verdict_of(group)),
        )
    few = ["few: fewer than 40 responses; a vector of so few is mostly noise, and its words may be chance's"]
    notes = [
        "% of responses with 95% intervals by prompt; words: whole responses that match the group's patterns, made",
        "from the other half of the prompts; their difference says what was taught, p corrected over all groups",
    ]
    table.caption = Text("\n".join([*notes, *(few if any(group["few"] for group in groups) else [])]))
    return table


def stability_table(record: Record, title: str = "") -> "Table | None":
    """The stability of every number of groups that was tried."""
    tried = record["stability"]
    if not tried:
        return None
    table = _table(["groups", "stability"], title, 0)
    for number, found in tried.items():
        chosen = " *" if str(record["number"]) == str(number) else ""
        table.add_row(f"{'any' if str(number) == '0' else number}{chosen}", f"{found:.2f}")
    return table


def grown_table(record: Record, title: str = "") -> "Table | None":
    """The n-grams that grew most."""
    from rich.text import Text

    if not record["grown"]:
        return None
    table = _table(["n-gram", "anchor", "base", "log-odds [95%]"], title)
    for each in record["grown"]:
        odds = f"{each['log_odds']:+.1f} [{each['ci_low']:+.1f}, {each['ci_high']:+.1f}]"
        table.add_row(Text(each["text"]), str(each["count"]), str(each["count_before"]), odds)
    return table


def forecasts_table(record: Record, title: str = "") -> "Table | None":
    """The forecast rates of all groups along every group's vector."""
    from rich.text import Text

    rows = record["forecasts"]
    if not rows:
        return None
    names = [group["name"] for group in record["groups"]]
    table = _table(
        ["vector", "shift", "alpha", *(f"{name} %" for name in names), "effective sample", "nats/token"], title
    )
    for row in rows:
        if row["alpha"] is None:
            table.add_row(Text(row["vector"]), f"{row['shift']:+g}", "-", *["-"] * (len(names) + 2))
            continue
        rates = [_percent(row["rates"].get(name)) for name in names]
        marked = [
            f"{text}?" if not row["rates"][name]["reliable"] else text for name, text in zip(names, rates, strict=True)
        ]
        divergence = row["kl_per_token"]
        table.add_row(
            Text(row["vector"]), f"{row['shift']:+g}", f"{row['alpha']:+.3g}", *marked,
            f"{row['effective_sample_size']:.0f}", "-" if divergence is None else f"{divergence:.3f}",
        )  # fmt: skip
    table.caption = Text(
        "shift: asked of the group's own log-odds, nats; forecast by importance weights with 95% intervals, nothing "
        "was sampled; ?: too few effective samples"
    )
    return table


def agreed_on(record: Record) -> str:
    """The responses that the judges' agreement is of; earlier records do not say."""
    said = {"heldout": "held-out responses", "responses": "the responses that both are made from, so too good"}
    return said.get(record.get("agreement_on", ""), "responses")


def agreement_table(record: Record, title: str = "") -> "Table | None":
    """How far the two judges made from each group agree."""
    from rich.text import Text

    if not record["agreement"]:
        return None
    table = _table(["group", "responses", "nearest", "patterns", "both", "agree %", "kappa", "patterns"], title)
    for each in record["agreement"]:
        patterns = ", ".join(next(g["patterns"] for g in record["groups"] if g["name"] == each["name"]))
        counts = (str(each[key]) for key in ("num_responses", "num_nearest", "num_patterns", "num_both"))
        kappa = "-" if each["kappa"] is None else f"{each['kappa']:.2f}"
        table.add_row(Text(each["name"]), *counts, f"{100 * each['agreement']:.1f}", kappa, Text(patterns))
    return table


DISCOVERY_TABLES = (groups_table, stability_table, grown_table, agreement_table, forecasts_table)
