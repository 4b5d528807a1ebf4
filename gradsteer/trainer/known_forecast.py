"""A forecast.json that steer goes by: its conditions, and whether they are this run's."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from gradsteer.forecast.forecast_file import conditions_said
from gradsteer.generation.sampling import check_seeds
from gradsteer.models.fingerprints import model_fingerprint
from gradsteer.records import known_digest
from gradsteer.steering.condition_plan import Plan
from gradsteer.vectors.controls import CONTROLS


class KnownForecast:
    """What a forecast.json says; without one it knows of no condition.

    Args:
        content: of the file, or None.

    Attributes:
        rows: condition -> its row.
        about: what the forecast was made from.
    """

    def __init__(self, content: dict[str, Any] | None) -> None:
        self.rows: dict[str, Any] = {} if content is None else {row["name"]: row for row in content["conditions"]}
        self.about: dict[str, Any] = {} if content is None else content["forecast"]

    def check_vectors(self, sources: Mapping[str, str], digests: Mapping[str, str]) -> None:
        """Refuses a forecast of other vectors.

        Args:
            sources: vector -> its file, or the expression of a combination.
            digests: vector -> digest of its file, or the expression of a combination.
        """
        for name, digest in digests.items():
            known = self.about["vectors"].get(name)
            if known != digest:
                raise ValueError(
                    f"the forecast is of {'another' if known else 'no'} vector {name!r} ({sources[name]}); make "
                    "a new one"
                )

    def check_model(self, pl_module: Any) -> None:
        """Refuses a forecast of another model or way of sampling; warns if it shares its seed with the run."""
        if not self.about:
            return
        found = model_fingerprint(pl_module.model)
        if found != self.about["model_fingerprint"]:
            raise ValueError(
                f"the forecast is of a model with fingerprint {self.about['model_fingerprint']}, this one has {found}"
            )
        sampling = getattr(pl_module, "sampling", None)
        about = self.about["temperature"], self.about["top_p"]
        if sampling is not None and about != (sampling.temperature, sampling.top_p):
            raise ValueError(
                f"the forecast is of temperature {about[0]:g} and top_p {about[1]:g}; this run samples at "
                f"{sampling.temperature:g} and {sampling.top_p:g}"
            )
        if sampling is None:
            return
        longest = self.about.get("max_new_tokens")
        if longest not in (None, sampling.max_new_tokens):
            raise ValueError(
                f"the forecast is of responses of at most {longest} tokens; this run samples {sampling.max_new_tokens}"
            )
        shared = sorted(set(check_seeds(pl_module.sampling_seed)) & set(self.about.get("seeds", ())))
        if shared:
            pool = self.about.get("pool") or [{"step": None}]
            steps = [None if source["step"] is None else source["step"]["alpha"] for source in pool]
            rank_zero_warn(
                f"forecast: its responses and this run share the seed {shared[0]}; on the same prompts the responses "
                f"of {conditions_said(steps)} are then the same and the agreement is too good; use another "
                "--model.sampling_seed"
            )

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Refuses a forecast that used another weight diff, precision or rounding."""
        theirs: dict[str, Any] = self.about.get("settings") or {}
        for key, value in theirs.items():
            if settings.get(key) != value:
                raise ValueError(
                    f"the forecast is of {key} {value!r}, this run of {settings.get(key)!r}; make a new one"
                )

    def check_conditions(self, plan: Plan) -> None:
        """Refuses a forecast whose conditions share names with the plan's but are made from something else."""
        sources: dict[str, str] = self.about.get("sources") or {}
        for name, source in sources_of(plan).items():
            if name in self.rows and sources.get(name) != source:
                raise ValueError(
                    f"the forecast of {name!r} is of another seed, vector file or system prompt; make a new one"
                )


def sources_of(plan: Plan) -> dict[str, str]:
    """Condition -> what its name does not determine: a seed, a file's digest, or a system prompt."""
    found = {}
    for condition, recipe in plan:
        if condition.system_prompt is not None:
            found[condition.name] = condition.system_prompt
        elif recipe is not None and recipe.file is not None:
            found[condition.name] = known_digest(recipe.file)
        elif recipe is not None and recipe.source in CONTROLS:
            found[condition.name] = f"seed {recipe.seed}"
    return found
