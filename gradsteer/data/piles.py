"""Piles for attribution."""

from typing import Any, Literal

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader

from gradsteer.batching import share_of_rank
from gradsteer.chat import EncodedExample
from gradsteer.conditions import check_name
from gradsteer.data.batching import BatchList
from gradsteer.packing import plan_packs
from gradsteer.piles import Pile, PileFilter, read_pile

# what ran fastest: a CPU's caches want small packs, a GPU wants work
_CPU_TOKEN_BUDGET = 1024
_DEVICE_TOKEN_BUDGET = 8192


class PileDataModule(L.LightningDataModule):
    """Piles of responses, one data loader a pile.

    Args:
        piles: name to a file (chat examples or responses), or to a filter over response files:
            {responses: FILE, where: {bridge: true, recipe: false}, also: [{responses: FILE2, where: {...}}]}. From
            the command line: --data.piles.NAME FILE.
        loss_mask: "assistant" counts the tokens of the responses; "full" counts all tokens.
        columns: for sets that name their columns otherwise, our name to theirs.
        max_length: tokens of an example at most, also no more than the tokenizer's model_max_length; longer ones
            are cut on the right, and dropped (and counted aloud) where no target token would be left.
        token_budget: tokens at once, on each device; changes the speed and the memory, not the gradients. By default
            1024 on a CPU, 8192 on other devices.
    """

    def __init__(
        self,
        piles: dict[str, str | PileFilter],
        loss_mask: Literal["assistant", "full"] = "assistant",
        columns: dict[str, str] | None = None,
        max_length: int = 2048,
        token_budget: int | None = None,
    ) -> None:
        super().__init__()
        if not piles:
            raise ValueError("attribute needs at least one pile: --data.piles.NAME FILE")
        for name in piles:
            check_name("a pile", name)
        if token_budget is not None and token_budget < 1:
            raise ValueError(f"data.token_budget is {token_budget}; accepted: at least 1")
        if max_length < 2:
            raise ValueError(f"data.max_length is {max_length}; accepted: at least 2 tokens")
        self.sources, self.loss_mask, self.columns = piles, loss_mask, columns
        self.max_length, self.token_budget = max_length, token_budget
        self.piles: list[Pile] = []

    def setup(self, stage: str) -> None:
        """Reads and encodes all piles, before the model is loaded."""
        del stage
        assert self.trainer is not None
        tokenizer: Any = self.trainer.lightning_module.tokenizer
        max_length = min(self.max_length, tokenizer.model_max_length)
        self.piles = [
            read_pile(name, source, tokenizer, loss_mask=self.loss_mask, max_length=max_length, columns=self.columns)
            for name, source in self.sources.items()
        ]
        for pile in self.piles:
            examples = f"{len(pile.examples)} of {pile.num_considered} examples"
            rank_zero_info(f"pile {pile.name}: {examples}, {pile.num_tokens} target tokens")
            if pile.num_dropped:
                rank_zero_warn(
                    f"pile {pile.name}: dropped {pile.num_dropped} examples that keep no target token within "
                    f"max_length={max_length}"
                )

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """One loader a pile; every rank has equally many batches, the missing ones hold no labelled token."""
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        loaders = []
        for pile in self.piles:
            batches = plan_packs([len(example.input_ids) for example in pile.examples], self.budget())
            batches += [[]] * (-len(batches) % world_size)
            share = [self._batch(pile, indices) for indices in share_of_rank(batches, rank, world_size)]
            loaders.append(DataLoader(BatchList(share), batch_size=None, collate_fn=_as_is))
        return loaders

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Leaves the examples as they are; a pack or a padded batch is made of them on the device."""
        del device, dataloader_idx
        return batch

    def budget(self) -> int:
        """Tokens at once, on this device."""
        assert self.trainer is not None
        on_cpu = self.trainer.strategy.root_device.type == "cpu"
        return self.token_budget or (_CPU_TOKEN_BUDGET if on_cpu else _DEVICE_TOKEN_BUDGET)

    def _batch(self, pile: Pile, indices: list[int]) -> dict[str, Any]:
        assert self.trainer is not None
        module: Any = self.trainer.lightning_module
        pad = module.tokenizer.pad_token_id
        # a rank that has run out takes part in the collectives with a sequence that counts for nothing
        examples = [pile.examples[index] for index in indices] or [EncodedExample([pad, pad], [-100, -100])]
        return {"examples": examples, "sources": [pile.sources[index] for index in indices] or ["padding"]}


def _as_is(batch: Any) -> Any:
    return batch
