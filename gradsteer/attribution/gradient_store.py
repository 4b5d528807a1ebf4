"""From the sums over parts to averages on disk: gradients of piles, of their halves, and second moments.

A finished sum goes to disk at once, so that many piles never hold many copies of the model in memory.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradsteer.attribution.partial_sums import PartialSum
from gradsteer.attribution.pile_partition import Part, Wanted, wanted_sums
from gradsteer.attribution.reductions import PileTotals, Reduction
from gradsteer.records import is_leftover, text_digest
from gradsteer.vectors.parameter_vectors import ParameterVector, PileAverage
from gradsteer.vectors.preconditioning import SecondMoment

# an artifact's metadata beyond its counts
Describe = Callable[[Wanted], Mapping[str, str]]


class Assembly:
    """Writes every sum that is asked for as soon as its last part is there.

    Files: ``gradients/PILE.safetensors``, ``gradients/halves/PILE-1.safetensors`` and ``-2``,
    ``gradients/permuted/VECTOR-0-plus.safetensors`` and ``-minus``, ``second_moments/fisher.safetensors``; parts of
    several sums lie hidden in ``gradients/`` until all is done.

    Args:
        output_dir: the experiment's directory.
        parts: as `plan_parts` gives them.
        digests: of everything that decides each part's sum, in the parts' order.
        reduction: how the sums are divided.
    """

    def __init__(self, output_dir: Path, parts: Sequence[Part], digests: Sequence[str], reduction: Reduction) -> None:
        self.output_dir, self.parts, self.digests, self.reduction = output_dir, parts, digests, reduction
        self.sums = wanted_sums(parts)

    def path(self, wanted: Wanted) -> Path:
        """Where a sum is written, divided."""
        if wanted.squares:
            return self.output_dir / "second_moments" / f"{wanted.name}.safetensors"
        folder = self.output_dir / "gradients"
        if (dealt := wanted.permutation) is not None:
            return folder / "permuted" / f"{dealt.vector}-{dealt.index}-{dealt.side}.safetensors"
        return (folder if wanted.half is None else folder / "halves") / f"{wanted.name}.safetensors"

    def part_path(self, index: int) -> Path:
        """Where a part's sum waits for the other parts of its sums."""
        return self.output_dir / "gradients" / f".{self.stem(index)}.part"

    def stem(self, index: int) -> str:
        """A part in a file name."""
        return f"{self.parts[index].name[:80]}.{index}"

    def digest(self, wanted: Wanted) -> str:
        """Of everything that decides a sum."""
        mine = [digest for part, digest in zip(self.parts, self.digests, strict=True) if wanted in part.sums]
        return mine[0] if len(mine) == 1 else text_digest(" ".join(mine))[:32]

    def has(self, index: int) -> bool:
        """Whether a part need not be computed: all of its sums are written, or its own is.

        Raises:
            ValueError: the part's own sum is there, but of another configuration, data set or model.
        """
        if all(self._is_written(wanted) for wanted in self.parts[index].sums):
            return True
        if not self.part_path(index).is_file():
            return False
        PartialSum.check(self.part_path(index), work_digest=self.digests[index])
        return True

    def _is_written(self, wanted: Wanted) -> bool:
        path = self.path(wanted)
        return path.is_file() and _vector_class(wanted).read_header(path).get("work_digest") == self.digest(wanted)

    def take(self, index: int, sums: PartialSum, describe: Describe) -> Iterator[tuple[Wanted, ParameterVector]]:
        """Takes a part's sum, and writes every sum that is complete with it.

        Args:
            index: of the part.
            sums: over the whole part.
            describe: metadata of a sum's file.

        Yields:
            What was written.
        """
        shared = [wanted for wanted in self.parts[index].sums if len(self.sums[wanted]) > 1]
        for wanted in self.parts[index].sums:
            if wanted not in shared:
                yield wanted, self._write(wanted, sums.buffers, sums.totals, describe)
        if shared:
            sums.save(self.part_path(index), work_digest=self.digests[index])
            yield from self.write_complete(describe, shared)

    def write_complete(self, describe: Describe, among: Sequence[Wanted]) -> Iterator[tuple[Wanted, ParameterVector]]:
        """Writes the sums whose parts are all there."""
        for wanted in among:
            indices = [index for index, part in enumerate(self.parts) if wanted in part.sums]
            if self._is_written(wanted) or not all(self.part_path(index).is_file() for index in indices):
                continue
            yield wanted, self._write(wanted, *self._add_up(indices), describe)

    def _add_up(self, indices: Sequence[int]) -> tuple[dict[str, Tensor], PileTotals]:
        added: dict[str, Tensor] = {}
        totals = PileTotals()
        for index in indices:
            loaded = PartialSum.load(self.part_path(index), work_digest=self.digests[index])
            totals = totals + loaded.totals
            for name, tensor in loaded.buffers.items():
                added[name] = tensor if name not in added else added[name].add_(tensor)
        return added, totals

    def _write(
        self, wanted: Wanted, sums: Mapping[str, Tensor], totals: PileTotals, describe: Describe
    ) -> ParameterVector:
        divisor = totals.divisor("example" if wanted.squares else self.reduction)
        metadata = {
            **describe(wanted),
            "num_examples": str(totals.num_examples),
            "num_tokens": str(totals.num_tokens),
            "mean_token_loss": repr(totals.mean_token_loss),
            "work_digest": self.digest(wanted),
        }
        if totals.objectives:
            metadata["loss_at_base"] = repr(totals.objectives[0] / divisor)
            metadata["loss_at_anchor"] = repr(totals.objectives[-1] / divisor)
            metadata["along_path"] = repr(totals.along_path / divisor)
        with torch.no_grad():
            vector: ParameterVector = _vector_class(wanted)(
                {name: tensor / divisor for name, tensor in sums.items()}, metadata
            )
        vector.save(self.path(wanted))
        return vector

    def clean(self) -> None:
        """Removes parts and partial sums, once everything is written; those of earlier plans, too.

        And what a killed process was about to rename, as large as the model.
        """
        if all(self._is_written(wanted) for wanted in self.sums):
            for path in (self.output_dir / "gradients").glob(".*.part*"):
                path.unlink(missing_ok=True)
            for folder in ("gradients", "vectors"):
                for path in (self.output_dir / folder).rglob(".*.tmp.safetensors"):
                    if is_leftover(path):
                        path.unlink(missing_ok=True)


def _vector_class(wanted: Wanted) -> Any:
    return SecondMoment if wanted.squares else PileAverage
