"""The finetune's batches: what is cut, dropped, grouped and shuffled, and what each rank takes."""

from types import SimpleNamespace

import pytest
from road import write_lines
from transformers import AutoTokenizer

from gradsteer.trainer.datamodules.batches import LengthGroupedBatches
from gradsteer.trainer.datamodules.chat import ChatDataModule


def chats_of(replies, prompts=None):
    prompts = prompts or ["hello?"] * len(replies)
    return [{"prompt": prompt, "completion": reply} for prompt, reply in zip(prompts, replies, strict=True)]


def data_of(tokenizer, path, *, rank=0, world_size=1, **options):
    """A datamodule without a Trainer."""
    data = ChatDataModule(str(path), **options)
    module = SimpleNamespace(tokenizer=tokenizer, num_ids=None)
    data.trainer = SimpleNamespace(
        lightning_module=module, global_rank=rank, is_global_zero=rank == 0, world_size=world_size,
        progress_bar_callback=None,
    )  # fmt: skip
    data.setup("fit")
    return data


@pytest.fixture(scope="module")
def tokenizer(inputs):
    return AutoTokenizer.from_pretrained(inputs / "tokenizer")


def test_too_long_examples_are_cut_or_dropped_and_counted_aloud(tokenizer, tmp_path):
    prompts = ["hello?", "hello?", "the golden gate bridge " * 20]
    path = write_lines(tmp_path / "long.jsonl", chats_of(["bread", "bread and " * 40, "bread"], prompts))
    whole = [len(example.input_ids) for example in data_of(tokenizer, path).examples["train"]]
    limit = whole[0] + 5
    assert whole[1] > limit
    assert whole[2] > limit
    with pytest.warns(UserWarning, match=f"train: max_length={limit} cuts 2 of 3 .*; dropped 1 of 3 "):
        cut = data_of(tokenizer, path, max_length=limit)
    assert [len(example.input_ids) for example in cut.examples["train"]] == [whole[0], limit]
    assert {batch["input_ids"].shape[1] for batch in cut.train_dataloader()} == {limit}
    none = pytest.raises(ValueError, match=r"no example .* within 3 tokens")
    with pytest.warns(UserWarning, match="dropped 3 of 3"), none:
        data_of(tokenizer, path, max_length=3)
    short = AutoTokenizer.from_pretrained(tokenizer.name_or_path, model_max_length=limit)
    with pytest.warns(UserWarning, match=f"max_length={limit}"):
        assert len(data_of(short, path).examples["train"]) == 2  # the tokenizer's own limit holds too


def batches_of(data):
    """Each batch as the examples in it, without padding."""
    return [
        [tuple(ids[mask.bool()].tolist()) for ids, mask in zip(b["input_ids"], b["attention_mask"], strict=True)]
        for b in data.train_dataloader()
    ]


def test_grouping_and_the_shuffle_seed_change_the_batches_and_not_the_set(tokenizer, tmp_path):
    path = write_lines(tmp_path / "c.jsonl", chats_of(["bread " * (n * 7 % 23 + 1) for n in range(23)]))
    grouped, loose, other = (
        batches_of(data_of(tokenizer, path, batch_size=4, **options))
        for options in ({}, {"group_by_length": False}, {"shuffle_seed": 1})
    )

    def spread(batches):
        return sum(max(map(len, batch)) - min(map(len, batch)) for batch in batches)

    assert len({str(grouped), str(loose), str(other)}) == 3
    assert len({str(sorted(sum(batches, []))) for batches in (grouped, loose, other)}) == 1
    assert spread(grouped) < spread(loose) / 3


@pytest.mark.parametrize("group", [True, False])
def test_every_epoch_covers_every_example_once_in_another_order(group):
    sampler = LengthGroupedBatches([n * 7 % 5 for n in range(23)], 4, seed=0, rank=0, world_size=1, group=group)
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
        assert sorted(index for batch in epochs[-1] for index in batch) == list(range(23))
        assert len(epochs[-1]) == len(sampler) == 6
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


@pytest.mark.parametrize(("count", "steps"), [(23, 3), (20, 2), (3, 1)])
def test_two_ranks_take_disjoint_batches_and_equally_many(count, steps):
    shares = [
        list(LengthGroupedBatches([1] * count, 4, seed=0, rank=rank, world_size=2, group=True)) for rank in (0, 1)
    ]
    assert [len(share) for share in shares] == [steps, steps]
    if count > 4:  # a single batch is taken by both: every rank must step
        assert not set(sum(shares[0], [])) & set(sum(shares[1], []))


def test_every_rank_has_a_validation_batch(tokenizer, tmp_path):
    path = write_lines(tmp_path / "one.jsonl", chats_of(["bread"]))
    ranks = [data_of(tokenizer, path, validation=str(path), rank=rank, world_size=2) for rank in (0, 1)]
    batches = [list(data.val_dataloader()) for data in ranks]
    assert all(batches)
    assert sum(int((batch["labels"] != -100).any(dim=1).sum()) for share in batches for batch in share) == 1
