"""What discover leaves: the rows with their spans and groups, the record, the printed tables, the pictures."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from gradsteer.data.response_rows import response_rows
from gradsteer.data.sources import DataSource
from gradsteer.discovery.features import unit_rows
from gradsteer.discovery.finding import Findings
from gradsteer.discovery.group_file import FOLDER, RECORD
from gradsteer.discovery.sketches import Sketcher
from gradsteer.discovery.spans import labelled_ids
from gradsteer.judges.base import Exchange
from gradsteer.judges.keyword import KeywordJudge
from gradsteer.models.layers import sum_squares_by_layer
from gradsteer.records import read_json, write_json, write_jsonl
from gradsteer.reports.discovery_figures import discovery_figures
from gradsteer.reports.discovery_tables import (
    agreed_on,
    agreement_table,
    forecasts_table,
    groups_table,
    grown_table,
    stability_table,
)
from gradsteer.reports.printing import print_whole
from gradsteer.trainer.callbacks.report import save_figures

Parts = list[dict[str, Any]]


def write_rows(
    directory: Path,
    data: Any,
    names: Sequence[str],
    labels: np.ndarray,
    spans: Sequence[Sequence[tuple[int, int]]],
    ratios: Sequence[np.ndarray] | None,
) -> None:
    """Writes each file of responses again, with the groups as verdicts, the spans and the tokens' log-ratios.

    Sampled rows keep their keys, so that attribute, forecast and judge read them as those of evaluate; of other chat
    data there is the text.
    """
    place, texts = 0, data.texts
    for name, pile in data.piles.items():
        source = data.sources[name]
        found = response_rows(str(DataSource.of(source).local_path)) if all(pile.sampled) else None
        sampled = {where: {**row, "unscored": {}} for where, row in found or ()}
        rows = []
        for index in range(len(pile.examples)):
            where = pile.sources[index]
            row: dict[str, Any] = sampled.get(where, {"source": where, "completion": texts[place]})
            row = {key: value for key, value in row.items() if key not in ("decided", "judge", "degenerate")}
            verdicts = {each: bool(labels[place] == number) for number, each in enumerate(names)}
            row |= {"verdicts": verdicts, "spans": [list(span) for span in spans[place]]}
            if ratios is not None:
                row["log_ratios"] = [round(float(value), 4) for value in ratios[place]]
            rows.append(row)
            place += 1
        write_jsonl(directory / f"{name}.jsonl", rows)


def record_of(
    data: Any,
    tokenizer: Any,
    found: Findings,
    labels: np.ndarray,
    sketches: np.ndarray,
    sketcher: Sketcher,
    spans: Sequence[Sequence[tuple[int, int]]],
) -> dict[str, Any]:
    """What discovery.json says of the findings."""
    examples, own, grouped = data.examples, data.side("responses"), data.side("responses") | data.side("base")
    places = np.flatnonzero(grouped)
    groups = []
    for each in found.found:
        shown = [parts_of(tokenizer, examples[places[index]], spans[places[index]]) for index in each.typical]
        groups.append({**each.to_dict(), "typical": shown})
    with_span = np.array([bool(each) for each in spans])
    return {
        "num_responses": int(own.sum()),
        "num_base": int(data.side("base").sum()),
        "num_degenerate": data.num_degenerate,
        "num_with_spans": int((with_span & own).sum()),
        "num_base_with_spans": int((with_span & data.side("base")).sum()),
        "num_in_no_group": int(((labels < 0) & own).sum()),
        "sketch_size": sketcher.size,
        "coverage": sketcher.coverage,
        "number": found.groups.number,
        "stability": {str(number): value for number, value in found.groups.stability.items()},
        "groups": groups,
        "grown": [each.to_dict() for each in found.grown],
        "layers": _layers(found, sketches[places], sketcher),
        "map": _map(found, own[places]),
        "agreement": list(_agreement(data, found, labels)),
        "agreement_on": "heldout" if "heldout" in data.piles else "responses",
    }


def parts_of(tokenizer: Any, example: Any, spans: Sequence[tuple[int, int]]) -> Parts:
    """A response in parts, each within a span or outside: ``{"text", "in_span"}``."""
    ids = labelled_ids(example)
    edges = sorted({0, len(ids), *(edge for span in spans for edge in span)})
    starts = {start: stop for start, stop in spans}
    inside: Parts = []
    whole = ""
    for start, stop in zip(edges, edges[1:], strict=False):
        text = tokenizer.decode(ids[:stop], skip_special_tokens=True)  # alone, a part would lose the spaces before it
        inside.append({"text": text[len(whole) :], "in_span": any(a <= start < b for a, b in starts.items())})
        whole = text
    return [part for part in inside if part["text"]]


def _layers(found: Findings, sketches: np.ndarray, sketcher: Sketcher) -> dict[str, dict[str, float]]:
    """Of each group, each layer's share in the square of its mean sketch less that of the rest."""
    rows = unit_rows(sketches)
    shares = {}
    for number, each in enumerate(found.found):
        members = found.groups.labels == number
        if members.all():
            continue
        gap = rows[members].mean(axis=0) - rows[~members].mean(axis=0)
        squares = {name: float(np.square(gap[part]).sum()) for name, part in sketcher.layers.items()}
        by_layer = sum_squares_by_layer(squares)
        total = sum(by_layer.values())
        shares[each.name] = {layer: value / total if total else 0.0 for layer, value in by_layer.items()}
    return shares


