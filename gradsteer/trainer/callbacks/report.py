"""The end of an evaluation: results.json and results.csv, tables.txt, the figures, and one screen."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from gradsteer.evaluation.condition_comparisons import ComparisonOptions, compare_conditions, take_realised_shifts
from gradsteer.evaluation.withheld import compare_withheld
from gradsteer.progress import progress
from gradsteer.records import replacing, write_json, write_text
from gradsteer.reports.cells import behavior_text, condition_text
from gradsteer.reports.detailed_tables import detailed_tables
from gradsteer.reports.figure_style import DPI
from gradsteer.reports.figures import result_figures
from gradsteer.reports.layer_figure import layer_figure
from gradsteer.reports.printing import print_text
from gradsteer.reports.results import write_results
from gradsteer.reports.screen import results_screen
from gradsteer.trainer.fluency import FluencyOptions, score_fluency
from gradsteer.trainer.session import session_of, shows_progress
from gradsteer.trainer.tensorboard import log_figure, log_table
from gradsteer.vectors.parameter_vectors import ParameterVector
from gradsteer.vectors.weight_diff import DELTA

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class ResultsReport(L.Callback):
    """The end of a run: takes the remaining measurements, then prints, writes and plots the results.

    Args:
        output_dir: the experiment's directory.
        experiment: the experiment's name, for titles.
        note: a caveat for readers; printed under the table and stored in the report.
        verbose: print all tables before the screen: metrics, specificity, trade-offs, comparisons and forecasts. They
            are in tables.txt either way.
        fluency: how responses are scored under the base (the --fluency options).
        comparisons: how conditions are compared (the --comparisons options).
    """

    file, tables = "results", "tables"

    def __init__(
        self,
        output_dir: str,
        experiment: str,
        note: str | None = None,
        verbose: bool = False,
        fluency: FluencyOptions | None = None,
        comparisons: ComparisonOptions | None = None,
    ) -> None:
        self.output_dir, self.experiment, self.note = Path(output_dir), experiment, note
        self.verbose = verbose
        self.fluency, self.comparisons = fluency or FluencyOptions(), comparisons or ComparisonOptions()

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Takes the remaining measurements and reports all conditions."""
        session = session_of(trainer)
        score_fluency(trainer, pl_module, self.fluency)
        if session.steering is not None:
            session.steering.release()
        if not trainer.is_global_zero:
            return
        compare_withheld(session.results)
        if session.steering is not None and session.responses is not None:
            results, rows_of = session.results, session.responses.rows
            write_json(
                self.output_dir / "steps.json",
                {r.condition.name: steps for r in results if (steps := r.steps_by_tensor())},
            )
            take_realised_shifts(results, rows_of)
            shown = shows_progress(trainer)
            with progress("comparisons with the anchor", len(results), unit="condition", shown=shown) as tick:
                compare_conditions(results, rows_of, self.comparisons, tick=tick)
        pictures = []
        if session.steering is not None:
            norms = _layer_norms(self.output_dir, session.steering.vectors)
            pictures = save_figures(trainer, norms, self.output_dir / "figures")
        self._report(trainer, pl_module, [result.row() for result in session.results], pictures)
        if session.judging is not None and session.judging.num_missing:
            rank_zero_info(
                f"{session.judging.num_missing} responses lack a verdict: the same command with --overwrite true asks "
                "again only for the verdicts that a retry may provide; sampled responses are reused"
            )

    def _report(self, trainer: L.Trainer, pl_module: Any, rows: list[dict[str, Any]], others: list[Path]) -> None:
        """Writes, draws and prints the rows of all conditions; `others` are pictures that are drawn already."""
        path = self.output_dir / f"{self.file}.json"
        judging = session_of(trainer).judging
        about = None if judging is None else judging.about(trainer, pl_module)
        note = "\n".join(filter(None, [self.note, pl_module.served_otherwise()])) or None
        checked = session_of(trainer).precision_check
        write_results(path, self.experiment, rows, note=note, evaluation=about, precision_check=checked)
        # the loggers' step is the condition's number; this table maps one to the other
        behaviors = list(dict.fromkeys(name for row in rows for name in row["behaviors"]))
        lines = [
            (str(number), condition_text(row), *(behavior_text(row, name) for name in behaviors))
            for number, row in enumerate(rows)
        ]
        log_table(trainer, "results", ("step", "condition", *(f"{name} %" for name in behaviors)), lines)
        tables, text = self.output_dir / f"{self.tables}.txt", detailed_tables(rows, self.experiment, note=note)
        write_text(tables, text)
        figures = result_figures(rows, self.experiment, self.file)
        pictures = save_figures(trainer, figures, self.output_dir / "figures")
        if self.verbose:
            print_text(text)
        title = f"{self.experiment}: rates of judged behaviors, 95% intervals clustered by prompt"
        files = [path, path.with_suffix(".csv"), tables]
        print_text(results_screen(rows, title, note=note, files=files, pictures=[*pictures, *others]))


