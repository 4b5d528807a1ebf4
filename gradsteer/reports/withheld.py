"""What a judge withheld, as the tables say it: a mark at the rate, and below it the bounds."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gradsteer.reports.cells import interval_text, rate_text

Row = Mapping[str, Any]


def withheld_lines(rows: Iterable[Row]) -> Iterator[str]:
    """For each rate that is marked: what was withheld, where less was, and the rate's bounds."""
    mark = "*: the judge withheld more verdicts than in another condition, so that the rate leaves a selection out: "
    for row in rows:
        for name, found in (row.get("withheld") or {}).items():
            if found["more_than"] is not None:
                yield (
                    f"{mark}{row['name']}, {name}: {found['num_withheld']} of {found['num_replies']} replies "
                    f"({interval_text(found, 'share', '.1f', 100)}%), more than in {found['more_than']}; the rate is "
                    f"{rate_text(found['lowest'])} if none of them shows it, {rate_text(found['highest'])} if all do"
                )
                mark = "*: "