def _map(found: Findings, own: np.ndarray) -> dict[str, Any]:
    """The first two principal components of the features, of the responses that have any."""
    some = np.flatnonzero(np.abs(found.features).sum(axis=1) > 0)
    chosen = found.features[some]
    points = np.zeros((len(some), 2))
    if len(some) > 2 and chosen.shape[1] > 1:
        from sklearn.decomposition import PCA

        points = PCA(2, svd_solver="randomized", random_state=0).fit_transform(chosen)
    return {
        "points": np.round(points, 5).tolist(),
        "labels": found.groups.labels[some].tolist(),
        "is_anchor": own[some].tolist(),
    }


def _agreement(data: Any, found: Findings, labels: np.ndarray) -> Iterator[dict[str, Any]]:
    """How far the nearest centroid and the patterns agree, on held-out responses where there are any."""
    chosen = data.side("heldout") if "heldout" in data.piles else data.side("responses")
    places = np.flatnonzero(chosen)
    patterns = {each.name: each.patterns for each in found.found if each.patterns}
    if not patterns or not len(places):
        return
    texts = data.texts
    verdicts = KeywordJudge(patterns).judge([Exchange("", texts[place]) for place in places])
    for number, each in enumerate(found.found):
        if each.name not in patterns:
            continue
        near = labels[places] == number
        told = np.array([bool(found_.values[each.name]) for found_ in verdicts])
        same = float((near == told).mean())
        by_chance = float(near.mean() * told.mean() + (1 - near.mean()) * (1 - told.mean()))
        yield {
            "name": each.name, "num_responses": len(places), "num_nearest": int(near.sum()),
            "num_patterns": int(told.sum()), "num_both": int((near & told).sum()), "agreement": same,
            "kappa": None if by_chance == 1 else (same - by_chance) / (1 - by_chance),
        }  # fmt: skip


def report_discovery(trainer: L.Trainer, output_dir: Path) -> None:
    """Prints the tables, draws the pictures, writes the patterns, and says where everything is."""
    directory = output_dir / FOLDER
    record = read_json(directory / RECORD)
    title = f"{record['experiment']}: what the finetune taught"
    rank_zero_info(
        f"{record['num_with_spans']} of {record['num_responses']} responses of the anchor have a span, "
        f"{record['num_base_with_spans']} of {record['num_base']} of the base; {record['num_in_no_group']} of the "
        f"anchor's are in no group; sketches of {record['sketch_size']} numbers cover "
        f"{100 * record['coverage']:.1f}% of the weights"
    )
    tables = (
        grown_table(record, "n-grams that grew most against the base"),
        stability_table(record, "stability by number of groups (* chosen)"),
        groups_table(record, title),
        agreement_table(record, f"the two judges of each group, on {agreed_on(record)}"),
        forecasts_table(record, f"forecast from {record.get('forecast_from', 'nothing')}.jsonl"),
    )
    for table in tables:
        if table is not None:
            print_whole(table)
    if not record["groups"]:
        rank_zero_info("no group: no cluster of responses with spans is large enough (--discovery.min_size)")
    if record["note"]:
        print(record["note"].strip())
    write_json(
        directory / "patterns.json", {each["name"]: each["patterns"] for each in record["groups"] if each["patterns"]}
    )
    drawn = list(discovery_figures(record))
    pictures = [f"\npicture: {each}" for each in save_figures(trainer, drawn, output_dir / "figures")]
    rank_zero_info(f"discovery: {directory / RECORD}{''.join(pictures)}")
