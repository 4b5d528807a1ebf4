"""What a judge withheld, as the tables say it below the marks of `gradsteer.reports.cells`: the bounds of a rate."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gradsteer.reports.cells import interval_text, rate_text

Row = Mapping[str, Any]


def withheld_lines(rows: Iterable[Row]) -> Iterator[str]:
    """For each rate that is marked: what was withheld, where less was, and the rate's bounds."""
    for row in rows:
        for name, found in (row.get("withheld") or {}).items():
            if found["more_than"] is not None:
                share = interval_text(found, "share", ".1f", 100)
                yield (
                    f"*: {row['name']}, {name}: {found['num_withheld']} of {found['num_replies']} verdicts withheld "
                    f"({share}%), more than in {found['more_than']}; the rate is {rate_text(found['lowest'])} if none "
                    f"of these replies shows it, {rate_text(found['highest'])} if all do"
                )
