"""The end of a forecast: the table, forecast.json and forecast.csv, and the curves."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from gradsteer.evaluation.condition_result import METRICS, THOUGHT_METRICS
from gradsteer.evaluation.statistics import Rate
from gradsteer.forecast.forecast_file import ForecastRate, prompts_said
from gradsteer.models.fingerprints import model_fingerprint
from gradsteer.reports.cells import rate_text
from gradsteer.reports.curves import forecast_figure
from gradsteer.reports.predictions import forecast_table
from gradsteer.reports.printing import print_whole
from gradsteer.reports.results import write_results
from gradsteer.trainer.callbacks.report import save_figures
from gradsteer.trainer.known_forecast import sources_of
from gradsteer.trainer.session import Session, needed, session_of
from gradsteer.trainer.tensorboard import log_metrics, log_table


class ForecastReport(L.Callback):
    """Prints one table, writes it as JSON and CSV and draws the curves of rates against alpha.

    Args:
        output_dir: the experiment's directory.
        experiment: the experiment's name, for titles.
        note: a caveat for readers; printed under the table and stored in the report.
    """

    def __init__(self, output_dir: str, experiment: str, note: str | None = None) -> None:
        self.output_dir, self.experiment, self.note = Path(output_dir), experiment, note

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Refuses to start without responses, or with options that read another forecast."""
        session = session_of(trainer)
        if session.steering is not None and session.steering.forecast is not None:
            raise ValueError("steering.forecast and steering.select belong to steer: forecast makes its own")
        if session.forecasting is None or session.forecasting.file is None:
            raise ValueError(
                "forecast needs the anchor's judged responses: --forecasting.responses FILE (a responses/NAME.jsonl "
                "that evaluate wrote, of the prompts that steer will be evaluated on)"
            )

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Puts the weights back and reports all conditions."""
        session = session_of(trainer)
        if session.steering is not None:
            session.steering.release()
        if not trainer.is_global_zero:
            return
        forecasting, steering = needed(session.forecasting), needed(session.steering)
        responses = needed(forecasting.responses)
        temperature, top_p = forecasting.sampling(pl_module)
        rows = [_row(session, number) for number in range(len(session.plan))]
        about = {
            "responses": forecasting.files[0] if len(forecasting.files) == 1 else forecasting.files,
            **({"pool": [source.to_dict() for source in responses.sources]} if responses.is_steered else {}),
            "num_responses": len(responses),
            **prompts_said(responses.prompt_digests),
            "temperature": temperature,
            "top_p": top_p,
            "max_new_tokens": responses.max_new_tokens,
            "seeds": sorted(responses.seeds),
            "judge": responses.judge,
            "min_sample_size": forecasting.min_sample_size,
            "model_fingerprint": model_fingerprint(pl_module.model),
            "vectors": steering.vector_digests(),
            "sources": sources_of(session.plan),
            "settings": steering.settings,
            "curves": steering.curves(),
            "num_passes": needed(forecasting.forecaster).num_passes,
            "warnings": forecasting.warnings,
        }
        path = self.output_dir / "forecast.json"
        checked = session.precision_check
        write_results(path, self.experiment, rows, note=self.note, forecast=about, precision_check=checked)
        title = f"{self.experiment}: forecast rates, 95% intervals by a bootstrap over prompts; nothing was sampled"
        notes = [*(f"warning: {text}" for text in forecasting.warnings), *([self.note.strip()] if self.note else [])]
        print_whole(forecast_table(rows, title), "\n".join(notes))
        behaviors = list(dict.fromkeys(name for row in rows for name in row["behaviors"]))
        lines = []
        for number, row in enumerate(rows):
            known = {name: rate["rate"] for name, rate in row["behaviors"].items() if rate["rate"] is not None}
            rates = {f"forecast/{name}": rate for name, rate in known.items()}
            size = row["predicted"]["effective_sample_size"]
            log_metrics(trainer, {**rates, "forecast/effective_sample_size": size}, step=number)
            shown = (rate_text(row["behaviors"].get(name)) for name in behaviors)
            lines.append((str(number), row["name"], *shown, f"{size:.0f}"))
        log_table(
            trainer, "forecast", ("step", "condition", *(f"{name} %" for name in behaviors), "effective sample"), lines
        )
        figure = forecast_figure(rows, f"{self.experiment}: forecast")
        drawn = [] if figure is None else [("forecast", figure)]
        pictures = [f"\npicture: {each}" for each in save_figures(trainer, drawn, self.output_dir / "figures")]
        rank_zero_info(f"forecast: {path} and {path.with_suffix('.csv')}{''.join(pictures)}")


def _row(session: Session, number: int) -> dict[str, Any]:
    """The condition as a forecast's row: its rates are forecast ones."""
    forecast, row = session.forecasts[number], session.result(number).row()
    row["kind"] = "forecast"
    row["behaviors"] = {name: _as_measured(rate) for name, rate in forecast.rates.items()}
    row["classes"] = {name: _as_measured(rate) for name, rate in forecast.classes.items()}
    keys = (*METRICS, *(key for key in THOUGHT_METRICS if key in forecast.traits))
    row["metrics"] = {key: forecast.traits.get(key) for key in keys}
    return row


def _as_measured(rate: ForecastRate) -> dict[str, float | int | None]:
    """A forecast rate with the keys of a measured one; nothing was counted."""
    known = {"num_scored": rate.num_scored, "num_unscored": rate.num_unscored}
    return {
        **dict.fromkeys(field.name for field in fields(Rate)), **known, "rate": rate.rate, "ci_low": rate.ci_low,
        "ci_high": rate.ci_high,
    }  # fmt: skip
