"""Datasets of batches, and the random batches of the finetune."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, TypeVar

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import DataLoader, Dataset, Sampler

from gradsteer.data.batching import share_of_rank
from gradsteer.data.chat import encode_prompt
from gradsteer.data.chat_formats import Message
from gradsteer.data.prompt_check import check_header, check_turns, shown_prompt
from gradsteer.data.template_options import use_template_options, with_system

T = TypeVar("T")


class RunDataModule(L.LightningDataModule):
    """A datamodule in a Trainer's run.

    Args:
        template_kwargs: variables for the chat template, in everything that is rendered with it, such as
            '{enable_thinking: false}'.
        system_role: "template" (default) gives system turns to the chat template; "fold" puts the system text before
            the user's first turn, for templates that refuse a system turn or leave it out.
    """

    def __init__(
        self, template_kwargs: dict[str, Any] | None = None, system_role: Literal["template", "fold"] = "template"
    ) -> None:
        super().__init__()
        self.template_kwargs, self.system_role = template_kwargs, system_role

    def use_template(self) -> Any:
        """The module's tokenizer, which from now on renders conversations as these options say."""
        use_template_options(self.module.tokenizer, self.template_kwargs, self.system_role)
        return self.module.tokenizer

    def show_first(self, messages: Sequence[Message], source: str) -> None:
        """Checks a prompt and shows it as the model reads it, once."""
        tokenizer = self.module.tokenizer
        check_header(tokenizer, messages, f"{source}: ")
        token_ids = encode_prompt(tokenizer, messages, source)
        rank_zero_info(f"first prompt, as the model reads it: {shown_prompt(tokenizer, token_ids)}")

    def kinds_of_prompts(self) -> list[list[Message]]:
        """A prompt of each sequence of roles that is sampled or scored."""
        return [[{"role": "user", "content": "Hello"}]]

    def check_system_prompt(self, title: str, system_prompt: str) -> None:
        """Refuses a condition's system prompt that the chat template would not write into every kind of prompt.

        Args:
            title: the condition's name, for the message.
            system_prompt: what stands before every prompt.

        Raises:
            ValueError: as `gradsteer.data.prompt_check.check_turns`.
        """
        for messages in self.kinds_of_prompts():
            turns = with_system(messages, system_prompt)
            check_turns(self.module.tokenizer, turns, f"condition {title!r}: ")

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
        self.start = self.position = 0  # batches of this epoch that are left out at first; that were given

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
        mine = batches[self.rank :: self.world_size][: len(self)]
        start, self.start = self.start, 0
        for self.position in range(start + 1, len(mine) + 1):
            yield mine[self.position - 1]


class ResumableLoader(DataLoader[T]):
    """A data loader over `LengthGroupedBatches` whose place in the epoch is in the Trainer's checkpoints."""

    batch_sampler: LengthGroupedBatches

    def state_dict(self) -> dict[str, int]:
        """Batches that this epoch has given."""
        return {"position": self.batch_sampler.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on there in the epoch that is started next; at its beginning where the one before was complete."""
        self.batch_sampler.start = state["position"] % len(self.batch_sampler)
