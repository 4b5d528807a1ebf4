"""The end of an evaluation: results.json and results.csv, tables.txt, the figures, one screen, and the page."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from gradsteer.evaluation.condition_comparisons import ComparisonOptions, compare_conditions, take_realised_shifts
from gradsteer.evaluation.withheld import compare_withheld
from gradsteer.judges.recorded_patterns import recorded_patterns
from gradsteer.progress import progress
from gradsteer.records import write_json, write_text
from gradsteer.reports.cells import behavior_text, condition_text
from gradsteer.reports.detailed_tables import detailed_tables
from gradsteer.reports.figures import result_figures
from gradsteer.reports.page.page import FAILURES, write_page
from gradsteer.reports.page.pictures import DIFF, Layers, layer_figures, save_png
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
        layers = None if session.steering is None else layer_norms(self.output_dir, session.steering.vectors)
        others = draw_layer_norms(trainer, self.output_dir, layers or {})
        pictures = self._report(trainer, pl_module, [result.row() for result in session.results], others)
        if layers is not None:
            self._write_page(layers, pictures)
        if session.judging is not None and session.judging.num_missing:
            rank_zero_info(
                f"{session.judging.num_missing} responses lack a verdict: the same command with --overwrite true asks "
                "again only for the verdicts that a retry may provide; sampled responses are reused"
            )

    def _write_page(self, layers: Layers, pictures: list[Path]) -> None:
        """Writes the run's page; the run stands without it."""
        try:
            written = write_page(self.output_dir, recorded_patterns, layers=layers, pictures=pictures)
        except FAILURES as error:
            again = f"`gradsteer report {self.output_dir}` tries again"
            rank_zero_warn(f"the run is complete, but its page was not written ({error}); {again}")
        else:
            print_text(f"report:   {written.html}, {written.markdown.name}")

    def _report(self, trainer: L.Trainer, pl_module: Any, rows: list[dict[str, Any]], others: list[Path]) -> list[Path]:
        """Writes, draws and prints the rows of all conditions.

        Args:
            trainer: the Trainer.
            pl_module: the module that sampled them.
            rows: they.
            others: pictures that are drawn already.

        Returns:
            All pictures.
        """
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
        pictures = [*save_figures(trainer, figures, self.output_dir / "figures"), *others]
        if self.verbose:
            print_text(text)
        title = f"{self.experiment}: rates of judged behaviors, 95% intervals clustered by prompt"
        files = [path, path.with_suffix(".csv"), tables]
        print_text(results_screen(rows, title, note=note, files=files, pictures=pictures))
        return pictures


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
            pictures = draw_layer_norms(
                trainer, self.output_dir, layer_norms(self.output_dir, vectors, with_diff=False)
            )
            if pictures:
                rank_zero_info("pictures: " + ", ".join(map(str, pictures)))


def layer_norms(
    output_dir: Path, vectors: Mapping[str, ParameterVector], *, with_diff: bool = True
) -> dict[str, dict[str, float]]:
    """Sums of squares by layer.

    Args:
        output_dir: the experiment's directory.
        vectors: vectors by name.
        with_diff: also of the weight diff, if vectors/ holds it.
    """
    layers = {name: vector.layer_sum_squares() for name, vector in vectors.items()}
    diff = output_dir / "vectors" / f"{DELTA}.safetensors"
    if with_diff and diff.is_file():
        layers[DIFF] = ParameterVector.load(diff).layer_sum_squares()
    return layers


def draw_layer_norms(trainer: L.Trainer, output_dir: Path, layers: Layers) -> list[Path]:
    """Plots the sums of squares and the L2 norms by layer; the loggers receive the figures, too."""
    return save_figures(trainer, layer_figures(layers), output_dir / "figures")


def save_figures(trainer: L.Trainer, figures: Iterable[tuple[str, "Figure"]], directory: Path) -> list[Path]:
    """Logs figures to TensorBoard and writes them as PNG files, named as what comes before each says."""
    paths = []
    for name, figure in figures:
        log_figure(trainer, f"figures/{name}", figure)
        paths.append(directory / f"{name}.png")
        save_png(figure, paths[-1])
    return paths
