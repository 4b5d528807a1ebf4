"""The page's pictures: drawn from the records, kept in figures/, and inlined in few colours."""

import base64
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup
from PIL import Image

from gradsteer.progress import progress
from gradsteer.records import replacing
from gradsteer.reports.curves import forecast_figure
from gradsteer.reports.discovery_figures import discovery_figures
from gradsteer.reports.figure_style import DPI
from gradsteer.reports.figures import result_figures
from gradsteer.reports.layer_figure import layer_figure
from gradsteer.reports.page.records import Records, vector_files
from gradsteer.vectors.parameter_vectors import ParameterVector
from gradsteer.vectors.weight_diff import DELTA

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Layers = Mapping[str, Mapping[str, float]]  # vector, or Delta -> layer -> sum of squares
DIFF = "Delta"
_COLOURS, _WHITE = 96, 253


@dataclass(frozen=True)
class Picture:
    """A picture in the page.

    Attributes:
        source: a ``data:`` address that holds it.
        file: its name in figures/.
        width: of the picture, in pixels.
        height: likewise.
    """

    source: Markup
    file: str
    width: int
    height: int


def read_layers(records: Records) -> dict[str, dict[str, float]]:
    """Sums of squares by layer of the vectors in vectors/ that the results name, or of all of them, and of the diff."""
    steered = list(dict.fromkeys(row["vector"] for row in records.rows))
    files = {path.stem: path for path in vector_files(records.directory) if path.stem in records.vectors}
    wanted = [path for name, path in files.items() if name in steered or name == DELTA or not {*steered} & {*files}]
    wanted.sort(key=lambda path: steered.index(path.stem) if path.stem in steered else len(steered))
    layers = {}
    with progress("layerwise norms", len(wanted), unit="vector") as tick:
        for path in wanted:
            found = records.attempt(f"vectors/{path.name}", partial(_sum_squares, path))
            if found is not None:
                layers[DIFF if path.stem == DELTA else path.stem] = found
            tick()
    return layers


def _sum_squares(path: Path) -> dict[str, float]:
    return ParameterVector.load(path).layer_sum_squares()


def layer_figures(layers: Layers) -> Iterator[tuple[str, "Figure"]]:
    """The note's figures 3 to 5, each after the name of its file: sums of squares, L2 norms of vectors and the diff."""
    vectors = {name: values for name, values in layers.items() if name != DIFF}
    for slug, label, squared in (("sumsq", "sum of squares", True), ("l2", "L2 norm", False)):
        if vectors:
            title = f"steering vectors by layer: {label}"
            yield f"vectors-{slug}", layer_figure(vectors, title, squared=squared)
        if DIFF in layers:
            title = f"weight diff by layer: {label}"
            yield f"delta-{slug}", layer_figure({DIFF: layers[DIFF]}, title, squared=squared)


def draw(records: Records, layers: Layers) -> dict[str, Path]:
    """Draws all figures that the records hold enough for into figures/.

    Returns:
        The files by their names without ``.png``.
    """
    rows, experiment = records.rows, str(records.first.get("experiment") or records.directory.name)
    figures: dict[str, Figure] = {}
    if rows:
        figures |= records.attempt("figures of the results", lambda: dict(result_figures(rows, experiment))) or {}
    figures |= records.attempt("layerwise figures", lambda: dict(layer_figures(layers))) or {}
    drawn = {}
    for name, figure in figures.items():
        if (path := records.attempt(f"figures/{name}.png", partial(_saved, records, name, figure))) is not None:
            drawn[name] = path
    return drawn


def draw_forecast(records: Records) -> dict[str, Path]:
    """Likewise of the forecast's curves."""
    if records.forecast is None:
        return {}
    rows, experiment = records.forecast["conditions"], str(records.forecast.get("experiment"))
    title = f"{experiment}: forecast"
    figure = records.attempt("the forecast's curves", lambda: forecast_figure(rows, title))
    if figure is None:
        return {}
    path = records.attempt("figures/forecast.png", partial(_saved, records, "forecast", figure))
    return {} if path is None else {"forecast": path}


def draw_discovery(records: Records) -> dict[str, Path]:
    """Likewise of what discover found."""
    if records.discovery is None:
        return {}
    record, drawn = records.discovery, {}
    for name, figure in records.attempt("the map of responses", lambda: list(discovery_figures(record))) or []:
        if (path := records.attempt(f"figures/{name}.png", partial(_saved, records, name, figure))) is not None:
            drawn[name] = path
    return drawn


def _saved(records: Records, name: str, figure: "Figure") -> Path:
    path = records.directory / "figures" / f"{name}.png"
    save_png(figure, path)
    return path


def save_png(figure: "Figure", path: Path) -> None:
    """Writes a figure as every report writes it."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=DPI, format="png")


def inlined(path: Path) -> Picture:
    """A picture of ours in few colours, as text that a page can hold: flat colours lose nothing, and it is a third."""
    with Image.open(path) as image:
        flat = image.convert("RGB").quantize(_COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    flat.putpalette([255 if value >= _WHITE else value for value in flat.getpalette() or []])  # not nearly the paper's
    held = io.BytesIO()
    flat.save(held, "PNG", compress_level=6)
    text = base64.b64encode(held.getvalue()).decode("ascii")
    return Picture(Markup(f"data:image/png;base64,{text}"), path.name, *flat.size)
