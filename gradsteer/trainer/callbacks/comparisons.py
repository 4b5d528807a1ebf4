"""What a sceptic asks of a table of rates: differences from the anchor, tested, and what else moved."""

from pathlib import Path
from typing import Any

import lightning as L

from gradsteer.data.response_rows import verdict_of
from gradsteer.evaluation.broken_model import damage
from gradsteer.evaluation.comparisons import Comparison, compare, holm
from gradsteer.evaluation.refusals import REFUSAL, looks_like_refusal
from gradsteer.evaluation.specificity import measure_specificity
from gradsteer.generation.unfinished import UnfinishedCondition
from gradsteer.records import read_jsonl
from gradsteer.steering.conditions import Condition


class Comparisons(L.Callback):
    """Compares every condition with the model that it started from, prompt by prompt.

    Args:
        output_dir: the experiment's directory.
        draws: resamples of the bootstrap over prompts that gives the intervals.
        seed: of the draws.
    """

    def __init__(self, output_dir: str, draws: int = 2000, seed: int = 0) -> None:
        if draws < 100:
            raise ValueError(f"comparisons.draws is {draws}; accepted: at least 100")
        self.directory, self.draws, self.seed = Path(output_dir) / "responses", draws, seed

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Fills comparisons, specificity and damage of every condition but those that they start from."""
        del pl_module
        if not trainer.is_global_zero:
            return
        conditions: list[Condition] = trainer.conditions  # type: ignore[attr-defined]
        starts = {c.name: self._rows(c) for c in conditions if c.name in ("anchor", "base")}
        metrics = {c.name: c.metrics for c in conditions if c.name in starts}
        refused = {c.name: self._refusals(c) for c in conditions}
        found: dict[tuple[str, str], Comparison] = {}
        for condition in conditions:
            if condition.name == "anchor" or condition.model not in starts:
                continue
            # how far the finetune moved the base is seen by comparing the base with the anchor too
            start = "anchor" if condition.name == "base" else condition.model
            before = starts[start]
            if condition.name != "base":  # which is another model, not a broken one
                condition.damaged = damage(condition.metrics, metrics[start])
            after, behaviors = self._rows(condition), list(condition.behaviors)
            for behavior in behaviors:
                found[condition.name, behavior] = compare(before, after, behavior, draws=self.draws, seed=self.seed)
            for name, one in refused[start].items():
                if name in (other := refused[condition.name]):
                    found[condition.name, name] = compare(one, other[name], name, draws=self.draws, seed=self.seed)
            measured = measure_specificity(
                before,
                after,
                behaviors,
                own=condition.behavior if condition.behavior in behaviors else None,
                alpha=condition.alpha,
                draws=self.draws,
                seed=self.seed,
            )
            condition.specificity = measured.to_dict()
        corrected = dict(zip(found, holm(list(found.values())), strict=True))
        for condition in conditions:
            mine = {b: each.to_dict() for (name, b), each in corrected.items() if name == condition.name}
            condition.comparisons = mine or None

    def _refusals(self, condition: Condition) -> dict[str, list[dict[str, Any]]]:
        """Rows with a verdict of its own for each rate of refusal that was counted, by the name of its columns."""
        found = {}
        for name in condition.refusals:
            file = UnfinishedCondition(self.directory, condition.slug).responses_to(name.removesuffix("_judged"))
            rows = [row for _, row in read_jsonl(file)]
            verdicts = [
                verdict_of(row, REFUSAL) if name.endswith("_judged") else looks_like_refusal(row["completion"])
                for row in rows
            ]
            key = f"{name}_refused"
            found[key] = [
                {**row, "verdicts": {key: None if row.get("failed") else verdict}}
                for row, verdict in zip(rows, verdicts, strict=True)
            ]
        return found

    def _rows(self, condition: Condition) -> list[dict[str, Any]]:
        return [row for _, row in read_jsonl(self.directory / f"{condition.slug}.jsonl")]
