"""What a run of sampled conditions keeps, removes and compares: never another run's responses."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from gradsteer.data.response_rows import prompt_digest
from gradsteer.evaluation.realised_shift import realised_shift
from gradsteer.forecast.calibration import Calibration
from gradsteer.forecast.forecast_file import other_prompts
from gradsteer.generation.unfinished import UnfinishedCondition
from gradsteer.judges import Judge
from gradsteer.records import is_leftover, read_jsonl, write_json
from gradsteer.reports.results import read_results
from gradsteer.steering.conditions import Condition, slug_of
from gradsteer.trainer.prompt_overlap import refuse_overlap


class SampledConditions(L.Callback):
    """Guards responses/ before conditions are sampled; afterwards sets what was realised beside what was asked.

    Args:
        output_dir: the experiment's directory.
    """

    def __init__(self, output_dir: str) -> None:
        self.output_dir = Path(output_dir)

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Refuses conditions that would overwrite an evaluation's responses, and prompts that a vector was made on."""
        del pl_module, stage
        for condition in _conditions(trainer):
            if (self.output_dir / "stages" / f"evaluate-{condition.slug}.json").exists():
                # the piles may come from them: losing them would leave vectors that nobody can make again
                raise ValueError(
                    f"condition {condition.name!r} would overwrite the responses of `evaluate --name {condition.slug}` "
                    f"in {str(self.output_dir)!r}; give that evaluation another --name, such as "
                    f"{condition.slug}-attribution, or steer another --output_dir"
                )
        prompts: dict[str, set[str]] = {"evaluation": set()}
        for row in (row for batch in trainer.datamodule.batches for row in batch):  # type: ignore[attr-defined]
            prompts.setdefault(row["set"], set()).add(prompt_digest(row["prompt"]))
        steering = trainer.steering  # type: ignore[attr-defined]
        sources, evaluated = steering.prompt_sources, prompts.pop("evaluation")
        refuse_overlap(sources, evaluated, faithful=steering.seed_faithful, others=prompts)
        about = (steering.forecast or {}).get("forecast", {})
        if (text := other_prompts(about, evaluated)) is not None:
            rank_zero_warn(text)
        self._compare_judges(trainer)

    def _compare_judges(self, trainer: L.Trainer) -> None:
        """Warns where a slope or a forecast, and what is sampled, are judged by two judges."""
        judge = next(c.judge for c in trainer.callbacks if isinstance(getattr(c, "judge", None), Judge))  # type: ignore[attr-defined]
        steering = trainer.steering  # type: ignore[attr-defined]
        for name, vector in steering.vectors.items() if [] in steering.pipelines else ():
            slope, contrast = Calibration.read(vector.metadata), steering.contrasts[name]
            judged = {*(contrast.plus or ()), *(contrast.minus or ())} <= set(judge.behaviors)  # else none comes out
            if slope is not None and judged and set(slope.judges) - {judge.fingerprint()}:
                rank_zero_warn(
                    f"vector {name}: its slope was taken between classes that another judge than this run's (or one "
                    "with another rubric) told apart: the shift of log-odds that it predicts and the one that comes "
                    "out are not of the same thing"
                )
        about = (trainer.steering.forecast or {}).get("forecast", {})  # type: ignore[attr-defined]
        responses = None if trainer.forecasting is None else trainer.forecasting.responses  # type: ignore[attr-defined]
        for known in (about.get("judge"), None if responses is None else responses.judge):
            if known is not None and known != judge.fingerprint():
                rank_zero_warn(
                    "the forecast's responses were judged by another judge than this run's (or by one with another "
                    "rubric): what is forecast and what comes out are not rates of the same thing"
                )
                return

    def on_test_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Before the first: removes what a killed steer left of steps.json, and an overwritten report's responses.

        These are the responses to conditions that this report does not have.
        """
        del pl_module, batch
        if batch_idx + dataloader_idx > 0 or not trainer.is_global_zero:
            return
        for path in self.output_dir.glob(".steps.*.tmp.json"):  # nobody else writes it: the report's lock is held
            if is_leftover(path, "steps"):
                path.unlink(missing_ok=True)
        report = self.output_dir / "results.json"
        if report.is_file():
            names = {condition["name"] for condition in read_results(report)["conditions"]}
            for name in names - {condition.name for condition in _conditions(trainer)}:
                UnfinishedCondition(self.output_dir / "responses", slug_of(name)).remove_responses()

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Takes the realised shifts of log-odds, and writes what every tensor took of every step to steps.json."""
        del pl_module
        if not trainer.is_global_zero:
            return
        conditions = _conditions(trainer)
        write_json(self.output_dir / "steps.json", {c.name: c.by_tensor for c in conditions if c.by_tensor})
        directory = self.output_dir / "responses"
        starts = {model: _rows(directory / f"{model}.jsonl") for model in ("anchor", "base")}
        for condition in conditions:
            contrast, before = condition.contrast, starts[condition.model]
            if contrast is None or contrast.plus is None or contrast.minus is None:
                continue
            if {*contrast.plus, *contrast.minus} <= set(condition.behaviors):  # otherwise nobody judged it
                after = [row for _, row in read_jsonl(directory / f"{condition.slug}.jsonl")]
                condition.realised = realised_shift(before, after, contrast.plus, contrast.minus)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(path)] if path.is_file() else []


def _conditions(trainer: L.Trainer) -> list[Condition]:
    conditions: list[Condition] = trainer.conditions  # type: ignore[attr-defined]
    return conditions
