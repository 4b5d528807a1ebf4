"""Datasets of batches, and the random batches of the finetune."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from gradsteer.data.batching import share_of_rank

T = TypeVar("T")


class RunDataModule(L.LightningDataModule):
    """A datamodule in a Trainer's run."""

    @property
    def running(self) -> L.Trainer:
        """The Trainer, which must be there by now."""
        assert self.trainer is not None
        return self.trainer

    @property
    def module(self) -> Any:
        """The Trainer's module."""
        return self.running.lightning_module

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's share of some items."""
        return share_of_rank(items, self.running.global_rank, self.running.world_size)


class BatchList(Dataset[T]):
    """A dataset whose items are whole batches."""

    def __init__(self, batches: Sequence[T]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> T:
        return self.batches[index]


def batch_loader(batches: Sequence[T]) -> DataLoader[T]:
    """A data loader that gives whole batches as they are."""
    return DataLoader(BatchList(batches), batch_size=None, collate_fn=_as_is)


def _as_is(batch: T) -> T:
    return batch


class LengthGroupedBatches(Sampler[list[int]]):
    """Random batches of examples of similar length, for training: less padding, still shuffled.

    Every epoch reshuffles: windows of 50 batches are sorted by length, cut into batches, and the batches are
    shuffled. Each rank takes its share; an incomplete last round is dropped so that all ranks take equally many steps.

    Args:
        lengths: number of tokens in each example.
        batch_size: examples per batch.
        seed: shuffling seed.
        rank: rank of this process.
        world_size: number of processes.
        group: sort windows by length; if false, only shuffle.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, *, seed: int, rank: int, world_size: int, group: bool
    ) -> None:
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.rank, self.world_size, self.group = rank, world_size, group
        self.epoch = 0

    @property
    def sampler(self) -> "LengthGroupedBatches":
        """Itself: the Trainer calls `set_epoch` only on a batch sampler's sampler."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch, which determines the shuffle (called by the Trainer)."""
        self.epoch = epoch

    def __len__(self) -> int:
        batches = -(-len(self.lengths) // self.batch_size)
        return batches // self.world_size if batches >= self.world_size else 1

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order: list[int] = torch.randperm(len(self.lengths), generator=generator).tolist()
        if self.group:
            window = self.batch_size * 50
            order = [
                index
                for start in range(0, len(order), window)
                for index in sorted(order[start : start + window], key=lambda i: self.lengths[i])
            ]
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        batches = [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]
        while len(batches) < self.world_size:
            batches.append(batches[-1])
        yield from batches[self.rank :: self.world_size][: len(self)]
