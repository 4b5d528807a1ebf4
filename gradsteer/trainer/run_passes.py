"""The forward passes of a run that weigh its doses and forecasts, kept under its output directory."""

import json
from dataclasses import replace
from typing import Any

import lightning as L

from gradsteer.evaluation.text_divergence import examples_digest
from gradsteer.forecast.judged_responses import JudgedResponses
from gradsteer.forecast.kept_passes import Keep, KeptPasses
from gradsteer.models.fingerprints import model_fingerprint
from gradsteer.steering.condition_plan import Recipe
from gradsteer.steering.conditions import Condition
from gradsteer.trainer.resume_sampling import how_computed
from gradsteer.trainer.session import needed, session_of


class RunPasses:
    """Names a run's passes by all that their values hang on.

    Args:
        trainer: whose session has the steering.
        pl_module: holds the model, with its own weights.

    Attributes:
        kept: the passes of this model.
    """

    def __init__(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._steering = needed(session_of(trainer).steering)
        about = {**how_computed(trainer, pl_module), "model_fingerprint": model_fingerprint(pl_module.model)}
        directory = self._steering.output_dir / "passes"
        self.kept = KeptPasses(directory, about, trainer.strategy.broadcast, trainer.is_global_zero)

    def direction(self, condition: Condition, recipe: Recipe) -> str:
        """All that determines the direction of a vector's steps."""
        alike = replace(condition, alpha=None), replace(recipe, dose=None, on_base=False)
        return json.dumps(self._steering.identity(*alike), sort_keys=True)

    def along(
        self, condition: Condition, recipe: Recipe, responses: JudgedResponses, sampling: tuple[float, float]
    ) -> Keep:
        """Scores of responses, sampled at a temperature and top-p, along the direction of a vector's steps."""
        direction = self.direction(condition, recipe)
        return self.kept.of(direction=direction, responses=examples_digest(responses.examples), sampling=sampling)

    def under(
        self, condition: Condition, recipe: Recipe | None, responses: JudgedResponses, sampling: tuple[float, float]
    ) -> Keep:
        """Scores of responses under a condition's own weights and system prompt."""
        identity = self._steering.identity(condition, recipe)
        return self.kept.of(condition=identity, responses=examples_digest(responses.examples), sampling=sampling)
