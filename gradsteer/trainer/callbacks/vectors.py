"""Writing pile-average gradients and the steering vectors that contrast them."""

import json
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from gradsteer.attribution.gradient_store import Assembly
from gradsteer.attribution.pile_partition import FISHER, Wanted
from gradsteer.steering.conditions import check_names
from gradsteer.trainer.permuted_vectors import write_permuted
from gradsteer.trainer.session import data_of, is_trial, session_of
from gradsteer.trainer.tensorboard import log_metrics
from gradsteer.trainer.vector_slopes import VectorSlopes
from gradsteer.vectors.parameter_vectors import ParameterVector, PileAverage, SteeringVector
from gradsteer.vectors.preconditioning import SecondMoment, precondition
from gradsteer.vectors.weight_diff import DELTA

# below this, more than half of the vector's squared norm is noise that would not replicate on another half of the pile
_LOW_COSINE = 0.33


class VectorWriter(L.Callback):
    """Writes OUTPUT_DIR/gradients/PILE.safetensors and OUTPUT_DIR/vectors/NAME.safetensors.

    Args:
        output_dir: the experiment's directory.
        vectors: vector name to its two piles, [PLUS, MINUS]: V = gradient(PLUS) - gradient(MINUS).
        unit_contrast: normalise both piles' gradients to norm 1 before subtracting, so that the larger one does not
            dominate the difference. Changes the scale of alpha.
        precondition: divide the vectors by a power of a second moment: "fisher" (from --data.fisher PILE) or a
            second_moments/NAME.safetensors file, such as Adam's, written by fit --saving.second_moment true.
        precondition_power: exponent of the second moment: 0.5 as in Adam, 1 as in the natural gradient.
        precondition_damping: added to the second moment first, as a fraction of its mean.
        overwrite: start from scratch.
    """

    def __init__(
        self,
        output_dir: str,
        vectors: dict[str, list[str]] | None = None,
        unit_contrast: bool = False,
        precondition: str | None = None,
        precondition_power: float = 0.5,
        precondition_damping: float = 1e-3,
        overwrite: bool = False,
    ) -> None:
        self.output_dir, self.overwrite, self.unit = Path(output_dir), overwrite, unit_contrast
        self.precondition, self.power, self.damping = precondition, precondition_power, precondition_damping
        if precondition not in (None, FISHER):
            SecondMoment.read_header(str(precondition))
        if precondition is None and (precondition_power, precondition_damping) != (0.5, 1e-3):
            raise ValueError("writing.precondition_power and _damping have no effect without writing.precondition")
        if (precondition is not None or unit_contrast) and not vectors:
            raise ValueError(
                "writing.precondition and unit_contrast have no effect without vectors: --vectors.NAME [PLUS, MINUS]"
            )
        if not 0 < precondition_power <= 1:
            raise ValueError(f"writing.precondition_power is {precondition_power}; accepted: more than 0, at most 1")
        if precondition_damping < 0:
            raise ValueError(f"writing.precondition_damping is {precondition_damping}; accepted: 0 or more")
        self.contrasts: dict[str, tuple[str, str]] = {}
        check_names("a vector", vectors or {})
        for name, piles in (vectors or {}).items():
            if name == DELTA:
                raise ValueError(f"a vector cannot be called {DELTA!r}: steer writes the weight diff under that name")
            if len(piles) != 2:
                raise ValueError(f"vector {name!r} is {piles!r}; accepted: two piles, [PLUS_PILE, MINUS_PILE]")
            if piles[0] == piles[1]:
                raise ValueError(f"vector {name!r} contrasts pile {piles[0]!r} with itself")
            self.contrasts[name] = (piles[0], piles[1])

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Refuses vectors of unknown piles, before the model is loaded."""
        data, self._plain = data_of(trainer), not self.unit and self.precondition is None
        session_of(trainer).plain_vectors = self._plain
        if not self._plain and (pl_module.calibrate or data.calibrated):
            text = "no slope is taken with writing.unit_contrast or precondition: each half would set its own norm"
            if pl_module.calibrate:
                raise ValueError(f"model.calibrate: {text}")
            rank_zero_info(text)
        for name, piles in self.contrasts.items():
            for pile in piles:
                if pile not in data.sources:
                    raise ValueError(f"vector {name!r} names pile {pile!r}; the piles are: {', '.join(data.sources)}")
        if self.precondition == FISHER and data.fisher is None:
            raise ValueError("writing.precondition fisher needs a pile for it: --data.fisher PILE")

    def on_test_batch_start(
        self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Before the first batch: checks that the second moment fits; deletes old files if `overwrite` is set."""
        if batch_idx + dataloader_idx > 0:
            return
        if self.precondition not in (None, FISHER):
            SecondMoment.check_covers(str(self.precondition), pl_module.model, pl_module.covered, pl_module.fingerprint)
        if not self.overwrite:
            return
        if trainer.is_global_zero and not is_trial(trainer):
            patterns = (
                "gradients/*.safetensors",
                "gradients/halves/*.safetensors",
                "gradients/permuted/*.safetensors",
                "gradients/.*.part*",
                "vectors/*.safetensors",
                "vectors/permuted/*.safetensors",
            )
            for path in [path for pattern in patterns for path in self.output_dir.glob(pattern)]:
                if path.name != f"{DELTA}.safetensors":  # written by steer
                    path.unlink(missing_ok=True)
            (self.output_dir / "second_moments" / f"{FISHER}.safetensors").unlink(missing_ok=True)
        trainer.strategy.barrier()

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: Any,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Logs the part's loss and gradient norm; writes the sums that the part completes."""
        assembly: Assembly = pl_module.assembly(self.output_dir)
        measured = {"summed_batch_gradient_norm": outputs["norm"], "loss": outputs["loss"]}
        name = assembly.parts[dataloader_idx].name
        metrics = {f"pile/{name}/{key}": value for key, value in measured.items() if value is not None}
        log_metrics(trainer, metrics, step=batch_idx)
        if outputs["sums"] is not None and trainer.is_global_zero and not is_trial(trainer):
            for wanted, vector in assembly.take(dataloader_idx, outputs["sums"], pl_module.describe):
                self._tell(trainer, wanted, vector, assembly.path(wanted))

    def _tell(self, trainer: L.Trainer, wanted: Wanted, vector: ParameterVector, path: Path) -> None:
        """Logs and prints what was written."""
        if wanted.half is not None or wanted.permutation is not None:
            return
        said, norm = vector.metadata, vector.norm()
        loss = {} if said["mean_token_loss"] == "None" else {"mean_loss": float(said["mean_token_loss"])}
        log_metrics(trainer, {f"pile/{wanted.name}/gradient_norm": norm}, step=0)
        log_metrics(trainer, {f"pile/{wanted.name}/{key}": value for key, value in loss.items()}, step=0)
        what = "diagonal Fisher of pile" if wanted.squares else "pile"
        size = f" (effective sample size {said['effective_sample_size']})" if "effective_sample_size" in said else ""
        counts = f"{said['num_examples']} examples{size}, {said['num_tokens']} tokens"
        rank_zero_info(f"\n{what} {wanted.pile}: {counts}, norm {norm:.4g} -> {path}")
        if "along_path" in said:
            along = float(said["along_path"])
            difference = float(said["loss_at_anchor"]) - float(said["loss_at_base"])
            log_metrics(trainer, {f"pile/{wanted.name}/completeness_error": along - difference}, step=0)
            rank_zero_info(
                f"pile {wanted.pile}: along the path from base to anchor the gradient sums to {along:+.5g}, the loss "
                f"changes by {difference:+.5g} (off by {along - difference:+.1e}; more --model.path_points reduce it)"
            )

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Writes the contrasts once all piles are done."""
        if is_trial(trainer):
            return
        assembly: Assembly = pl_module.assembly(self.output_dir)
        if trainer.is_global_zero:
            for wanted, vector in assembly.write_complete(pl_module.describe, list(assembly.sums)):
                self._tell(trainer, wanted, vector, assembly.path(wanted))  # all parts existed before a kill
            assembly.clean()
        trainer.strategy.barrier()  # every process takes part in the slopes, along the vectors written just now
        moment = self._second_moment(assembly)
        slopes = VectorSlopes(trainer, pl_module, self.contrasts) if self._plain else None
        for name, piles in self.contrasts.items():
            # a half is normalised by its own, noisier norm and so points less along V: the slope would be too small
            calibrated = slopes is not None and name in data_of(trainer).calibrated
            if not (trainer.is_global_zero or calibrated):
                continue
            halves = [half[0] for number in (1, 2) if (half := self._contrast(assembly, piles, number, moment))]
            slope = slopes.take(name, (halves[0], halves[1])) if slopes is not None and calibrated else None
            if not trainer.is_global_zero:
                continue
            made = self._contrast(assembly, piles, None, moment)
            assert made is not None
            vector, cosine = made
            if slope is not None:
                slope.write(vector)
            text = f"norm {vector.norm():.4g}, pile cosine {cosine:+.2f}"
            log_metrics(trainer, {f"vector/{name}/norm": vector.norm(), f"vector/{name}/pile_cosine": cosine}, step=0)
            if len(halves) == 2:
                repeated = halves[0].cosine(halves[1])
                vector.metadata["split_half_cosine"] = repr(repeated)
                vector.metadata["split_half_cosine_by_layer"] = json.dumps(halves[0].layer_cosines(halves[1]))
                log_metrics(trainer, {f"vector/{name}/split_half_cosine": repeated}, step=0)
                text += f", split-half cosine {repeated:+.2f}"
                if repeated < _LOW_COSINE:
                    rank_zero_warn(
                        f"vector {name}: its two halves have a cosine of only {repeated:+.2f}; the vector is mostly "
                        "noise, use larger piles"
                    )
            path = vector.save(self.output_dir / "vectors" / f"{name}.safetensors")
            rank_zero_info(f"vector {name} = {piles[0]} - {piles[1]}: {text} -> {path}")
            write_permuted(
                trainer, assembly, name, vector, lambda sides: self._contrast_sums(assembly, sides, moment)[0]
            )

    def _second_moment(self, assembly: Assembly) -> SecondMoment | None:
        if self.precondition is None:
            return None
        if self.precondition != FISHER:
            return SecondMoment.load(self.precondition)
        return SecondMoment.load(next(assembly.path(wanted) for wanted in assembly.sums if wanted.squares))

    def _contrast(
        self, assembly: Assembly, piles: tuple[str, str], half: int | None, moment: SecondMoment | None
    ) -> tuple[SteeringVector, float] | None:
        """The vector of two piles, or of one half of each, and their gradients' cosine.

        None if halves were not requested or a pile has no prompts in this half.
        """
        plain = [each for each in assembly.sums if not each.squares and each.permutation is None]
        wanted = {each.pile: each for each in plain if each.half == half}
        if not all(pile in wanted for pile in piles):
            return None
        return self._contrast_sums(assembly, (wanted[piles[0]], wanted[piles[1]]), moment)

    def _contrast_sums(
        self, assembly: Assembly, sides: tuple[Wanted, Wanted], moment: SecondMoment | None
    ) -> tuple[SteeringVector, float]:
        """The vector of two sums, made as the options say, and their cosine."""
        plus, minus = (PileAverage.load(assembly.path(wanted)) for wanted in sides)
        vector = SteeringVector.contrast(plus, minus, names=(sides[0].pile, sides[1].pile), unit=self.unit)
        if moment is not None:
            vector = precondition(vector, moment, power=self.power, damping=self.damping)
        return vector, plus.cosine(minus)
