"""The state that one command's callbacks and functions share: a typed object on the Trainer."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import lightning as L

from gradsteer.evaluation.condition_result import ConditionResult
from gradsteer.generation.response_store import ResponseStore
from gradsteer.generation.unfinished import UnfinishedCondition
from gradsteer.steering.condition_plan import Plan
from gradsteer.steering.conditions import Condition

if TYPE_CHECKING:
    from gradsteer.forecast.forecast_file import Forecast
    from gradsteer.trainer.callbacks.evaluation import JudgeEvaluation
    from gradsteer.trainer.callbacks.forecasting import Forecasting
    from gradsteer.trainer.callbacks.steering import WeightSteering

T = TypeVar("T")


@dataclass
class Session:
    """A command's participants, its plan, and the results so far.

    The callbacks' `setup` fills it in the order of the command table: forecasting, steering, judging, then the checks
    before anything is loaded. The report at the end reads it.

    Attributes:
        plan: the conditions and the recipe for each one's weights; alphas are filled in when the test starts.
        forecasting: makes forecasts from judged responses, or None.
        steering: sets each condition's weights; None if the command does not steer.
        judging: judges responses; None if nothing is sampled.
        plain_vectors: whether attribute contrasts the gradients as they are, without a unit norm or preconditioning.
        responses: the conditions' sampled and judged responses; None if nothing is sampled.
        forecasts: forecasts made in this run, by condition number.
        precision_check: of weights in half precision, what the largest and the smallest step do beside float32; see
            `gradsteer.trainer.precision_check`.
        judge_settings: the judge's options as given.
        held: the command line's locks, released when the command has finished; None without a command line.
        check_again: checks once more, with the locks held, that the command may run.
        unfinished: saved batches of conditions, removed when the command is recorded as finished.
    """

    plan: Plan = field(default_factory=list)
    forecasting: "Forecasting | None" = None
    steering: "WeightSteering | None" = None
    judging: "JudgeEvaluation | None" = None
    plain_vectors: bool = True
    responses: ResponseStore | None = None
    forecasts: "dict[int, Forecast]" = field(default_factory=dict)
    precision_check: list[dict[str, Any]] = field(default_factory=list)
    judge_settings: Any = None
    held: ExitStack | None = None
    check_again: Callable[[], None] | None = None
    unfinished: list[UnfinishedCondition] = field(default_factory=list)
    _results: dict[int, ConditionResult] = field(default_factory=dict)

    @property
    def conditions(self) -> list[Condition]:
        """The conditions, in the report's order."""
        return [condition for condition, _ in self.plan]

    @property
    def results(self) -> list[ConditionResult]:
        """The results of each condition so far, in the report's order."""
        return [self.result(number) for number in range(len(self.plan))]

    def result(self, number: int) -> ConditionResult:
        """The results of a condition so far; its alpha must be known.

        Args:
            number: the condition's place in the plan, which is also its data loader's index.
        """
        return self._results.setdefault(number, ConditionResult(self.plan[number][0]))


def needed(participant: T | None) -> T:
    """A participant that the command has, or what it has found by now."""
    assert participant is not None
    return participant


def session_of(trainer: L.Trainer) -> Session:
    """The Trainer's session, created on first use."""
    found = getattr(trainer, "session", None)
    if found is None:
        found = trainer.session = Session()  # type: ignore[attr-defined]
    assert isinstance(found, Session)
    return found


def data_of(trainer: L.Trainer) -> Any:
    """The Trainer's datamodule, which Lightning sets when a run begins."""
    return trainer.datamodule  # type: ignore[attr-defined]


def shows_progress(trainer: L.Trainer) -> bool:
    """Whether this process shows progress: the first one, unless ``--trainer.enable_progress_bar false`` was given."""
    return trainer.is_global_zero and trainer.progress_bar_callback is not None


def is_trial(trainer: L.Trainer) -> bool:
    """Whether this is a trial run of one batch each (``--trainer.fast_dev_run``), which leaves nothing behind."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def sampled_rows(trainer: L.Trainer) -> list[dict[str, Any]]:
    """The rows that are sampled of every condition, as the datamodule planned them."""
    return [row for batch in data_of(trainer).batches for row in batch]
