"""The responses that discover groups: an anchor's, its base's on the same prompts, and others to forecast from."""

from typing import Any

import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader

from gradsteer.data.chat import EncodedExample
from gradsteer.data.encoding import advice_on
from gradsteer.data.piles import Pile, read_pile
from gradsteer.data.sources import Columns, DataSource
from gradsteer.discovery.spans import labelled_ids
from gradsteer.evaluation.degeneracy import is_degenerate
from gradsteer.trainer.datamodules.batches import RunDataModule, batch_loader


class ResponseDataModule(RunDataModule):
    """Reads responses: sampled ones by their token ids, other chat data by the chat template. Verdicts are not read.

    Args:
        responses: the anchor's responses, a responses/NAME.jsonl that evaluate wrote, or chat data (same formats as for
            fit), training examples too.
        base: the base's responses to the same prompts, likewise. Groups that are no more frequent among the anchor's
            are topics of the prompts. Without it nothing is said about what was taught.
        heldout: further responses of the anchor, to other prompts, to forecast from: those that the vectors are made of
            would make forecasts too good. By default they are used all the same, which is said.
        columns: column mapping for chat data with other column names, ours to theirs.
        max_length: maximum tokens per response, prompt included; longer ones are truncated.
        token_budget: tokens per batch, on each device. Affects speed and memory only. Default: 1024 on a CPU, 8192 on
            other devices.
        template: see `RunDataModule`.
    """

    def __init__(
        self,
        responses: str | DataSource,
        base: str | DataSource | None = None,
        heldout: str | DataSource | None = None,
        columns: Columns | None = None,
        max_length: int = 2048,
        token_budget: int | None = None,
        **template: Any,
    ) -> None:
        super().__init__(**template)
        if token_budget is not None and token_budget < 1:
            raise ValueError(f"data.token_budget is {token_budget}; accepted: at least 1")
        if max_length < 2:
            raise ValueError(f"data.max_length is {max_length}; accepted: at least 2 tokens")
        self.sources = {"responses": responses, "base": base, "heldout": heldout}
        self.columns, self.max_length, self.token_budget = columns, max_length, token_budget
        self.piles: dict[str, Pile] = {}
        self.num_degenerate: dict[str, int] = {}

    def setup(self, stage: str) -> None:
        """Reads and encodes all responses, before the models are loaded.

        Raises:
            ValueError: a file is not as it should be, or the base answered other prompts.
        """
        tokenizer = self.use_template()
        longest = min(self.max_length, tokenizer.model_max_length)
        for name, source in self.sources.items():
            if source is None:
                continue
            pile = self.piles[name] = read_pile(
                name, source, tokenizer, max_length=longest, columns=self.columns, num_ids=self.module.num_ids,
                say=rank_zero_info,
            )  # fmt: skip
            self._leave_out_degenerate(name, pile)
            prompts = len(set(pile.prompts))
            rank_zero_info(f"{name}: {len(pile.examples)} responses to {prompts} prompts, {pile.num_tokens} tokens")
            if (lost := pile.truncation.warning(name, advice_on(longest, tokenizer))) is not None:
                rank_zero_warn(lost)
        if "base" in self.piles:
            ours, theirs = ({*self.piles[name].prompts} for name in ("responses", "base"))
            if not ours & theirs:
                raise ValueError(
                    f"data.base {self.sources['base']!r} answers none of the {len(ours)} prompts of data.responses "
                    f"{self.sources['responses']!r}; accepted: the base's responses to the same prompts"
                )
            if ours != theirs:
                rank_zero_warn(
                    f"{len(ours ^ theirs)} of {len(ours | theirs)} prompts have responses of one side only: shares are "
                    "compared on the others"
                )

        if "heldout" in self.piles:
            both = {*self.piles["heldout"].prompts} & {*self.piles["responses"].prompts}
            if both:
                raise ValueError(
                    f"data.heldout {self.sources['heldout']!r} answers {len(both)} of the prompts of data.responses: "
                    "forecasts on it are to be on prompts that no vector is made from; accepted: responses to other "
                    "prompts, or no heldout"
                )

    def _leave_out_degenerate(self, name: str, pile: Pile) -> None:
        """Empty and looping responses are evidence of nothing: no rate and no judged pile has them either."""
        broken = {place for place, text in enumerate(self._texts(pile.examples)) if is_degenerate(text)}
        if not broken:
            return
        if len(broken) == len(pile.examples):
            raise ValueError(
                f"data.{name} {self.sources[name]!r}: all {len(broken)} responses are degenerate (empty or looping); "
                "accepted: responses that say something"
            )
        rank_zero_info(f"{name}: {len(broken)} of {len(pile.examples)} responses are degenerate and left out")
        self.num_degenerate[name] = len(broken)
        pile.leave_out(broken)

    @property
    def examples(self) -> list[EncodedExample]:
        """All responses: the anchor's, the base's, those held out."""
        return [example for pile in self.piles.values() for example in pile.examples]

    @property
    def prompts(self) -> list[str]:
        """Of each its prompt's digest."""
        return [prompt for pile in self.piles.values() for prompt in pile.prompts]

    @property
    def sides(self) -> np.ndarray:
        """Of each which pile it is from, by its place in `piles`."""
        return np.repeat(np.arange(len(self.piles)), [len(pile.examples) for pile in self.piles.values()])

    def side(self, name: str) -> np.ndarray:
        """(responses,) bool: which of them are a pile's."""
        names = list(self.piles)
        found: np.ndarray = self.sides == (names.index(name) if name in names else -1)
        return found

    @property
    def texts(self) -> list[str]:
        """What each response says, without the tokenizer's special tokens."""
        return self._texts(self.examples)

    def _texts(self, examples: list[EncodedExample]) -> list[str]:
        tokenizer = self.module.tokenizer
        return [tokenizer.decode(labelled_ids(example), skip_special_tokens=True) for example in examples]

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """One empty batch, on every process."""
        return [batch_loader([{}])]

    def budget(self) -> int:
        """Tokens per batch on this device."""
        on_cpu = self.running.strategy.root_device.type == "cpu"
        return self.token_budget or (1024 if on_cpu else 8192)
