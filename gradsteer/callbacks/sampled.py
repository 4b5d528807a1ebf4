"""What a run of sampled conditions keeps, removes and compares: never another run's responses."""

import json
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from gradsteer.conditions import Condition, slug_of
from gradsteer.realised import realised_shift
from gradsteer.records import read_jsonl, write_json
from gradsteer.reports import read_results
from gradsteer.response_rows import prompt_digest


class SampledConditions(L.Callback):
    """Guards responses/ before conditions are sampled; afterwards sets what was realised beside what was asked.

    Args:
        output_dir: the experiment's directory.
    """

    def __init__(self, output_dir: str) -> None:
        self.output_dir = Path(output_dir)

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Refuses a condition whose responses would overwrite those of an evaluation."""
        del pl_module, stage
        for condition in _conditions(trainer):
            if (self.output_dir / "stages" / f"evaluate-{condition.slug}.json").exists():
                # the piles may come from them: losing them would leave vectors that nobody can make again
                raise ValueError(
                    f"condition {condition.name!r} would overwrite the responses of `evaluate --name {condition.slug}` "
                    f"in {str(self.output_dir)!r}; give that evaluation another --name, such as "
                    f"{condition.slug}-attribution, or steer another --output_dir"
                )
        sampled = {prompt_digest(row["prompt"]) for batch in trainer.datamodule.batches for row in batch}  # type: ignore[attr-defined]
        for name, vector in trainer.steering.vectors.items():  # type: ignore[attr-defined]
            shared = sampled & set(json.loads(vector.metadata.get("prompt_digests", "[]")))
            if shared:
                rank_zero_info(
                    f"vector {name} was made on responses to {len(shared)} of the {len(sampled)} prompts that it is "
                    "measured on: its effect will look larger than on prompts that it has not seen"
                )

    def on_test_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Before the first: removes responses of an earlier, overwritten report that this one does not have."""
        del pl_module, batch
        if batch_idx + dataloader_idx > 0 or not trainer.is_global_zero:
            return
        report = self.output_dir / "results.json"
        if report.is_file():
            names = {condition["name"] for condition in read_results(report)["conditions"]}
            for name in names - {condition.name for condition in _conditions(trainer)}:
                (self.output_dir / "responses" / f"{slug_of(name)}.jsonl").unlink(missing_ok=True)

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
            if contrast is not None and contrast.plus is not None and contrast.minus is not None:
                after = [row for _, row in read_jsonl(directory / f"{condition.slug}.jsonl")]
                condition.realised = realised_shift(before, after, contrast.plus, contrast.minus)


def _rows(path: Path) -> list[dict[str, Any]]:
    return [row for _, row in read_jsonl(path)] if path.is_file() else []


def _conditions(trainer: L.Trainer) -> list[Condition]:
    conditions: list[Condition] = trainer.conditions  # type: ignore[attr-defined]
    return conditions
