"""Writing pile-average gradients and the steering vectors that contrast them."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from gradsteer.callbacks.tensorboard import log_metrics
from gradsteer.conditions import check_name
from gradsteer.diff import DELTA
from gradsteer.vectors import PileAverage, SteeringVector


class VectorWriter(L.Callback):
    """Writes OUTPUT_DIR/gradients/PILE.safetensors and OUTPUT_DIR/vectors/NAME.safetensors.

    Args:
        output_dir: the experiment's directory.
        vectors: name to its two piles [PLUS, MINUS]: V = gradient(PLUS) - gradient(MINUS).
    """

    def __init__(self, output_dir: str, vectors: dict[str, list[str]] | None = None) -> None:
        self.output_dir = Path(output_dir)
        self.contrasts: dict[str, tuple[str, str]] = {}
        for name, piles in (vectors or {}).items():
            check_name("a vector", name)
            if name == DELTA:
                raise ValueError(f"a vector cannot be called {DELTA!r}: steer writes the weight diff under that name")
            if len(piles) != 2:
                raise ValueError(f"vector {name!r} is {piles!r}; accepted: two piles, [PLUS_PILE, MINUS_PILE]")
            if piles[0] == piles[1]:
                raise ValueError(f"vector {name!r} contrasts pile {piles[0]!r} with itself")
            self.contrasts[name] = (piles[0], piles[1])

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Refuses a vector of an unknown pile before the model is loaded."""
        del pl_module, stage
        known = list(trainer.datamodule.sources)  # type: ignore[attr-defined]
        for name, piles in self.contrasts.items():
            for pile in piles:
                if pile not in known:
                    raise ValueError(f"vector {name!r} names pile {pile!r}; the piles are: {', '.join(known)}")

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Logs the pile's loss and gradient norm; writes the pile's gradient when it is complete."""
        del pl_module, batch
        average: PileAverage | None = outputs["average"]
        pile = trainer.datamodule.piles[dataloader_idx].name  # type: ignore[attr-defined]
        measured = {"summed_batch_gradient_norm": outputs["norm"], "loss": outputs["loss"]}
        metrics = {f"pile/{pile}/{name}": value for name, value in measured.items() if value is not None}
        log_metrics(trainer, metrics, step=batch_idx)
        if average is None or not trainer.is_global_zero:
            return
        path = average.save(self.output_dir / "gradients" / f"{pile}.safetensors")
        final = {"gradient_norm": average.norm(), "mean_loss": float(average.metadata["mean_token_loss"])}
        log_metrics(trainer, {f"pile/{pile}/{name}": value for name, value in final.items()}, step=0)
        counts = f"{average.metadata['num_examples']} examples, {average.metadata['num_tokens']} tokens"
        rank_zero_info(f"\npile {pile}: {counts}, gradient norm {average.norm():.4g} -> {path}")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Writes the contrasts, once all piles are done."""
        del pl_module
        if not trainer.is_global_zero:
            return
        for name, (plus, minus) in self.contrasts.items():
            sides = [PileAverage.load(self.output_dir / "gradients" / f"{pile}.safetensors") for pile in (plus, minus)]
            vector = SteeringVector.contrast(sides[0], sides[1], names=(plus, minus))
            path = vector.save(self.output_dir / "vectors" / f"{name}.safetensors")
            cosine = sides[0].cosine(sides[1])
            log_metrics(trainer, {f"vector/{name}/norm": vector.norm(), f"vector/{name}/pile_cosine": cosine}, step=0)
            rank_zero_info(
                f"vector {name} = {plus} - {minus}: norm {vector.norm():.4g}, pile cosine {cosine:+.2f} -> {path}"
            )
