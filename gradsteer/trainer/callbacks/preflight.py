"""Checks before a model is loaded, and locks held while a command samples."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_warn

from gradsteer.data.response_rows import prompt_digest
from gradsteer.forecast.calibration import Calibration
from gradsteer.forecast.forecast_file import other_prompts
from gradsteer.generation.unfinished import UnfinishedCondition
from gradsteer.locks import locked
from gradsteer.records import is_leftover
from gradsteer.reports.results import read_results
from gradsteer.steering.conditions import Condition, Kind, ModelKind, slug_of
from gradsteer.trainer.callbacks.run_locks import LockHolder
from gradsteer.trainer.dry_run import estimate
from gradsteer.trainer.prompt_overlap import refuse_overlap
from gradsteer.trainer.resume_sampling import plan_as_before
from gradsteer.trainer.session import Session, needed, sampled_rows, session_of

_REPORT = "@report.lock"  # with a character that no condition's file has


class Preflight(LockHolder):
    """Checks a run's conditions before the model is loaded, and locks their files.

    The session already holds the conditions, the judge and the forecast. In steer, some conditions get their names
    only after the locks are taken, so the report is locked too.

    Args:
        output_dir: the experiment's directory.
        dry_run: stop here and print an upper bound on what would be sampled and an estimate of the judging cost (set
            by --dry_run).
    """

    def __init__(self, output_dir: str, dry_run: bool = False) -> None:
        super().__init__()
        self.output_dir, self.dry_run = Path(output_dir), dry_run

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Runs the checks.

        Raises:
            ValueError: responses would be overwritten, a vector was made from an evaluation prompt, the judge is not
                usable, or another command is working on one of the conditions.
            DryRunDoneError: only an estimate was requested.
        """
        session = session_of(trainer)
        plan_as_before(trainer, self.output_dir / "responses")
        if session.steering is not None:
            self._keep_evaluations(session)
            _check_prompts(trainer, session)
            _compare_judges(session)
        if self.dry_run:
            estimate(trainer, pl_module)
        needed(session.judging).judge.check()
        directory = self.output_dir / "responses"
        locks = {f"{condition.slug}.lock": f"condition {condition.name!r}" for condition in session.conditions}
        if session.steering is not None:
            locks[_REPORT] = "the report"
        self.hold(trainer, [locked(directory / ".locks" / name, of, directory) for name, of in locks.items()])

    def _keep_evaluations(self, session: Session) -> None:
        for condition in session.conditions:
            if (self.output_dir / "stages" / f"evaluate-{condition.slug}.json").exists():
                # piles may come from these responses; without them the vectors could not be reproduced
                raise ValueError(
                    f"condition {condition.name!r} would overwrite the responses of `evaluate --name {condition.slug}` "
                    f"in {str(self.output_dir)!r}; give that evaluation another --name, such as "
                    f"{condition.slug}-attribution, or steer another --output_dir"
                )

    def on_test_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Before the first batch: removes a killed run's temporary steps.json and responses that no longer belong.

        The latter are responses of conditions in the overwritten report that this run does not have.
        """
        session = session_of(trainer)
        if session.steering is None or batch_idx + dataloader_idx > 0 or not trainer.is_global_zero:
            return
        for path in self.output_dir.glob(".steps.*.tmp.json"):  # safe: the report's lock is held
            if is_leftover(path, "steps"):
                path.unlink(missing_ok=True)
        report = self.output_dir / "results.json"
        if report.is_file():
            names = {condition["name"] for condition in read_results(report)["conditions"]}
            for name in names - {condition.name for condition in session.conditions}:
                UnfinishedCondition(self.output_dir / "responses", slug_of(name)).remove_responses()


class EvaluationPreflight(Preflight):
    """The same checks for evaluate, whose only condition is the unmodified model.

    Args:
        output_dir: the experiment's directory.
        name: the condition's name. "base", or a name starting with "base-", reports it as the base model.
        dry_run: see `Preflight`.
    """

    def __init__(self, output_dir: str, name: str = "anchor", dry_run: bool = False) -> None:
        super().__init__(output_dir, dry_run)
        kind: Kind = "base" if name == "base" or name.startswith("base-") else "anchor"
        model: ModelKind = "base" if kind == "base" else "anchor"
        self.condition = Condition(name, kind, model, alpha=None if kind == "base" else 0.0)

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Plans the condition, and refuses one whose responses an existing steer report uses."""
        report = self.output_dir / "results.json"
        rows = read_results(report)["conditions"] if report.is_file() else []
        if any(slug_of(row["name"]) == self.condition.slug for row in rows):
            raise ValueError(
                f"evaluate --name {self.condition.name} would overwrite responses that {str(report)!r} rests on; "
                f"choose another --name, such as {self.condition.name}-attribution, or another --output_dir"
            )
        session_of(trainer).plan = [(self.condition, None)]
        super().setup(trainer, pl_module, stage)


def _check_prompts(trainer: L.Trainer, session: Session) -> None:
    """Refuses prompts that a vector was made from; warns if they differ from the forecast's."""
    prompts: dict[str, set[str]] = {"evaluation": set()}
    for row in sampled_rows(trainer):
        prompts.setdefault(row["set"], set()).add(prompt_digest(row["prompt"]))
    steering, evaluated = needed(session.steering), prompts.pop("evaluation")
    refuse_overlap(steering.prompt_sources, evaluated, faithful=steering.seed_faithful, others=prompts)
    if (text := other_prompts(_forecast_of(session), evaluated)) is not None:
        rank_zero_warn(text)


def _compare_judges(session: Session) -> None:
    """Warns if a slope or forecast rests on another judge than this run's."""
    judge, steering = needed(session.judging).judge, needed(session.steering)
    for name, vector in steering.vectors.items() if [] in steering.pipelines else ():
        slope, contrast = Calibration.read(vector.metadata), steering.contrasts[name]
        judged = {*(contrast.plus or ()), *(contrast.minus or ())} <= set(judge.behaviors)  # else none comes out
        if slope is not None and judged and set(slope.judges) - {judge.fingerprint()}:
            rank_zero_warn(
                f"vector {name}: its slope was taken between classes that another judge (or one with another rubric) "
                "defined: the predicted and the realised log-odds shifts do not measure the same thing"
            )
    responses = None if session.forecasting is None else session.forecasting.responses
    for known in (_forecast_of(session).get("judge"), None if responses is None else responses.judge):
        if known is not None and known != judge.fingerprint():
            rank_zero_warn(
                "the forecast's responses were judged by another judge (or one with another rubric): the forecast "
                "and the realised rates do not measure the same thing"
            )
            return


def _forecast_of(session: Session) -> dict[str, Any]:
    """The loaded forecast's description of itself; empty if there is no forecast."""
    steering = session.steering
    found: dict[str, Any] = {} if steering is None or steering.forecast is None else steering.forecast["forecast"]
    return found
