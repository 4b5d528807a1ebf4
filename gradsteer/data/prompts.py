"""Prompts to sample responses for."""

from typing import Any

import lightning as L
from torch.utils.data import DataLoader

from gradsteer.batching import plan_batches, share_of_rank
from gradsteer.chat import encode_prompt
from gradsteer.conditions import Condition
from gradsteer.data.batching import BatchList
from gradsteer.formats import prompt_text, read_prompts

PromptBatch = list[dict[str, Any]]


class PromptDataModule(L.LightningDataModule):
    """Prompts, each sampled several times; one pass over all of them for each condition.

    Args:
        prompts: JSONL, Parquet or CSV file, or a hub id. Rows are {"prompt": ...} or {"messages": [...]}, with an
            optional "id".
        columns: for sets that name their columns otherwise, our name to theirs, such as {prompt: question}.
        split: split of a hub data set.
        max_prompts: only the first so many prompts; all by default.
        system_prompt: put before every prompt as a system message.
        batch_size: responses sampled at once, on each device; changes the speed, not the responses.
        num_samples: responses a prompt (set by the model's option of this name).
    """

    def __init__(
        self,
        prompts: str,
        columns: dict[str, str] | None = None,
        split: str = "train",
        max_prompts: int | None = None,
        system_prompt: str | None = None,
        batch_size: int = 64,
        num_samples: int = 1,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"data.batch_size is {batch_size}; accepted: at least 1")
        if max_prompts is not None and max_prompts < 1:
            raise ValueError(f"data.max_prompts is {max_prompts}; accepted: at least 1")
        self.prompts, self.columns, self.split, self.max_prompts = prompts, columns, split, max_prompts
        self.system_prompt, self.batch_size, self.num_samples = system_prompt, batch_size, num_samples
        self.num_passes = 1
        self.batches: list[PromptBatch] = []

    def setup(self, stage: str) -> None:
        """Reads the prompts and plans the batches, the same on every rank and run."""
        del stage
        self.batches = self._plan(self.system_prompt)

    def _plan(self, system_prompt: str | None) -> list[PromptBatch]:
        """All prompts' batches, behind a system prompt where there is one."""
        assert self.trainer is not None
        tokenizer: Any = self.trainer.lightning_module.tokenizer
        rows: PromptBatch = []
        prompts = read_prompts(self.prompts, split=self.split, columns=self.columns)
        for prompt in prompts[: self.max_prompts]:
            messages = prompt.messages
            if system_prompt is not None:
                messages = [{"role": "system", "content": system_prompt}, *messages]
            token_ids = encode_prompt(tokenizer, messages, prompt.source)
            # a condition's own system prompt is no part of what a judge is shown: it would name the condition
            text = prompt_text(messages if system_prompt == self.system_prompt else prompt.messages)
            rows += [
                {"id": prompt.id, "prompt": text, "prompt_token_ids": token_ids, "sample": sample}
                for sample in range(self.num_samples)
            ]
        seen: dict[tuple[int, ...], int] = {}
        for position, row in enumerate(rows):
            # a prompt that occurs again draws further samples, not the same ones
            key = tuple(row["prompt_token_ids"])
            seen[key] = seen.get(key, -1) + 1
            row["position"], row["draw"] = position, seen[key]
        plan = plan_batches([len(row["prompt_token_ids"]) for row in rows], self.batch_size)
        return [[rows[index] for index in batch] for batch in plan]

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """One loader of whole batches for each condition; a rank without a batch gets an empty one."""
        assert self.trainer is not None
        conditions = getattr(self.trainer, "conditions", None) or [None] * self.num_passes
        batches = [self._batches_of(condition) for condition in conditions]
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        shares = [share_of_rank(each, rank, world_size) or [[]] for each in batches]
        return [DataLoader(BatchList(share), batch_size=None, collate_fn=_as_is) for share in shares]

    def _batches_of(self, condition: Condition | None) -> list[PromptBatch]:
        """A condition's batches; the shared ones unless it has a system prompt of its own."""
        own = None if condition is None else condition.system_prompt
        if own is not None and self.system_prompt is not None:
            raise ValueError("steering.system_prompts and data.system_prompt cannot both be given")
        return self.batches if own is None else self._plan(own)


def _as_is(batch: PromptBatch) -> PromptBatch:
    return batch
