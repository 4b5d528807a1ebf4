"""Piles for attribution."""

from typing import Any, Literal

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader

from gradsteer.batching import plan_batches, share_of_rank
from gradsteer.chat import EncodedExample, collate
from gradsteer.data.batching import BatchList
from gradsteer.piles import Pile, PileFilter, read_pile


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
        batch_size: examples in a batch, on each device; changes the speed and the memory, not the gradients.
    """

    def __init__(
        self,
        piles: dict[str, str | PileFilter],
        loss_mask: Literal["assistant", "full"] = "assistant",
        columns: dict[str, str] | None = None,
        max_length: int = 2048,
        batch_size: int = 8,
    ) -> None:
        super().__init__()
        if not piles:
            raise ValueError("attribute needs at least one pile: --data.piles.NAME FILE")
        if batch_size < 1:
            raise ValueError(f"data.batch_size is {batch_size}; accepted: at least 1")
        if max_length < 2:
            raise ValueError(f"data.max_length is {max_length}; accepted: at least 2 tokens")
        self.sources, self.loss_mask, self.columns = piles, loss_mask, columns
        self.max_length, self.batch_size = max_length, batch_size
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
            rank_zero_info(f"pile {pile.name}: {len(pile.examples)} examples, {pile.num_tokens} target tokens")
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
            batches = plan_batches([len(example.input_ids) for example in pile.examples], self.batch_size)
            batches += [[]] * (-len(batches) % world_size)
            share = [self._batch(pile, indices) for indices in share_of_rank(batches, rank, world_size)]
            loaders.append(DataLoader(BatchList(share), batch_size=None))
        return loaders

    def _batch(self, pile: Pile, indices: list[int]) -> dict[str, Any]:
        assert self.trainer is not None
        module: Any = self.trainer.lightning_module
        pad = module.tokenizer.pad_token_id
        # a rank that has run out takes part in the collectives with a sequence that counts for nothing
        examples = [pile.examples[index] for index in indices] or [EncodedExample([pad, pad], [-100, -100])]
        return {**collate(examples, pad), "sources": [pile.sources[index] for index in indices] or ["padding"]}
