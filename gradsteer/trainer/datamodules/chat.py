"""Chat data for the finetune."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader

from gradsteer.data.chat import EncodedExample, collate
from gradsteer.data.chat_formats import read_chat_examples
from gradsteer.data.encoding import advice_on, encode_examples
from gradsteer.data.prompt_check import other_beginning
from gradsteer.data.sources import Columns, DataSource
from gradsteer.progress import progress
from gradsteer.trainer.datamodules.batches import BatchList, LengthGroupedBatches, ResumableLoader, RunDataModule


class ChatDataModule(RunDataModule):
    """Chat examples, encoded with the model's own chat template and a loss mask.

    Args:
        train: training data: a JSONL, Parquet or CSV file, a dataset directory or a hub dataset id, or a choice of its
            rows and columns: {path: FILE_OR_ID, name: CONFIGURATION, split: train, columns: {prompt: question,
            completion: answer}, where: {COLUMN: VALUE}, sample: 1000, seed: 0}. Rows are {"messages": [{"role",
            "content"}, ...]} or {"prompt", "completion"} (strings or lists of messages), or, for loss_mask full, raw
            {"text"}.
        validation: validation data in the same formats. Without it no validation loss is computed.
        loss_mask: "assistant" trains on the content of every assistant turn and its end-of-turn token; "answer"
            leaves out thoughts (what a turn holds up to </think>); "full" trains on all tokens.
        columns: column mapping for datasets with other column names, ours to theirs, such as {prompt: question,
            completion: answer}; for sources that do not say their own.
        train_split: split of a hub dataset to train on.
        validation_split: split of a hub dataset to validate on.
        max_length: maximum tokens per example, capped by the tokenizer's model_max_length. Longer examples are
            truncated on the right, and dropped if no target token remains; what is lost is counted in a warning.
        batch_size: examples per batch, on each device.
        group_by_length: batch examples of similar length (less padding); the order stays random.
        shuffle_seed: seed for the order of the examples.
        template: see `RunDataModule`.
    """

    def __init__(
        self,
        train: str | DataSource | None = None,
        validation: str | DataSource | None = None,
        loss_mask: Literal["assistant", "answer", "full"] = "assistant",
        columns: Columns | None = None,
        train_split: str = "train",
        validation_split: str = "validation",
        max_length: int = 1024,
        batch_size: int = 8,
        group_by_length: bool = True,
        shuffle_seed: int = 0,
        **template: Any,
    ) -> None:
        super().__init__(**template)
        if max_length < 2:
            raise ValueError(f"data.max_length is {max_length}; accepted: at least 2 tokens")
        if batch_size < 1:
            raise ValueError(f"data.batch_size is {batch_size}; accepted: at least 1")
        self.train, self.validation, self.loss_mask = train, validation, loss_mask
        self.columns, self.splits = columns, (train_split, validation_split)
        self.max_length, self.batch_size = max_length, batch_size
        self.group_by_length, self.shuffle_seed = group_by_length, shuffle_seed
        self.examples: dict[str, list[EncodedExample]] = {}
        self.sources: dict[str, list[str]] = {}

    def setup(self, stage: str) -> None:
        """Reads and encodes the files, before the model is loaded."""
        self.use_template()
        if stage == "fit":
            if self.train is None:
                raise ValueError("fit needs training data: --data.train FILE_OR_ID")
            self._encode("train", self.train, self.splits[0])
        if self.validation is not None:
            self._encode("validation", self.validation, self.splits[1])
        elif stage == "validate":
            raise ValueError("validate needs validation data: --data.validation FILE_OR_ID")

    def _encode(self, name: str, source: str | DataSource, split: str) -> None:
        if name in self.examples:
            return
        tokenizer = self.module.tokenizer
        max_length = min(self.max_length, tokenizer.model_max_length)
        chats = read_chat_examples(source, split=split, columns=self.columns, say=rank_zero_info)
        assert self.trainer is not None
        if name == "train" and (prompt := chats[0].messages[: chats[0].num_prompt_messages]):
            self.show_first(prompt, chats[0].source)
        shown = self.trainer.is_global_zero and self.trainer.progress_bar_callback is not None
        with progress(f"encoding {name}", len(chats), unit="example", shown=shown) as tick:
            encoded, truncation = encode_examples(
                tokenizer,
                chats,
                loss_mask=self.loss_mask,
                max_length=max_length,
                num_ids=self.module.num_ids,
                tick=tick,
            )
        if name == "train" and (text := other_beginning(tokenizer, chats[0].messages)) is not None:
            rank_zero_warn(text)
        self.sources[name] = [chat.source for chat, one in zip(chats, encoded, strict=True) if one is not None]
        kept = [example for example in encoded if example is not None]
        if (lost := truncation.warning(name, advice_on(max_length, tokenizer))) is not None:
            rank_zero_warn(lost)
        if not kept:
            path = DataSource.of(source).path
            raise ValueError(f"{name} data {path!r}: no example keeps a target token within {max_length} tokens")
        tokens = sum(example.num_target_tokens for example in kept)
        rank_zero_info(f"{name}: {len(kept)} examples, {tokens} target tokens (loss mask: {self.loss_mask})")
        self.examples[name] = kept

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches of the training examples."""
        examples = self.examples["train"]
        sampler = LengthGroupedBatches(
            [len(example.input_ids) for example in examples],
            self.batch_size,
            seed=self.shuffle_seed,
            rank=self.running.global_rank,
            world_size=self.running.world_size,
            group=self.group_by_length,
        )
        rows = BatchList(list(enumerate(examples)))
        return ResumableLoader(rows, batch_sampler=sampler, collate_fn=self._collate)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The validation examples in order, or nothing."""
        if "validation" not in self.examples:
            return []
        everything = list(enumerate(self.examples["validation"]))
        rows = self.share(everything)
        if not rows:  # more ranks than examples: this one joins with an example that has no labels
            ids = everything[0][1].input_ids
            rows = [(0, EncodedExample(ids, [-100] * len(ids)))]
        return DataLoader(BatchList(rows), batch_size=self.batch_size, collate_fn=self._collate)

    def _collate(self, rows: Sequence[tuple[int, EncodedExample]]) -> dict[str, Tensor]:
        """A padded batch and, under ``index``, the positions of its examples in `sources`."""
        batch = collate([example for _, example in rows], self.module.tokenizer.pad_token_id)
        return {**batch, "index": torch.tensor([index for index, _ in rows])}
