"""The condition of an evaluation: the model as it is."""

from pathlib import Path
from typing import Any

import lightning as L

from gradsteer.reports.results import read_results
from gradsteer.steering.conditions import Condition, Kind, ModelKind, slug_of


class NamedCondition(L.Callback):
    """The one condition of an evaluation: the model as it is.

    Args:
        output_dir: the experiment's directory.
        name: of the condition; "base" or a name that starts with "base-" reports it as the base model.
    """

    def __init__(self, output_dir: str, name: str = "anchor") -> None:
        self.output_dir = Path(output_dir)
        kind: Kind = "base" if name == "base" or name.startswith("base-") else "anchor"
        model: ModelKind = "base" if kind == "base" else "anchor"
        self.condition = Condition(name, kind, model, alpha=None if kind == "base" else 0.0)

    @property
    def conditions(self) -> list[Condition]:
        """The one."""
        return [self.condition]

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Tells the Trainer the condition; refuses one whose responses a report of steer rests on."""
        del pl_module, stage
        report = self.output_dir / "results.json"
        rows = read_results(report)["conditions"] if report.is_file() else []
        if any(slug_of(row["name"]) == self.condition.slug for row in rows):
            raise ValueError(
                f"evaluate --name {self.condition.name} would overwrite responses that {str(report)!r} rests on; "
                f"choose another --name, such as {self.condition.name}-attribution, or another --output_dir"
            )
        trainer.conditions = self.conditions  # type: ignore[attr-defined]
