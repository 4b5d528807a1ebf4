"""Forecasting: predicts every condition's rates from the anchor's judged responses."""

from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from gradsteer.data.response_rows import ONE_DTYPE, other_dtypes
from gradsteer.forecast.forecast_file import conditions_said
from gradsteer.forecast.forecaster import MIN_SAMPLE_SIZE, Forecaster
from gradsteer.forecast.judged_responses import JudgedResponses
from gradsteer.forecast.pooled_responses import read_pool
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.generation.sampling import check_seeds
from gradsteer.models.fingerprints import model_fingerprint
from gradsteer.progress import progress
from gradsteer.trainer.response_scorers import response_scorer
from gradsteer.trainer.session import needed, sampled_rows, session_of, shows_progress

_MOST_DRAWS = 1_000_000  # their indices are held at once, one for each prompt


class Forecasting(L.Callback):
    """Predicts every condition's rates from the anchor's judged responses, by a few forward passes per vector.

    The responses should answer the evaluation prompts, not the prompts that the vectors were made from.

    Args:
        responses: the anchor's judged responses, a responses/NAME.jsonl file written by evaluate; or several such
            files, as a list, sampled from the anchor and from steps along one vector (written by steer). All of them
            together are weighed to each condition then, from the mixture of what they were sampled from. One file of a
            step will do, too: a rare behavior is measured on responses from where it is common (docs/rare.md).
        temperature: sampling temperature of those responses, if the file does not record it.
        top_p: nucleus sampling threshold of those responses, if the file does not record it.
        draws: number of bootstrap resamples (over prompts) for the intervals.
        seed: seed for the bootstrap.
        min_sample_size: below this effective sample size a forecast is greyed out and uses the linear approximation.
        token_budget: tokens per batch. Affects speed, not the forecast. Default: 2048 on a CPU, 16384 elsewhere.
        control_slopes: also take the responses' derivatives along every control's direction, at two more passes each,
            for the controls' linear approximation and predicted shift.
        allow_other_dtype: forecast from responses that weights of another dtype sampled (--model.dtype of evaluate):
            to the model at hand they are another model's.
    """

    def __init__(
        self,
        responses: str | list[str] | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        draws: int = 1000,
        seed: int = 0,
        min_sample_size: float = MIN_SAMPLE_SIZE,
        token_budget: int | None = None,
        control_slopes: bool = False,
        allow_other_dtype: bool = False,
    ) -> None:
        given = (temperature, top_p, draws, seed, min_sample_size, token_budget, control_slopes, allow_other_dtype)
        if responses is None and given != (None, None, 1000, 0, MIN_SAMPLE_SIZE, None, False, False):
            raise ValueError("the options of forecasting have no effect without --forecasting.responses FILE")
        if temperature is not None and not temperature > 0:
            raise ValueError(f"forecasting.temperature is {temperature}; accepted: more than 0")
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"forecasting.top_p is {top_p}; accepted: more than 0, at most 1")
        if not 100 <= draws <= _MOST_DRAWS:
            raise ValueError(f"forecasting.draws is {draws}; accepted: at least 100, up to {_MOST_DRAWS}")
        if not min_sample_size >= 1:
            raise ValueError(f"forecasting.min_sample_size is {min_sample_size}; accepted: at least 1")
        if token_budget is not None and token_budget < 1:
            raise ValueError(f"forecasting.token_budget is {token_budget}; accepted: at least 1")
        self.files = [] if responses is None else [responses] if isinstance(responses, str) else list(responses)
        if responses is not None and not all(self.files or [""]):
            raise ValueError(f"forecasting.responses is {responses!r}; accepted: a file, or a list of files")
        self.file = ", ".join(self.files) or None
        self.temperature, self.top_p = temperature, top_p
        self.draws, self.seed, self.min_sample_size = draws, seed, min_sample_size
        self.token_budget, self.control_slopes = token_budget, control_slopes
        self.allow_other_dtype = allow_other_dtype
        self.responses: JudgedResponses | None = None
        self.forecaster: Forecaster | None = None
        self.warnings: list[str] = []

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Reads the responses before the model is loaded."""
        session_of(trainer).forecasting = self
        if self.file is None:
            return
        responses = self.responses = read_pool(self.files, pl_module.tokenizer, num_ids=pl_module.num_ids)
        others = other_dtypes(responses.dtypes, pl_module.dtype_name)
        if others is not None and not self.allow_other_dtype:
            raise ValueError(
                f"forecasting.responses {self.file!r}: its {others}; {ONE_DTYPE}: --forecasting.allow_other_dtype true"
            )
        for option, given in (("temperature", self.temperature), ("top_p", self.top_p)):
            known = getattr(responses, option)
            if known is not None and given not in (None, known):
                raise ValueError(f"forecasting.{option} is {given:g}, but {self.file!r} says {known:g}; leave it out")
        if self._sampled_at()[0] == 0:
            raise ValueError(
                f"{self.file!r} was sampled at temperature 0: greedy replies have no importance weights; sample at 1"
            )
        if hasattr(pl_module, "sampling"):
            self._check_alike(trainer, pl_module)
        shown = ", ".join(f"{int((values == 1).sum())} {name}" for name, values in responses.verdicts.items())
        files = f" from {len(self.files)} files" if len(self.files) > 1 else ""
        rank_zero_info(
            f"forecast from {len(responses)} judged responses{files} to {responses.num_prompts} prompts: {shown}"
        )

    def _check_alike(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Refuses responses sampled with other settings than this run's; warns if the two share samples."""
        sampling, responses = pl_module.sampling, needed(self.responses)
        theirs = (*self._sampled_at(), responses.max_new_tokens or sampling.max_new_tokens)
        ours = (sampling.temperature, sampling.top_p, sampling.max_new_tokens)
        if theirs != ours:
            raise ValueError(
                "forecasting.responses were sampled at temperature {:g}, top_p {:g} and max_new_tokens {}, ".format(
                    *theirs
                )
                + "this run samples at {:g}, {:g} and {}: the two cannot be compared".format(*ours)
            )
        sampled = {row["prompt"] for row in sampled_rows(trainer) if row["set"] == "evaluation"}
        known = set(responses.prompt_texts)
        if sampled - known:
            rank_zero_warn(
                f"forecast: {len(sampled - known)} of the {len(sampled)} prompts that are sampled have no response in "
                f"{self.file!r}: part of the forecast covers other prompts"
            )
        shared = sorted(set(check_seeds(pl_module.sampling_seed)) & responses.seeds)
        if sampled & known and shared:
            steps = [None if source.step is None else source.alpha for source in responses.sources]
            rank_zero_warn(
                f"forecast: its responses and this run's share the seed {shared[0]}, so the responses of "
                f"{conditions_said(steps)} are the same and the agreement is too good; use another "
                "--model.sampling_seed"
            )

    def sampling(self, pl_module: Any) -> tuple[float, float]:
        """Temperature and top-p of this run's sampling, or else of the responses."""
        sampling = getattr(pl_module, "sampling", None)
        return self._sampled_at() if sampling is None else (sampling.temperature, sampling.top_p)

    def _sampled_at(self) -> tuple[float, float]:
        """Temperature and top-p of the responses."""
        responses = needed(self.responses)
        temperatures, top_ps = (responses.temperature, self.temperature, 1.0), (responses.top_p, self.top_p, 1.0)
        return next(t for t in temperatures if t is not None), next(p for p in top_ps if p is not None)

    def start(self, trainer: L.Trainer, pl_module: Any) -> Forecaster | None:
        """Scores the responses under the anchor's weights, once; returns None without responses."""
        if self.responses is None or self.forecaster is not None:
            return self.forecaster
        scorer = self.scorer(trainer, pl_module, self.responses.examples)
        with progress("anchor's responses", total=len(scorer), unit="batch", shown=shows_progress(trainer)) as tick:
            self.forecaster = Forecaster(
                self.responses,
                scorer,
                draws=self.draws,
                seed=self.seed,
                min_sample_size=self.min_sample_size,
                tick=tick,
            )
        self.warnings = self.responses.doubts(model_fingerprint(pl_module.model), *self._sampled_at())
        if (others := other_dtypes(self.responses.dtypes, pl_module.dtype_name)) is not None:
            self.warnings.append(f"the {others}")
        for warning in self.warnings:
            rank_zero_warn(f"forecast: {warning}")
        return self.forecaster

    def scorer(self, trainer: L.Trainer, pl_module: Any, examples: Any) -> ResponseScorer:
        """A scorer on the module's model with the responses' sampling settings; batches are split over ranks."""
        return response_scorer(trainer, pl_module, examples, *self._sampled_at(), self.token_budget)
