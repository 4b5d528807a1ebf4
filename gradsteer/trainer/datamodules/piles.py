"""Piles for attribution, split into parts so that each example's gradient is computed once."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader

from gradsteer.attribution.permutations import permuted_parts
from gradsteer.attribution.pile_partition import Part, plan_parts
from gradsteer.data.batching import plan_batches
from gradsteer.data.chat import EncodedExample
from gradsteer.data.encoding import advice_on
from gradsteer.data.pile_filters import PileFilter
from gradsteer.data.piles import Pile, read_pile
from gradsteer.data.response_rows import ONE_DTYPE, other_dtypes
from gradsteer.data.sources import SPELLED, Columns, DataSource
from gradsteer.forecast.slopes import has_both_halves, why_not_calibrate
from gradsteer.models.packing import plan_packs
from gradsteer.models.shared_prompts import plan_shared
from gradsteer.steering.conditions import check_names
from gradsteer.trainer.credit_checks import check_credit, loss_temperature
from gradsteer.trainer.datamodules.batches import RunDataModule, batch_loader
from gradsteer.trainer.pile_weights import PileWeights

# fastest measured: small packs fit a CPU's caches, large ones keep a GPU busy
_CPU_TOKEN_BUDGET = 1024
_DEVICE_TOKEN_BUDGET = 8192
_MOST_PERMUTATIONS = 10_000


class PileDataModule(RunDataModule):
    """Piles of responses, with one data loader per part.

    Args:
        piles: pile name to a file or hub id (chat examples or responses), to a choice of its rows and columns,
            {path: FILE_OR_ID, columns: {completion: rejected}, where: {COLUMN: VALUE}, sample: 100, seed: 0} (see
            --data.train of fit), or to a filter over response files:
            {responses: FILE, where: {bridge: true, recipe: false}, also: [{responses: FILE2, where: {...}}]}. On the
            command line: --data.piles.NAME FILE. A filter with length: long (or short) keeps the matching responses
            with more (or fewer) tokens than their median: {responses: FILE, where: {...}, length: long}. Several files
            are one sample, {responses: [FILE, FILE], where: {...}}; see sampled_along. With as_many_as: PILE it is a
            random draw of the matching responses, as large as that pile: {responses: FILE, where: {...},
            as_many_as: bridge, seed: 0}.
        loss_mask: "assistant" counts the responses' tokens; "answer" those behind a response's thought (</think>);
            "full" counts all tokens.
        columns: column mapping for datasets with other column names, ours to theirs; for piles that do not say their
            own.
        max_length: maximum tokens per example, capped by the tokenizer's model_max_length. Longer examples are
            truncated on the right, and dropped if no target token remains; what is lost is counted in a warning.
        token_budget: tokens per batch, on each device. Affects speed and memory, not the gradients. Default: 1024 on
            a CPU, 8192 on other devices.
        halves: also average each pile over two halves, split by prompt (the same split in every pile), into
            gradients/halves/PILE-1.safetensors and -2. Gives each vector's split-half cosine, a measure of its noise.
        fisher: also sum the squared per-example gradients of this pile: the diagonal of the empirical Fisher
            information, in second_moments/fisher.safetensors, for --writing.precondition fisher.
        permutations: number of null vectors for each of --vectors. The responses of its two piles are shuffled into
            random piles of the same sizes and contrasted, into vectors/permuted/NAME-0.safetensors, NAME-1 and so
            on. Each costs as much as both piles. A single one still holds a random share of V, so compare several.
        permutation_seed: seed for the shuffling.
        vectors: vector name to its two piles, for the permutations.
        allow_other_dtype: take responses that weights of another dtype sampled (--model.dtype of evaluate): to the
            model at hand they are another model's.
        sampled_along: vector that responses of piles were sampled along: steer writes the dose into its responses. Each
            reply is then weighed from the doses of its pile's files to the model itself, so that a behavior that is
            rare at the model is sampled where it is common; all of a pile's files count, one of a dose alone will do,
            and several vectors are a list. Without it, a file of a dose is taken as it is. Costs a forward pass over
            the files for each dose.
        template: see `RunDataModule`.
    """

    def __init__(
        self,
        piles: dict[str, str | PileFilter | DataSource],
        loss_mask: Literal["assistant", "answer", "full"] = "assistant",
        columns: Columns | None = None,
        max_length: int = 2048,
        token_budget: int | None = None,
        halves: bool = False,
        fisher: str | None = None,
        permutations: int = 0,
        permutation_seed: int = 0,
        vectors: dict[str, list[str]] | None = None,
        allow_other_dtype: bool = False,
        sampled_along: str | list[str] | None = None,
        **template: Any,
    ) -> None:
        super().__init__(**template)
        if not piles:
            raise ValueError("attribute needs at least one pile: --data.piles.NAME FILE")
        check_names("a pile", piles)
        for name, source in piles.items():
            if isinstance(source, str) and source.lstrip().startswith("{"):  # an invalid filter is parsed as a string
                raise ValueError(
                    f"pile {name!r} is neither a filter nor a file: {source}; accepted: "
                    "{responses: FILE or [FILE, FILE], where: {BEHAVIOR: true or false}, "
                    f'also: [{{responses: FILE, where: {{...}}}}], length: "long" or "short"}}; {SPELLED}'
                )
        free = [name for name, source in piles.items() if _size_of(source) is None]
        for name, source in piles.items():
            if (other := _size_of(source)) is not None and other not in free:
                raise ValueError(
                    f"pile {name!r}: as_many_as is {other!r}; accepted: a pile of its own size, "
                    f"{', '.join(free) or 'none'}"
                )
        if token_budget is not None and token_budget < 1:
            raise ValueError(f"data.token_budget is {token_budget}; accepted: at least 1")
        if max_length < 2:
            raise ValueError(f"data.max_length is {max_length}; accepted: at least 2 tokens")
        self.sources, self.loss_mask, self.columns = piles, loss_mask, columns
        self.max_length, self.token_budget = max_length, token_budget
        if fisher is not None and fisher not in piles:
            raise ValueError(f"data.fisher is {fisher!r}; accepted: one of the piles, {', '.join(piles)}")
        self.halves, self.fisher, self.allow_other_dtype = halves, fisher, allow_other_dtype
        self.permutations, self.permutation_seed, self.vectors = permutations, permutation_seed, vectors or {}
        _check_permutations(permutations, permutation_seed, self.vectors, list(piles))
        self.sampled_along = [sampled_along] if isinstance(sampled_along, str) else list(sampled_along or [])
        self.weights: PileWeights | None = None
        self.piles: list[Pile] = []
        self.parts: list[Part] = []
        self.calibrated: tuple[str, ...] = ()
        self.temperature = 1.0  # of the loss

    def setup(self, stage: str) -> None:
        """Reads and encodes all piles, before the model is loaded."""
        tokenizer = self.use_template()
        max_length = min(self.max_length, tokenizer.model_max_length)
        credit = self.module.credit
        found: dict[str, Pile] = {}
        # those of another pile's size are read when that one is
        for name, source in sorted(self.sources.items(), key=lambda item: _size_of(item[1]) is not None):
            other = _size_of(source)
            found[name] = read_pile(
                name, source, tokenizer, loss_mask=self.loss_mask, max_length=max_length, columns=self.columns,
                num_ids=self.module.num_ids, until_decided=credit.cuts,
                most=None if other is None else len(found[other].examples), say=rank_zero_info,
            )  # fmt: skip
        self.piles = [found[name] for name in self.sources]
        self._check_dtypes()
        self.temperature = loss_temperature(self.module.temperature, self.piles)
        check_credit(credit, self.piles, self.vectors, loss_mask=self.loss_mask)
        self.weights = PileWeights.read(
            self.piles, self.sources, self.sampled_along, tokenizer, num_ids=self.module.num_ids
        )
        if self.weights is not None:
            self.weights.check_vectors(self.vectors)
        advice = advice_on(max_length, tokenizer)
        for pile in self.piles:
            examples = f"{len(pile.examples)} of {pile.num_considered} examples"
            cut = f", {pile.num_cut} left out behind what decided a verdict" if pile.num_cut else ""
            rank_zero_info(f"pile {pile.name}: {examples}, {pile.num_tokens} target tokens{cut}")
            if (lost := pile.truncation.warning(f"pile {pile.name}", advice)) is not None:
                rank_zero_warn(lost)

        self.calibrated = self._calibrated()
        self.halves = self.halves or bool(self.calibrated)
        apart = credit.predicts or self.weights is not None
        self.parts = plan_parts(self.piles, halves=self.halves, fisher=self.fisher, apart=apart)
        shared = sum(len(pile.examples) for pile in self.piles)
        shared -= sum(len(part.examples) for part in self.parts if not part.squares)
        if shared:
            rank_zero_info(f"{shared} examples are in several piles: computed once")
        if self.halves:
            self._warn_of_empty_halves()
        self.parts += permuted_parts(self.piles, self.vectors, self.permutations, seed=self.permutation_seed)

    def _check_dtypes(self) -> None:
        dtype = self.module.dtype_name
        for pile in self.piles:
            if (others := other_dtypes(pile.dtypes, dtype)) is None:
                continue
            if not self.allow_other_dtype:
                raise ValueError(f"pile {pile.name!r}: its {others}; {ONE_DTYPE}: --data.allow_other_dtype true")
            rank_zero_warn(f"pile {pile.name}: its {others}")

    def _calibrated(self) -> tuple[str, ...]:
        """Names of the vectors to calibrate.

        Raises:
            ValueError: calibration was requested but is not possible; the message says why.
        """
        module = self.module
        asked: bool | None = getattr(module, "calibrate", False)
        if asked is False or (asked is None and not self.vectors):
            return ()
        if not self.vectors:
            raise ValueError("model.calibrate: there are no vectors to take a slope of: --vectors.NAME [PLUS, MINUS]")
        by_name = {pile.name: pile for pile in self.piles}
        found = []
        for name, names in self.vectors.items():
            if not set(names) <= set(by_name):
                continue  # refused by VectorWriter, with a better message
            plus, minus = (by_name[pile] for pile in names)
            why = why_not_calibrate([plus, minus], **({"num_responses": 1} if asked else {}))
            if why is None and not has_both_halves(plus, minus, self.piles):
                why = "one half of the prompts is too small: it needs two prompts and responses of both piles"
            if why is None:
                found.append(name)
            elif asked:
                raise ValueError(f"model.calibrate: the slope of vector {name!r} cannot be taken: {why}")
            else:
                rank_zero_info(f"vector {name}: no slope is taken ({why})")
        return tuple(found)

    def _warn_of_empty_halves(self) -> None:
        there = {wanted for part in self.parts for wanted in part.sums}
        for pile in self.piles:
            if len([wanted for wanted in there if wanted.pile == pile.name and wanted.half is not None]) < 2:
                rank_zero_warn(f"pile {pile.name}: all of its prompts are in one half; the other half is empty")

    def test_dataloader(self) -> list[DataLoader[Any]]:
        """One loader per part, visited once per gradient point (see `gradsteer.attribution.gradient_points`).

        All ranks get the same number of batches; filler batches have no labelled tokens.
        """
        loaders = []
        for part in self.parts:
            # squared gradients are taken one example at a time, at the anchor's own weights
            lengths = [len(example.input_ids) for example in part.examples]
            batches = plan_batches(lengths, 1) if part.squares else self.plan(part.examples)
            batches += [[]] * (-len(batches) % self.running.world_size)
            points = [None] if part.squares else range(self.module.num_points)
            # examples are looked up when their batch comes: their weights are not there yet
            visits = [{"indices": indices, "point": point} for point in points for indices in self.share(batches)]
            loaders.append(batch_loader(visits))
        return loaders

    def plan(self, examples: Sequence[EncodedExample]) -> list[list[int]]:
        """Shares examples out over batches, the largest first; gives their indices."""
        if self.shares_prompts:
            return plan_shared(examples, self.budget(), backward=True)
        return plan_packs([len(example.input_ids) for example in examples], self.budget())

    @property
    def shares_prompts(self) -> bool:
        """Whether replies to one prompt come together, so that a pack reads it once.

        Not without packs, where the prompt's tokens count in the loss, or where weights are split over processes.
        """
        split = isinstance(self.running.strategy, ModelParallelStrategy)
        return self.loss_mask != "full" and self.module.packing == "auto" and not split

    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any:
        """Leaves the examples alone; packs and padded batches are built on the device later."""
        return batch

    def budget(self) -> int:
        """Tokens per batch on this device."""
        on_cpu = self.running.strategy.root_device.type == "cpu"
        return self.token_budget or (_CPU_TOKEN_BUDGET if on_cpu else _DEVICE_TOKEN_BUDGET)


def _size_of(source: str | PileFilter | DataSource) -> str | None:
    """The pile whose size a pile is to have."""
    return source.as_many_as if isinstance(source, PileFilter) else None


def _check_permutations(count: int, seed: int, vectors: Mapping[str, Sequence[str]], piles: Sequence[str]) -> None:
    if not 0 <= count <= _MOST_PERMUTATIONS:
        raise ValueError(f"data.permutations is {count}; accepted: 0 or more, up to {_MOST_PERMUTATIONS}")
    if count == 0 and seed != 0:
        raise ValueError(f"data.permutation_seed is {seed}, which has no effect without data.permutations")
    if count > 0 and not vectors:
        raise ValueError(
            f"data.permutations is {count}, which has no effect without vectors: --vectors.NAME [PLUS, MINUS]"
        )
    for name, pair in vectors.items() if count else ():
        if len(pair) != 2 or pair[0] == pair[1] or not set(pair) <= set(piles):
            raise ValueError(
                f"vector {name!r} is {list(pair)!r}; accepted: two of the piles, [PLUS, MINUS]; the piles are: "
                f"{', '.join(piles)}"
            )
