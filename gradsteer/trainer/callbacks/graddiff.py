"""Multi-step GradDiff on the vectors' piles: a baseline for steering, which takes a single step."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from gradsteer.attribution.graddiff import Batches, ContrastGradient, graddiff
from gradsteer.attribution.gradient_store import Assembly
from gradsteer.attribution.pile_partition import Wanted
from gradsteer.data.piles import Pile
from gradsteer.progress import progress
from gradsteer.records import text_digest
from gradsteer.trainer.session import data_of, is_trial, session_of, shows_progress
from gradsteer.trainer.tensorboard import log_metrics
from gradsteer.vectors.parameter_vectors import PileAverage, SteeringVector


class GradDiffBaseline(L.Callback):
    """Writes OUTPUT_DIR/vectors/graddiff/NAME-STEPS.safetensors, once the vectors are written.

    theta + alpha * V is one full-batch gradient step of the unlearning method GradDiff. This baseline takes several
    steps of size alpha / steps and recomputes the gradients after each. The file holds the total displacement divided
    by alpha, so steering with it at that same alpha (and only there) reproduces the final weights. One step gives V.

    Args:
        output_dir: the experiment's directory.
        vectors: vector name to its two piles, [PLUS, MINUS].
        steps: numbers of steps, one file for each, such as [5, 20]. Each costs (steps - 1) passes over both piles.
        alpha: total step size, the alpha you will steer with. One number for all vectors, or a mapping such as
            {bridge: 0.12} for only those vectors. Positive reduces the PLUS pile's behavior, negative raises it.
        overwrite: start from scratch.
    """

    def __init__(
        self,
        output_dir: str,
        vectors: dict[str, list[str]] | None = None,
        steps: list[int] | None = None,
        alpha: float | dict[str, float] | None = None,
        overwrite: bool = False,
    ) -> None:
        self.output_dir, self.overwrite = Path(output_dir), overwrite
        self.contrasts, self.steps = vectors or {}, steps or []
        if (steps is None) != (alpha is None):
            given, missing = ("steps", "alpha") if alpha is None else ("alpha", "steps")
            raise ValueError(
                f"graddiff.{given} is {steps if alpha is None else alpha} and graddiff.{missing} is not given; "
                "accepted: both or neither"
            )
        if steps is not None and (not steps or min(steps) < 1 or len(set(steps)) < len(steps)):
            raise ValueError(f"graddiff.steps is {steps}; accepted: one or more different numbers, each at least 1")
        if steps is not None and not self.contrasts:
            raise ValueError("graddiff.steps has no effect without vectors: --vectors.NAME [PLUS, MINUS]")
        self.alphas = _by_vector(alpha, self.contrasts)

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Refuses incompatible options, before the model is loaded."""
        if not self.alphas:
            return
        if trainer.world_size > 1:
            raise ValueError(
                f"graddiff needs one process, this run has {trainer.world_size}: run it without --trainer.devices, "
                "in another --output_dir or before the others"
            )
        if pl_module.options.move_weights or pl_module.loss != "cross_entropy":
            raise ValueError(
                "graddiff steps along the cross-entropy's gradient at the weights themselves; accepted: without "
                "model.path_points, model.mask_draws and model.loss kl"
            )
        if pl_module.credit.predicts:
            raise ValueError(
                f"model.credit {pl_module.credit.credit} is of the anchor's replies, and graddiff takes gradients away "
                "from the anchor; accepted: --model.credit reply or decided"
            )
        if data_of(trainer).weights is not None:
            raise ValueError(
                "data.sampled_along weighs replies to the anchor itself, and graddiff takes gradients away from the "
                "anchor; accepted: piles of the anchor's own responses"
            )
        if not session_of(trainer).plain_vectors:
            raise ValueError(
                "graddiff's alpha is that of a plain contrast; accepted: without writing.unit_contrast and "
                "writing.precondition"
            )

    def on_test_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Before the first batch: removes existing files if `overwrite` is set."""
        if batch_idx + dataloader_idx > 0 or not self.overwrite or is_trial(trainer):
            return
        if trainer.is_global_zero:
            for path in self._folder.glob("[!.]*.safetensors"):
                path.unlink(missing_ok=True)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Takes the steps; results for the same piles, steps and alpha are reused."""
        if is_trial(trainer) or not self.alphas:
            return
        assembly: Assembly = pl_module.assembly(self.output_dir)
        sums = {wanted.name: wanted for wanted in assembly.sums if wanted.name == wanted.pile and not wanted.squares}
        for name, alpha in self.alphas.items():
            sides = tuple(sums[pile] for pile in self.contrasts[name])
            plus, minus = (PileAverage.load(assembly.path(side)) for side in sides)
            vector = SteeringVector.contrast(plus, minus, names=(sides[0].pile, sides[1].pile))
            for steps in self.steps:
                self._take_steps(trainer, pl_module, name, vector, steps, alpha, _digest(assembly, sides, steps, alpha))

    @property
    def _folder(self) -> Path:
        return self.output_dir / "vectors" / "graddiff"

    def _take_steps(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        name: str,
        vector: SteeringVector,
        steps: int,
        alpha: float,
        digest: str,
    ) -> None:
        title, path = f"graddiff {name}-{steps}", self._folder / f"{name}-{steps}.safetensors"
        if path.is_file() and SteeringVector.read_header(path).get("work_digest") == digest:
            rank_zero_info(f"{title}: already finished, not computed again")
            return
        data = data_of(trainer)
        piles = {pile.name: pile for pile in data.piles}
        plus, minus = (_batches(piles[pile], data) for pile in self.contrasts[name])
        pile, make_batch = pl_module.fresh_pile(), pl_module.batch_layout.make
        first = {key: tensor.to(pile.sums.buffers[key]) for key, tensor in vector.items()}
        with progress(
            title, (steps - 1) * (len(plus) + len(minus)), unit="batch", shown=shows_progress(trainer)
        ) as tick:
            contrast = ContrastGradient(pile, make_batch, plus, minus, tick)

            def after_step(step: int) -> None:
                tick(0, f"step {step} of {steps}")
                losses = {f"graddiff/{name}-{steps}/{side}_loss": loss for side, loss in contrast.losses.items()}
                log_metrics(trainer, losses, step=step)

            def contrast_here() -> Mapping[str, Tensor]:
                # re-entered for every step, because autocast may cache its casts of the weights
                with trainer.precision_plugin.forward_context():
                    return contrast()

            found = graddiff(
                pl_module.model, contrast_here, steps=steps, alpha=alpha, first=first, after_step=after_step
            )
        said = {"graddiff_steps": str(steps), "graddiff_alpha": repr(alpha), "work_digest": digest}
        made = SteeringVector({key: tensor.cpu() for key, tensor in found.items()}, {**vector.metadata, **said})
        made.save(path)
        cosine = SteeringVector({key: made[key].to(tensor) for key, tensor in vector.items()}).cosine(vector)
        log_metrics(trainer, {f"graddiff/{name}/norm": made.norm(), f"graddiff/{name}/cosine": cosine}, step=steps)
        norms = f"norm {made.norm():.4g} (that of {name}: {vector.norm():.4g})"
        rank_zero_info(
            f"{title}, steps: {steps}, alpha {alpha:+g} in all: {norms}, cosine with {name} {cosine:+.2f} -> {path}"
        )


def _by_vector(alpha: float | Mapping[str, float] | None, vectors: Mapping[str, Any]) -> dict[str, float]:
    """The alpha of every vector that gets a GradDiff baseline."""
    if alpha is None:
        return {}
    alphas = dict(alpha) if isinstance(alpha, Mapping) else dict.fromkeys(vectors, alpha)
    unknown = [name for name in alphas if name not in vectors]
    if unknown or not alphas:
        raise ValueError(f"graddiff.alpha names the vectors {list(alphas)}; accepted: of {', '.join(vectors)}")
    for name, value in alphas.items():
        if not math.isfinite(value) or value == 0:
            raise ValueError(f"graddiff.alpha of vector {name!r} is {value}; accepted: a finite number other than 0")
    return {name: float(value) for name, value in alphas.items()}


def _batches(pile: Pile, data: Any) -> Batches:
    packs = data.plan(pile.examples)
    return [([pile.examples[index] for index in pack], [pile.sources[index] for index in pack]) for pack in packs]


def _digest(assembly: Assembly, sides: tuple[Wanted, ...], steps: int, alpha: float) -> str:
    """Digest of everything that determines the final weights."""
    return text_digest(json.dumps([*(assembly.digest(side) for side in sides), steps, alpha]))[:32]
