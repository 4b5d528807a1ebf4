"""``gradsteer report``: writes the page of a run's directory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def main(args: Sequence[str]) -> int:
    """Writes report.html and report.md from the command line.

    Args:
        args: the options.

    Raises:
        ValueError: there is no such directory, or it holds nothing of a run.
    """
    from gradsteer.judges.recorded_patterns import recorded_patterns
    from gradsteer.reports.page.page import write_page
    from gradsteer.reports.page.visible import visible

    options = options_parser().parse_args(list(args))
    written = write_page(Path(options.directory).expanduser(), recorded_patterns)
    print(f"report: {written.html} ({written.html.stat().st_size / 1000:.0f} kB) and {written.markdown}")
    for text in written.not_there:
        print(f"  not there: {visible(text)}")
    return 0


def options_parser() -> Any:
    """The parser of all options."""
    from gradsteer.options import OptionsParser

    parser = OptionsParser(
        prog="gradsteer report",
        description="Writes DIR/report.html, one page without scripts that needs no other file, and DIR/report.md from "
        "what a run left in DIR: what was asked, setup, rates, forecast beside realised, examples chosen by a rule, "
        "layerwise norms, specificity, nulls, trade-offs, limits, and the commands that replay it. The page of a "
        "half-finished directory says what is not there. steer writes it by itself.",
    )
    parser.add_argument("directory", type=str, help="the --output_dir of a run, finished or not.")
    return parser
