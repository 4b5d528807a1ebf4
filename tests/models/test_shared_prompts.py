"""Packs that read a prompt once: what they give, and when they are refused."""

from dataclasses import replace

import pytest
import torch
from test_packing import SEGMENTS_MEET, WITHOUT_CHUNKS, WITHOUT_PACKS, build
from tiny_models import VOCABULARY, ragged_examples, tiny_llama

from gradsteer.data.chat import EncodedExample
from gradsteer.models.batches import BatchLayout
from gradsteer.models.memory import saved_bytes
from gradsteer.models.packing import Pack, attending, pack_losses
from gradsteer.models.packing_check import why_not_packs, why_not_shared
from gradsteer.models.segment_attention import NAME
from gradsteer.models.shared_prompts import pack_shared, plan_shared, prompt_of


def replies_to(prompt, lengths, *, seed=0) -> list[EncodedExample]:
    generator = torch.Generator().manual_seed(seed)
    replies = [torch.randint(3, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
    return [EncodedExample([*prompt, *reply], [-100] * len(prompt) + reply) for reply in replies]


def test_what_a_pack_holds():
    examples = [
        EncodedExample([7, 8, 1, 2, 3], [-100, -100, 1, 2, -100]),  # nothing is behind its last label
        EncodedExample([7, 8, 4], [-100, -100, 4]),
        EncodedExample([7, 8, 5, 6, 9], [-100, -100, 5, -100, 9]),  # a gap
        EncodedExample([7, 1, 2], [7, 1, 2]),  # a prompt that begins another; nothing predicts a first token
        EncodedExample([7, 8, 3], [-100] * 3),  # no label: all of it is a prompt
    ]
    assert [prompt_of(example) for example in examples] == [(7, 8)] * 3 + [(7,), (7, 8, 3)]
    pack = pack_shared(examples)
    assert pack.input_ids.tolist() == [[7, 8, 1, 5, 6, 7, 1, 7, 8, 3]]
    assert pack.position_ids.tolist() == [[0, 1, 2, 2, 3, 0, 1, 0, 1, 2]]
    assert pack.lengths == (3, 0, 2, 2, 3)
    assert pack.shared == (0, 2, 2, 0, 0)
    assert pack.targets.tolist() == [1, 2, 4, 5, 9, 1, 2]
    assert pack.predictors.tolist() == [1, 2, 1, 1, 4, 5, 6]
    assert pack.owners.tolist() == [0, 0, 1, 2, 2, 3, 3]
    seen = [row.nonzero()[:, 0].tolist() for row in pack.seen]
    assert seen == [[0, 1, 2], [0, 1], [0, 1, 3, 4], [5, 6], [7, 8, 9]]


@pytest.mark.parametrize(("start", "stop"), [(0, 2), (0, 7), (1, 3), (1, 4), (2, 7), (4, 5), (5, 7)])
def test_a_part_of_a_pack_is_the_pack_of_that_part(start, stop):
    """A part that begins within a group reads the prompt itself."""
    examples = [*replies_to([5, 6, 7], [2, 1, 4, 3]), *replies_to([5, 6], [3, 1], seed=1), *replies_to([8], [2])]
    examples = [replace(each, weights=[float(place) for place in each.input_ids]) for each in examples]
    whole, own = pack_shared(examples), pack_shared(examples[start:stop])
    part = whole.part(start, stop)
    for name in ("input_ids", "position_ids", "targets", "predictors", "owners", "weights"):
        assert torch.equal(getattr(part, name), getattr(own, name)), name
    assert (part.lengths, part.shared) == (own.lengths, own.shared)
    model = tiny_llama()
    with attending(model, part):
        assert torch.isfinite(pack_losses(model, part)[0]).all()


def test_one_reply_a_prompt_is_a_plain_pack_without_what_follows_its_last_predictor():
    examples = ragged_examples(5)
    shared = pack_shared(examples)
    plain = Pack.of([EncodedExample(each.input_ids[:-1], each.labels[:-1]) for each in examples])
    assert not any(shared.shared)
    assert torch.equal(shared.input_ids, plain.input_ids)
    assert torch.equal(shared.position_ids, plain.position_ids)
    assert shared.lengths == plain.lengths


@pytest.mark.parametrize("budget", [1, 9, 14, 30, 1000])
def test_plans_keep_groups_whole_and_split_those_above_the_budget(budget):
    prompts = [[5] * 6, [5] * 3, [9] * 4]
    examples = [each for seed, p in enumerate(prompts) for each in replies_to(p, [2, 3, 5, 1], seed=seed)]
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0)).tolist()
    examples = [examples[index] for index in order]
    plan = plan_shared(examples, budget)
    assert plan == plan_shared(examples, budget)
    assert sorted(index for batch in plan for index in batch) == list(range(len(examples)))
    for batch in plan:
        chosen = [examples[index] for index in batch]
        pack = pack_shared(chosen)
        size = sum(len(prompt) for prompt in {prompt_of(e) for e in chosen}) + sum(e.num_target_tokens for e in chosen)
        assert size <= budget or len(batch) == 1
        assert pack.shared.count(0) == len({prompt_of(example) for example in chosen})  # neighbours
    read = [prompt for batch in plan for prompt in {prompt_of(examples[index]) for index in batch}]
    once = budget >= 17  # the largest group: 6 tokens and 11 of replies
    assert (len(read) == len(prompts)) == once
    with pytest.raises(ValueError, match="token_budget is 0; accepted: at least 1"):
        plan_shared(examples, 0)


