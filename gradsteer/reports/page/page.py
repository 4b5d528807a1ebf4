"""Putting the page together: ``report.html``, which needs nothing beside it, and ``report.md`` beside figures/."""

import importlib.resources
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined, TemplateError
from markupsafe import Markup

from gradsteer.generation.response_store import ResponseStore
from gradsteer.records import write_text
from gradsteer.reports.comparison_table import comparison_table
from gradsteer.reports.discovery_tables import DISCOVERY_TABLES, agreed_on
from gradsteer.reports.page.commands import replay_commands
from gradsteer.reports.page.examples import LONGEST, Examples, Responses, by_prompt, choose_examples
from gradsteer.reports.page.pictures import Layers, Picture, draw, draw_discovery, draw_forecast, inlined, read_layers
from gradsteer.reports.page.records import UNSOUND, Records, read_records
from gradsteer.reports.page.setup import setup_facts
from gradsteer.reports.page.tables import METRICS, PageTable, nulls_table, page_table, summary_table
from gradsteer.reports.page.visible import markdown_text, visible
from gradsteer.reports.page.words import layer_sentences, limits, question
from gradsteer.reports.predictions import agreement_lines, forecast_table, predictions_table
from gradsteer.reports.results_table import results_table
from gradsteer.reports.specificity import headline, specificity_table
from gradsteer.reports.tradeoffs import tradeoff_table, tradeoffs
from gradsteer.steering.conditions import slug_of
from gradsteer.version import __version__

HTML, MARKDOWN = "report.html", "report.md"
MOST_VECTORS = 6  # with examples
# for a caller that can do without the page
FAILURES = (OSError, TemplateError, *UNSOUND)
Patterns = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class WrittenPage:
    """What was written.

    Attributes:
        html: the file.
        markdown: likewise.
        not_there: what a finished run has and this one has not, as the page says.
    """

    html: Path
    markdown: Path
    not_there: list[str]


def write_page(
    directory: Path,
    patterns_of: Callable[[Mapping[str, Any], Path], Patterns],
    *,
    layers: Layers | None = None,
    pictures: Sequence[Path] | None = None,
) -> WrittenPage:
    """Writes the page of whatever a directory holds; the same records give the same bytes.

    Args:
        directory: a run's.
        patterns_of: the judge's patterns of a report's `evaluation` entry and the directory, by behavior; matches of
            them are marked in the examples.
        layers: sums of squares by layer where they are known; otherwise they are taken from vectors/.
        pictures: the figures of the results and of the layers in figures/, where they were drawn just now.

    Raises:
        ValueError: there is no such directory, or it holds nothing of a run.
        OSError: a file cannot be written.
    """
    records = read_records(directory)
    layers = read_layers(records) if layers is None else layers
    drawn = draw(records, layers) if pictures is None else {path.stem: path for path in pictures}
    drawn |= draw_forecast(records) | draw_discovery(records)
    context = _context(records, layers, {name: inlined(path) for name, path in drawn.items()}, patterns_of)
    written = []
    for name in (HTML, MARKDOWN):
        written.append(directory / name)
        write_text(written[-1], _environment(name).get_template(f"{name}.jinja").render(context))
    return WrittenPage(written[0], written[1], context["not_there"])


def _context(
    records: Records, layers: Layers, pictures: Mapping[str, Picture], patterns_of: Callable[..., Patterns]
) -> dict[str, Any]:
    """What the templates lay out; a part that is not there is None or empty."""
    rows, attempt = records.rows, records.attempt
    forecast = [] if records.forecast is None or rows else records.forecast["conditions"]
    earlier = [row for each in records.evaluations.values() for row in each["conditions"]]

    def table(what: str, build: Callable[[], Any], without: Collection[str] = ()) -> PageTable | None:
        return attempt(what, lambda: page_table(build(), without=without))

    costs = table("trade-offs", partial(tradeoff_table, rows))
    context = {
        "experiment": str(records.first.get("experiment") or records.directory.resolve().name),
        "note": records.first.get("note"),
        "version": __version__,
        "question": attempt("what was asked", partial(question, records)) or [],
        "summary": attempt("the summary", partial(summary_table, rows)),
        "headline": attempt("selectivities", partial(headline, rows)) or [],
        "facts": setup_facts(records),
        "evaluations": table("evaluations", partial(results_table, earlier, "")) if earlier else None,
        "rates": table("rates", partial(results_table, rows, ""), METRICS if costs else ()) if rows else None,
        "comparisons": table("comparisons", partial(comparison_table, rows)),
        "predictions": table("predictions", partial(predictions_table, rows, "")),
        "agreement": attempt("how near the forecasts came", partial(agreement_lines, rows)) or [],
        "forecast": table("the forecast", partial(forecast_table, forecast, "")) if forecast else None,
        "warnings": _warnings(records),
        "discovery": _discovery(records),
        "examples": _examples(records, patterns_of),
        "longest": LONGEST,
        "layer_sentences": attempt("layers", lambda: list(layer_sentences(layers))) or [],
        "specificity": table("specificity", partial(specificity_table, rows)),
        "nulls": attempt("nulls", partial(nulls_table, rows)),
        "tradeoffs": costs,
        "limits": attempt("limits", lambda: list(limits(records))) or [],
        "commands": attempt("commands", partial(replay_commands, records)) or [],
        "pictures": pictures,
    }
    return {**context, "not_there": list(dict.fromkeys(records.not_there))}


