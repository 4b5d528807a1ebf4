"""What ``gradsteer judge`` found: agreement.json, the flat agreement.csv beside it, and tables on the screen."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradsteer.records import write_json, write_text
from gradsteer.reports.cells import MORE_WITHHELD, rate_text
from gradsteer.reports.printing import print_whole
from gradsteer.reports.withheld import withheld_lines

if TYPE_CHECKING:
    from rich.table import Table

FORMAT_VERSION = 1
_COLUMNS = (
    "quantity", "file", "condition", "behavior", "judges", "value", "ci_low", "ci_high", "num_counted", "num_left_out",
    "num_positive", "num_both_true", "num_only_first", "num_only_second", "num_both_false", "num_degenerate", "reason",
)  # fmt: skip
Report = Mapping[str, Any]


def check_report(path: Path, asked: Mapping[str, Any], *, overwrite: bool) -> None:
    """Refuses to replace the report of other judges, files or labels.

    Args:
        path: of agreement.json.
        asked: what this report is of, as its key ``asked`` says.
        overwrite: whether any report may be replaced.

    Raises:
        ValueError: there is another one.
    """
    if overwrite or not path.exists():
        return
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # not JSON, or not text
        earlier = None
    if not isinstance(earlier, dict) or earlier.get("asked") != asked:
        raise ValueError(
            f"{str(path)!r} is of other judges, responses or labels; choose another --output_dir, or replace it with "
            "--overwrite true"
        )


def write_report(path: Path, report: Report) -> None:
    """Writes the report and, beside it, one number a line as CSV; each under a temporary name first."""
    write_json(path, {"format": FORMAT_VERSION, **report})
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_flat(report))
    write_text(path.with_suffix(".csv"), text.getvalue())


def print_report(report: Report) -> None:
    """Prints the report's tables, each followed by why a number is missing; text of the files is printed as it is."""
    print_whole(_rates(report), _bounds(report))
    names = _names(report["files"])
    if report["errors"]:
        print_whole(_errors(report["errors"]), _reasons(report["errors"], names))
    for name, number in report["num_repeated"].items():
        print(f"\nthe files' verdicts on {number} responses are those of {name} itself: they are not counted twice")
    if not report["pairs"]:
        print("\nno behavior is judged by two judges: there is no agreement to count")
        return
    # of one file, "in all" says it already
    several = len(report["files"]) > 1
    pairs, groups = ([row for row in report[key] if several or row["file"] is None] for key in ("pairs", "groups"))
    degenerate = pairs[0]["num_degenerate"]
    note = f"{degenerate} degenerate responses take part in the agreement\n" if degenerate else ""
    print_whole(_pairs(pairs, names), note + _reasons(pairs, names))
    print_whole(_groups(groups, names), _reasons(groups, names))


def _flat(report: Report) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for rate in report["rates"]:
        shared = {key: rate[key] for key in ("file", "condition", "behavior", "num_positive", "num_degenerate")}
        shared |= {"judges": rate["judge"], "num_counted": rate["num_scored"], "num_left_out": rate["num_unscored"]}
        rows.append({"quantity": "rate", **shared, "value": rate["rate"], **_ends(rate)})
        if rate["corrected"] is not None:
            found = rate["corrected"]
            reason = {"reason": found["reason"]}
            rows.append({"quantity": "corrected_rate", **shared, "value": found["rate"], **_ends(found), **reason})
    for error in report["errors"]:
        for name, count, right in (
            ("sensitivity", "num_positive", "num_true_positive"),
            ("specificity", "num_negative", "num_true_negative"),
        ):
            share = error[name]
            shared = {"behavior": error["behavior"], "judges": error["judge"], "num_left_out": error["num_unscored"]}
            counts = {"num_counted": error[count], "num_positive": error[right]}
            rows.append({"quantity": name, **shared, **counts, "value": share["rate"], **_ends(share)})
    for pair in report["pairs"]:
        shared = {key: pair[key] for key in _COLUMNS if key in pair and key not in ("ci_low", "ci_high", "reason")}
        shared |= {"judges": f"{pair['first']}+{pair['second']}", "num_counted": _counted(pair)}
        ends = {"ci_low": pair["agreement_ci_low"], "ci_high": pair["agreement_ci_high"]}
        rows.append({"quantity": "agreement", **shared, "value": pair["agreement"], **ends})
        rows.append({"quantity": "kappa", **shared, "value": pair["kappa"], **_ends(pair), "reason": pair["reason"]})
    for group in report["groups"]:
        shared = {key: value for key, value in group.items() if key in _COLUMNS}
        shared |= {"judges": "+".join(group["judges"]), "num_counted": group["num_responses"]}
        rows.append({"quantity": "alpha", **shared, "value": group["alpha"]})
    return rows


def _ends(found: Mapping[str, Any]) -> dict[str, Any]:
    return {key: found[key] for key in ("ci_low", "ci_high")}