class EvaluationReport(ResultsReport):
    """The report of one condition, under evaluations/.

    Args:
        output_dir: the experiment's directory.
        experiment: the experiment's name, for titles.
        name: the condition's name.
        note: a caveat for readers; printed under the table and stored in the report.
        verbose: print all tables before the screen. They are in evaluations/NAME.txt either way.
    """

    def __init__(
        self, output_dir: str, experiment: str, name: str, note: str | None = None, verbose: bool = False
    ) -> None:
        super().__init__(output_dir, experiment, note, verbose)
        self.file = self.tables = f"evaluations/{name}"


class LayerNorms(L.Callback):
    """Plots layerwise norms of the steering vectors that `attribute` wrote.

    Args:
        output_dir: the experiment's directory; the vectors in its vectors/ are plotted.
    """

    def __init__(self, output_dir: str) -> None:
        self.output_dir = Path(output_dir)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Plots every vector in vectors/."""
        del pl_module
        if trainer.is_global_zero:
            paths = sorted((self.output_dir / "vectors").glob("[!.]*.safetensors"))
            vectors = {path.stem: ParameterVector.load(path) for path in paths if path.stem != DELTA}
            norms = _layer_norms(self.output_dir, vectors, with_diff=False)
            pictures = save_figures(trainer, norms, self.output_dir / "figures")
            if pictures:
                rank_zero_info("pictures: " + ", ".join(map(str, pictures)))


def _layer_norms(
    output_dir: Path, vectors: Mapping[str, ParameterVector], *, with_diff: bool = True
) -> Iterator[tuple[str, "Figure"]]:
    """Draws the sums of squares and the L2 norms by layer, each after the name of its file.

    Args:
        output_dir: the experiment's directory.
        vectors: vectors by name.
        with_diff: also draw the weight diff, if vectors/ holds it.
    """
    series = {name: vector.layer_sum_squares() for name, vector in vectors.items()}
    diff = output_dir / "vectors" / f"{DELTA}.safetensors"
    delta = ParameterVector.load(diff).layer_sum_squares() if with_diff and diff.is_file() else None
    for label, squared in (("sum of squares", True), ("L2 norm", False)):
        slug = "sumsq" if squared else "l2"
        if series:
            yield f"vectors-{slug}", layer_figure(series, f"steering vectors by layer: {label}", squared=squared)
        if delta is not None:
            yield f"delta-{slug}", layer_figure({"Delta": delta}, f"weight diff by layer: {label}", squared=squared)


def save_figures(trainer: L.Trainer, figures: Iterable[tuple[str, "Figure"]], directory: Path) -> list[Path]:
    """Logs figures to TensorBoard and writes them as PNG files, named as what comes before each says."""
    paths = []
    for name, figure in figures:
        log_figure(trainer, f"figures/{name}", figure)
        paths.append(directory / f"{name}.png")
        with replacing(paths[-1]) as temporary:
            figure.savefig(temporary, dpi=DPI, format="png")
    return paths