def _discovery(records: Records) -> dict[str, Any] | None:
    """What discover found: tables in the order of the page, and typical responses in parts."""
    record = records.discovery
    if record is None:
        return None
    captions = (
        "Groups of responses, and whether the finetune taught them",
        "Stability by number of groups",
        "N-grams that grew most against the base's responses, with counts",
        f"The two judges of each group, nearest centroid and patterns, on {agreed_on(record)}",
        "Forecast rates in %, with 95% intervals; nothing was sampled",
    )
    tables = [
        (caption, records.attempt(caption, lambda build=build: page_table(build(record))))  # type: ignore[misc]
        for caption, build in zip(captions, DISCOVERY_TABLES, strict=True)
    ]
    typical = records.attempt("typical responses", partial(_typical, record)) or []
    return {"tables": [each for each in tables if each[1] is not None], "groups": typical}


def _typical(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": str(group["name"]),
            "title": str(group["title"]),
            "responses": [
                [{"text": str(part["text"])[:LONGEST], "in_span": bool(part["in_span"])} for part in parts]
                for parts in group["typical"]
            ],
        }
        for group in record["groups"]
    ]


def _warnings(records: Records) -> list[str]:
    said = (records.forecast or {}).get("forecast") or {}
    found = said.get("warnings")
    return [text for text in found if isinstance(text, str)] if isinstance(found, list) else []


def _examples(records: Records, patterns_of: Callable[..., Patterns]) -> list[Examples]:
    store = ResponseStore(records.directory / "responses")
    said = records.first.get("evaluation") or {}
    patterns = records.attempt("marks in the examples", lambda: patterns_of(said, records.directory)) or {}

    def responses_of(name: str) -> Responses:
        return by_prompt(store.rows(slug_of(name)))

    found: list[Examples] = []
    vectors = records.attempt("examples", partial(tradeoffs, records.rows)) or []
    if len(vectors) > MOST_VECTORS:
        records.not_there.append(f"examples of the first {MOST_VECTORS} of {len(vectors)} vectors are shown")
    for each in vectors[:MOST_VECTORS]:
        what = f"examples of {each.name}"
        examples = records.attempt(what, partial(choose_examples, each, responses_of, patterns))
        if examples is None and patterns:  # the responses are worth more than the marks in them
            examples = records.attempt(what, partial(choose_examples, each, responses_of, {}))
        if examples is not None:
            found.append(examples)
        elif what not in " ".join(records.not_there):
            records.not_there.append(f"{what}: no prompt with scored responses under both steps in responses/")
    return found


@cache
def _environment(name: str) -> Environment:
    """The engine for a page: every value that a template writes is made visible and escaped, unless it is markup."""
    html = name.endswith(".html")

    def finalize(value: Any) -> Any:
        if isinstance(value, Markup) or value is None:
            return value or ""
        text = visible(str(value))
        return text if html else markdown_text(text)

    environment = Environment(
        loader=FunctionLoader(_template), autoescape=html, finalize=finalize, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters["trusted"] = Markup  # of what the templates and this package write
    environment.filters["code"] = lambda text: Markup(visible(text).replace("`", "'"))  # markup has no say in code
    environment.globals["style"] = Markup(_template("style.css"))
    return environment


def _template(name: str) -> str:
    folder = importlib.resources.files("gradsteer") / "resources" / "report"
    return (folder / name).read_text(encoding="utf-8")