@pytest.mark.parametrize("budget", [1, 14, 30, 1000])
def test_plans_for_the_backward_pass_hold_what_plain_packs_may(budget):
    """Every reply keeps keys and values of its prompt for the backward pass, which costs less than the prompt did."""
    prompts = [[5] * 9, [5] * 3, [9] * 4]
    examples = [each for seed, p in enumerate(prompts) for each in replies_to(p, [2, 3, 5, 1], seed=seed)]
    plan = plan_shared(examples, budget, backward=True)
    assert sorted(index for batch in plan for index in batch) == list(range(len(examples)))
    model = tiny_llama()
    for batch in plan:
        chosen = [examples[index] for index in batch]
        assert sum(len(each.input_ids) for each in chosen) <= budget or len(batch) == 1
        kept = []
        for pack in (pack_shared(chosen), Pack.of(chosen)):
            with attending(model, pack):
                kept.append(saved_bytes(lambda pack=pack: pack_losses(model, pack)))
        assert kept[0] <= kept[1]


MODELS = [
    "Llama", "Qwen2 (biases)", "Mistral (sliding window)", "Gemma 2 (soft-capping, tied, sliding window)",
    "GPT-2 (Conv1D, learned positions)", "Mixtral (mixture of experts)",
]  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_losses_are_those_of_plain_packs(name, dtype, monkeypatch):
    """Windows of 4 cut prompts and replies; prompts begin others; a reply of one token runs none of its own."""
    model = build(name).to(dtype)
    if name.startswith("Mixtral"):
        model.set_experts_implementation("eager")  # the others multiply no float64 matrices
    prompt = [5, 9, 11, 4, 8, 30]
    examples = [
        *replies_to(prompt, [6, 1, 9, 9, 2]), *replies_to(prompt[:3], [5, 4], seed=1),
        *replies_to([7], [1, 3, 8], seed=2), *ragged_examples(2),
    ]  # fmt: skip
    plain, shared = Pack.of(examples), pack_shared(examples)
    assert shared.input_ids.numel() == plain.input_ids.numel() - 4 * 6 - 3 - 2 - len(examples)
    softmax = torch.Tensor.softmax  # a soft-capped one is taken in float32, as in transformers, whatever the dtype
    monkeypatch.setattr(torch.Tensor, "softmax", lambda scores, dim, dtype=None: softmax(scores, dim))
    found = []
    for pack in (plain, shared):
        with attending(model, pack), torch.no_grad():
            found.append([pack_losses(model, pack, head_chunk=chunk) for chunk in (None, 7)])
    bound = 1e-10 if dtype == torch.float64 else 1e-5
    for expected, other in zip(*found, strict=True):
        torch.testing.assert_close(other, expected, rtol=bound, atol=bound)
    assert model.config._attn_implementation != NAME


@pytest.mark.parametrize("name", ["Llama", "Gemma 2 (soft-capping, tied, sliding window)", "Granite (scaled logits)"])
def test_what_takes_packs_takes_shared_prompts(name):
    model = build(name)
    layout = BatchLayout.of(model, ragged_examples(2), shared_prompts=True)
    assert layout.shared_prompts
    assert (layout.head_chunk is None) == (name in WITHOUT_CHUNKS)
    assert not BatchLayout.of(model, ragged_examples(2)).shared_prompts


@pytest.mark.parametrize("name", ["LFM2 (short convolutions)", "Llama 4 (attention in chunks)"])
def test_the_check_sees_what_packs_refuse(name):
    """As it does for packs; a layout asks for them first."""
    assert WITHOUT_PACKS[name] in why_not_shared(build(name), ragged_examples(2))


@pytest.mark.parametrize("count", [2, 20])
def test_a_state_that_begins_anew_with_a_position_of_0_takes_packs_but_shares_no_prompt(count):
    """It goes on from one reply to the next, as the later ones have no position 0."""
    model = tiny_llama(dtype=torch.float32)
    examples = [EncodedExample([3, *range(4, 3 + count)], [-100, *range(4, 3 + count)])]
    positions = []
    model.model.register_forward_pre_hook(
        lambda _m, _a, said: positions.append(said.get("position_ids")), with_kwargs=True
    )

    def state(_layer, _inputs, hidden):
        starts = torch.zeros(hidden.shape[1]) if positions[-1] is None else positions[-1][0]
        sequence = (starts == 0).cumsum(0)
        if positions[-1] is None:
            sequence = torch.zeros_like(sequence)
        same = (sequence[:, None] == sequence).tril()
        return hidden + 1e-3 * same.to(hidden.dtype) @ hidden

    model.model.layers[0].register_forward_hook(state)
    assert why_not_packs(model, examples) is None
    assert why_not_shared(model, examples) == SEGMENTS_MEET
    layout = BatchLayout.of(model, examples, shared_prompts=True)
    assert layout.packs
    assert not layout.shared_prompts
    assert layout.warning is None


def test_positions_that_count_along_the_row_share_no_prompt(monkeypatch):
    """Where only the losses tell."""
    model, other = (tiny_llama(dtype=torch.float32, initializer_range=0.5) for _ in range(2))
    assert why_not_shared(model, ragged_examples(1)) is None

    def moved(examples, device):
        pack = pack_shared(examples, device)
        return replace(pack, position_ids=torch.arange(pack.input_ids.numel())[None])

    monkeypatch.setattr("gradsteer.models.packing_check.pack_shared", moved)
    assert why_not_shared(other, ragged_examples(1)).startswith("packs differ from padded batches by ")
