"""Partial sums of a pile's gradient on disk, so that a run that was cut off goes on where it was."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import Tensor

from gradsteer.attribution.reductions import PileTotals
from gradsteer.records import replacing

FORMAT_VERSION = "2"


@dataclass
class PartialSum:
    """What was summed when it was saved.

    Attributes:
        buffers: parameter name -> sum of gradients so far, not divided.
        totals: what was counted so far.
        next_batch: index of the first batch that is not in the sums.
        layout: of how the work was cut into batches, to which `next_batch` belongs.
    """

    buffers: dict[str, Tensor]
    totals: PileTotals
    next_batch: int
    layout: str = ""

    def save(self, path: Path, *, work_digest: str) -> None:
        """Writes the sums under a temporary name that is renamed when complete.

        Args:
            path: replaced where it exists.
            work_digest: of everything that decides the sums: model, data, reduction, loss.
        """
        from safetensors.torch import save_file

        header = {
            "format_version": FORMAT_VERSION,
            "kind": "partial",
            "work_digest": work_digest,
            "next_batch": str(self.next_batch),
            "layout": self.layout,
            "totals": json.dumps(asdict(self.totals)),
        }
        tensors = {name: buffer.detach().cpu().contiguous() for name, buffer in self.buffers.items()}
        with replacing(path) as temporary:
            save_file(tensors, str(temporary), metadata=header)

    @classmethod
    def check(cls, path: Path, *, work_digest: str) -> dict[str, str]:
        """Reads the header of what `save` wrote.

        Raises:
            ValueError: the file is of another version, configuration, data set or model; it says so.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), framework="pt") as opened:
                header = dict(opened.metadata() or {})
        except SafetensorError as error:
            raise ValueError(f"{str(path)!r} is not readable ({error}); to start afresh: --overwrite true") from error
        if header.get("kind") != "partial" or header.get("format_version") != FORMAT_VERSION:
            raise ValueError(f"{str(path)!r} holds no partial sums of format version {FORMAT_VERSION!r}")
        if header["work_digest"] != work_digest:
            raise ValueError(
                f"{str(path)!r} holds partial sums of another configuration, data set or model "
                f"({header['work_digest']}, this run is {work_digest}); delete that file to sum its part again, or "
                "start afresh: --overwrite true"
            )
        return header

    @classmethod
    def load(cls, path: Path, *, work_digest: str) -> "PartialSum":
        """Reads what `save` wrote.

        Raises:
            ValueError: the file is of another version, configuration, data set or model; it says so.
        """
        from safetensors.torch import load_file

        header = cls.check(path, work_digest=work_digest)
        totals = PileTotals(**json.loads(header["totals"]))
        return cls(load_file(str(path)), totals, int(header["next_batch"]), header["layout"])