def _counted(pair: Mapping[str, Any]) -> int:
    return sum(pair[f"num_{cell}"] for cell in ("both_true", "only_first", "only_second", "both_false"))


def _rates(report: Report) -> "Table":
    corrected = any(rate["corrected"] is not None for rate in report["rates"])
    withheld = any("withheld" in rate for rate in report["rates"])
    columns = ["% [95% interval]", *(["corrected %"] if corrected else []), "scored", "unscored"]
    columns += [*(["withheld"] if withheld else []), "degenerate"]
    table = _table("rates", ["responses", "judge", "behavior"], columns)
    names = _names(report["files"])
    for rate in report["rates"]:
        mark = "*" * ((rate.get("withheld") or {}).get("more_than") is not None)
        cells = [names[rate["file"]], rate["judge"], rate["behavior"], rate_text(rate) + mark]
        cells += [rate_text(rate["corrected"])] if corrected else []
        cells += [rate["num_scored"], rate["num_unscored"]]
        cells += [rate.get("withheld", {}).get("num_withheld", 0)] if withheld else []
        _add(table, [*cells, rate["num_degenerate"]])
    return table


def _bounds(report: Report) -> str:
    """What rates of files with more withheld verdicts than others could be."""
    names = _names(report["files"])
    rows = [
        {"name": f"{names[rate['file']]}, {rate['judge']}", "withheld": {rate["behavior"]: rate["withheld"]}}
        for rate in report["rates"]
        if "withheld" in rate
    ]
    lines = list(withheld_lines(rows))
    return "\n".join([MORE_WITHHELD, *lines]) if lines else ""


def _errors(errors: Sequence[Report]) -> "Table":
    columns = ["sensitivity % [95% interval]", "of", "specificity %", "of", "unscored"]
    table = _table("judges on the labelled set", ["judge", "behavior"], columns)
    for row in errors:
        found = [rate_text(row["sensitivity"]), row["num_positive"], rate_text(row["specificity"]), row["num_negative"]]
        _add(table, [row["judge"], row["behavior"], *found, row["num_unscored"]])
    return table


def _pairs(rows: Sequence[Report], names: Mapping[str | None, str]) -> "Table":
    columns = ["both", "only 1st", "only 2nd", "neither", "left out", "agree %", "kappa [95% interval]"]
    table = _table("agreement of two", ["responses", "1st", "2nd", "behavior"], columns)
    for row in rows:
        cells = [row[f"num_{cell}"] for cell in ("both_true", "only_first", "only_second", "both_false", "left_out")]
        share = "-" if row["agreement"] is None else f"{100 * row['agreement']:.1f}"
        heads = [names[row["file"]], row["first"], row["second"], row["behavior"]]
        _add(table, [*heads, *cells, share, _coefficient(row, "kappa")])
    return table


def _groups(rows: Sequence[Report], names: Mapping[str | None, str]) -> "Table":
    columns = ["counted", "left out", "Krippendorff's alpha [95% interval]"]
    table = _table("agreement of all", ["responses", "judges", "behavior"], columns)
    for row in rows:
        heads = [names[row["file"]], ", ".join(row["judges"]), row["behavior"]]
        _add(table, [*heads, row["num_responses"], row["num_left_out"], _coefficient(row, "alpha")])
    return table


def _names(files: Sequence[Report]) -> dict[str | None, str]:
    """What a file is called in a table: its condition, where no two have the same."""
    conditions = [file["condition"] for file in files]
    distinct = len(set(conditions)) == len(conditions)
    return {None: "all", **{file["path"]: file["condition"] if distinct else file["path"] for file in files}}


def _table(title: str, texts: Sequence[str], numbers: Sequence[str]) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left")
    for column in texts:
        table.add_column(Text(column), no_wrap=True)
    for column in numbers:
        table.add_column(Text(column), justify="right", no_wrap=True)
    return table


def _add(table: "Table", cells: Sequence[Any]) -> None:
    from rich.text import Text  # no markup is read in it

    table.add_row(*(Text(str(cell)) for cell in cells))


def _coefficient(row: Report, name: str) -> str:
    if row[name] is None:
        return "-"
    return f"{row[name]:.3f}" + ("" if row["ci_low"] is None else f" [{row['ci_low']:.3f}, {row['ci_high']:.3f}]")


def _reasons(rows: Iterable[Report], names: Mapping[str | None, str]) -> str:
    """Each reason once, with the responses, judges and behaviors that it is for."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        if row["reason"] is not None:
            judges = (
                row["judges"] if "judges" in row else [row[key] for key in ("judge", "first", "second") if key in row]
            )
            where = f" in {names[row['file']]}" if "file" in row and len(names) > 2 else ""  # of one file: of course
            found.setdefault(row["reason"], {})[f"{', '.join(judges)} on {row['behavior']}{where}"] = None
    return "\n".join(f"{'; '.join(where)}: {reason}" for reason, where in found.items())
