import pytest
import torch
import transformers as t
from test_pile_gradient import autograd_oracle, relative_error
from tiny_models import VOCABULARY, ragged_examples, tiny_llama

from gradsteer.attribution.pile_gradient import PileGradient
from gradsteer.data.chat import EncodedExample, collate
from gradsteer.models.batches import BatchLayout, labelled_logits, lengths_of, part_of, running, token_losses
from gradsteer.models.packing import Pack, attending, pack_losses, plan_packs
from gradsteer.models.packing_check import why_not_packs, why_not_padded
from gradsteer.models.segment_attention import NAME, segment_attention

PLAIN = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "intermediate_size": 24,
}  # fmt: skip
GROUPED = {**PLAIN, "num_key_value_heads": 1, "head_dim": 8}
WINDOW = {**GROUPED, "sliding_window": 4}
NO_HEAD_DIM = {key: value for key, value in GROUPED.items() if key != "head_dim"}
RECURRENT = {**NO_HEAD_DIM, "layer_types": ["linear_attention", "full_attention"]}
MAMBA = {"mamba_d_state": 4, "use_mamba_kernels": False}
GPT2 = {
    "vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
ARCHITECTURES = {
    "Llama": lambda: t.LlamaConfig(**GROUPED),
    "Llama, tied": lambda: t.LlamaConfig(**GROUPED, tie_word_embeddings=True),
    "Qwen2 (biases)": lambda: t.Qwen2Config(**NO_HEAD_DIM),
    "Qwen3": lambda: t.Qwen3Config(**GROUPED),
    "Mistral (sliding window)": lambda: t.MistralConfig(**WINDOW),
    "Gemma 2 (soft-capping, tied, sliding window)": lambda: t.Gemma2Config(**WINDOW),
    "Gemma 3 (tied, sliding window)": lambda: t.Gemma3TextConfig(**WINDOW),
    "GPT-2 (Conv1D, learned positions)": lambda: t.GPT2Config(**GPT2),
    "GPT-NeoX": lambda: t.GPTNeoXConfig(**PLAIN),
    "Phi": lambda: t.PhiConfig(**PLAIN),
    "OLMo 2": lambda: t.Olmo2Config(**NO_HEAD_DIM),
    "Mixtral (mixture of experts)": lambda: t.MixtralConfig(**NO_HEAD_DIM, num_local_experts=4),
    "Granite (scaled logits)": lambda: t.GraniteConfig(**NO_HEAD_DIM, logits_scaling=3.0),
    "GPT-OSS (attention sinks)": lambda: t.GptOssConfig(
        **WINDOW, num_local_experts=4, rope_parameters={"rope_type": "default", "rope_theta": 1e4}
    ),
    "Mamba (a state, no attention)": lambda: t.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, state_size=4
    ),
    "LFM2 (short convolutions)": lambda: t.Lfm2Config(**NO_HEAD_DIM, layer_types=["conv", "full_attention"]),
    "Qwen3-Next (gated delta net)": lambda: t.Qwen3NextConfig(
        **RECURRENT,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=8,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        head_dim=8,
    ),
    "Jamba (a state beside attention)": lambda: t.JambaConfig(
        **NO_HEAD_DIM, **MAMBA, attn_layer_period=2, attn_layer_offset=1, num_experts=2, mamba_dt_rank=4
    ),
    "Falcon-H1 (a state within attention layers)": lambda: t.FalconH1Config(
        **GROUPED, mamba_d_ssm=16, mamba_n_heads=2, mamba_d_head=8, mamba_d_state=4, mamba_chunk_size=8
    ),
    "Llama 4 (attention in chunks)": lambda: t.Llama4TextConfig(
        **GROUPED, num_local_experts=2, attention_chunk_size=128, intermediate_size_mlp=24
    ),
    "Bloom (ALiBi, no attention interface)": lambda: t.BloomConfig(
        vocab_size=VOCABULARY, hidden_size=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2
    ),
}
SEGMENTS_MEET = "the tokens of one segment change the loss of another"
WITHOUT_PACKS = {
    "GPT-OSS (attention sinks)": "attention with s_aux",
    "Mamba (a state, no attention)": SEGMENTS_MEET,
    "LFM2 (short convolutions)": SEGMENTS_MEET,
    "Qwen3-Next (gated delta net)": SEGMENTS_MEET,
    "Jamba (a state beside attention)": SEGMENTS_MEET,
    "Falcon-H1 (a state within attention layers)": SEGMENTS_MEET,
    "Llama 4 (attention in chunks)": "not told of its window of 128 tokens",  # longer than the check's examples
    "Bloom (ALiBi, no attention interface)": "does not take another attention function",
}
WITHOUT_CHUNKS = {"Granite (scaled logits)"}


def build(name):
    torch.manual_seed(0)
    return t.AutoModelForCausalLM.from_config(ARCHITECTURES[name](), dtype=torch.float32).eval()


def one_by_one(model, examples):
    pile = PileGradient(model)
    for example in examples:
        pile.add(collate([example], 0))
    return pile.average()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_and_every_parameter(name, record_property):
    """Packs, chunked heads and padded batches in float32 equal plain autograd in float64, or the check refuses them."""
    model, examples = build(name), ragged_examples(6)
    plain = build(name).double()
    if any(hasattr(plain.config, key) for key in ("num_local_experts", "num_experts")):
        plain.set_experts_implementation("eager")  # the others multiply no float64 matrices
    exact = autograd_oracle(plain, examples, "example")
    assert set(exact) == {parameter for parameter, _ in model.named_parameters()}
    touched = {parameter for parameter, gradient in exact.items() if gradient.abs().sum() > 0}
    assert len(touched) >= len(exact) - 2, sorted(set(exact) - touched)
    padded = PileGradient(model)
    padded.add(collate(examples, 0))
    errors = [relative_error(padded.average(), exact)]
    attention = model.config._attn_implementation
    for chunk in (None, 5):
        reason = why_not_packs(model, examples, head_chunk=1 if chunk else None)
        expected = name not in WITHOUT_PACKS and not (chunk and name in WITHOUT_CHUNKS)
        assert (reason is None) == expected, reason
        assert reason is None or chunk or WITHOUT_PACKS[name] in reason
        if reason is None:
            packed = PileGradient(model, head_chunk=chunk)
            packed.add(Pack.of(examples))
            errors.append(relative_error(packed.average(), exact))
            difference = relative_error(packed.average(), padded.average())
            assert difference < 1e-6
    assert max(errors) < 2e-6
    assert why_not_padded(model, examples) is None
    assert model.config._attn_implementation == attention  # put back
    shown = [f"{error:.0e}" for error in errors]
    record_property("architecture", [name, str(len(exact)), *shown, *["refused"] * (3 - len(shown))])  # for the summary


@pytest.mark.parametrize("budget", [20, 45, 1000])
def test_neither_budget_nor_order_changes_a_float64_gradient(budget):
    model, examples = tiny_llama(), ragged_examples(11)
    exact = one_by_one(model, examples)
    for order in (examples, examples[::-1]):
        pile = PileGradient(model)
        for pack in plan_packs([len(example.input_ids) for example in order], budget):
            pile.add(Pack.of([order[index] for index in pack]))
        assert relative_error(pile.average(), exact) < 2e-7  # transformers' RMSNorm computes in float32
        assert pile.totals.num_examples == 11


def test_packs_fill_the_budget_and_hold_every_sequence_once():
    lengths = [7, 3, 9, 1, 4, 6, 2, 20]
    packs = plan_packs(lengths, 10)
    assert sorted(index for pack in packs for index in pack) == list(range(8))
    sizes = [sum(lengths[index] for index in pack) for pack in packs]
    assert [7] in packs  # longer than the budget: a pack of its own
    assert all(size <= 10 for pack, size in zip(packs, sizes, strict=True) if len(pack) > 1)
    assert sizes == [20, 10, 10, 10, 2]
    assert packs == plan_packs(lengths, 10)
    assert plan_packs([], 10) == []
    with pytest.raises(ValueError, match="token_budget is 0; accepted: at least 1"):
        plan_packs([1], 0)


def test_packs_are_those_of_a_plain_first_fit_decreasing():
    generator = torch.Generator().manual_seed(0)
    for count in (1, 2, 3, 17, 64, 65):
        lengths = torch.randint(1, 30, (count,), generator=generator).tolist()
        packs, room = [], []
        for index in sorted(range(count), key=lambda index: (-lengths[index], index)):
            fitting = next((number for number, free in enumerate(room) if free >= lengths[index]), None)
            if fitting is None:
                packs.append([index])
                room.append(24 - lengths[index])
            else:
                packs[fitting].append(index)
                room[fitting] -= lengths[index]
        fullest = sorted(range(len(packs)), key=lambda number: (room[number], number))
        assert plan_packs(lengths, 24) == [packs[number] for number in fullest]


def test_a_model_is_checked_once(llama, monkeypatch):
    """Whatever the examples; a check that saw no loss says nothing and is made again."""
    runs = []
    llama.register_forward_hook(lambda *_: runs.append(None))
    examples = ragged_examples(6)
    unlabelled = [EncodedExample([3, 4], [-100, -100])] * 2
    assert BatchLayout.of(llama, unlabelled).packs
    assert len(runs) == 3  # padded, packed, and packed in another order
    runs.clear()
    for count in (6, 1, 3):
        layout = BatchLayout.of(llama, examples[:count])
        assert layout.packs
        assert layout.head_chunk
    assert len(runs) == 3
    monkeypatch.setattr("gradsteer.models.packing_check.pack_losses", lambda *a, **k: 2 * pack_losses(*a, **k))
    assert BatchLayout.of(llama, examples).packs
    other = BatchLayout.of(tiny_llama(), examples)  # another model, though of the same weights
    assert "packs differ from padded batches by 1.0e+00" in other.reason
    assert not other.packs


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["Llama", "Mixtral (mixture of experts)", "LFM2 (short convolutions)"])
def test_half_precision_hides_no_state(name, dtype):
    """What passes from segment to segment may be less than the dtype's rounding."""
    reason = why_not_packs(build(name).to(dtype), ragged_examples(3))
    assert reason == WITHOUT_PACKS.get(name)


@pytest.mark.parametrize(
    "passed_on",
    [
        lambda hidden: hidden + 1e-12 * hidden.cumsum(dim=1),  # a state, below the rounding of any loss
        lambda hidden: hidden + 1e-12 * hidden.flip(1).cumsum(dim=1).flip(1),  # from the later to the earlier
        lambda hidden: hidden + (hidden.detach().cumsum(dim=1) > 0),  # a choice, which has no gradient
    ],
)
def test_nothing_may_pass_from_segment_to_segment(passed_on):
    model = tiny_llama(dtype=torch.float32)
    assert why_not_packs(model, ragged_examples(1)) is None
    other = tiny_llama(dtype=torch.float32)
    other.model.layers[0].register_forward_hook(lambda _layer, _inputs, output: passed_on(output))
    assert why_not_packs(other, ragged_examples(1)) == SEGMENTS_MEET


def test_a_model_that_padding_changes_runs_one_by_one():
    """Gemma 3n's gradient of what is padded is NaN; alone it is exact."""
    torch.manual_seed(0)
    config = t.Gemma3nTextConfig(
        **WINDOW, vocab_size_per_layer_input=VOCABULARY, laurel_rank=4, hidden_size_per_layer_input=4,
        num_kv_shared_layers=0, layer_types=["sliding_attention", "full_attention"],
        activation_sparsity_pattern=[0.0, 0.0],
    )  # fmt: skip
    model, examples = t.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval(), ragged_examples(4)
    assert BatchLayout.of(model, examples).warning is None
    layout = BatchLayout.of(model, examples, packing=False)
    assert layout.one_by_one
    assert layout.warning == (
        "sequences run one by one: padding, or the other rows of a batch, change the loss of an example"
    )
    assert sorted(layout.plan([3, 9, 4, 5], 100)) == [[0], [1], [2], [3]]
    pile = PileGradient(model)
    pile.most_tokens = 0  # as the attribution module has it
    pile.add(layout.make(examples))
    assert relative_error(pile.average(), one_by_one(model, examples)) == 0


@pytest.mark.parametrize("packing", [True, False])
def test_a_batch_of_no_examples_scores_nothing(llama, packing):
    layout = BatchLayout.of(llama, ragged_examples(2), packing=packing)
    assert layout.packs == packing
    batch = layout.make([])
    with running(batch, llama):
        losses, owners = token_losses(llama, batch, head_chunk=layout.head_chunk)
    assert len(losses) == len(owners) == 0


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_head_runs_at_labelled_positions_alone(name):
    model, examples = build(name), ragged_examples(5)
    batch = collate(examples, 0)
    following = batch["labels"][:, 1:]
    counted = following != -100
    rows = []
    model.get_output_embeddings().register_forward_hook(lambda _head, inputs, _: rows.append(inputs[0][0].shape[0]))
    logits, targets, owners = labelled_logits(model, batch)
    assert rows == [int(counted.sum())]
    whole = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1][counted]
    torch.testing.assert_close(logits, whole, rtol=1e-5, atol=1e-6)
    assert targets.tolist() == following[counted].tolist()
    assert owners.tolist() == [row for row, count in enumerate(counted.sum(1).tolist()) for _ in range(count)]


def test_a_model_whose_head_cannot_be_cut_runs_it_whole(llama, monkeypatch):
    batch = collate(ragged_examples(4), 0)
    expected = labelled_logits(llama, batch)[0]
    for head in (None, torch.nn.Linear(16, VOCABULARY)):  # no module, and one that the forward pass does not call
        monkeypatch.setattr(llama, "get_output_embeddings", lambda head=head: head)
        torch.testing.assert_close(labelled_logits(llama, batch)[0], expected, rtol=1e-12, atol=1e-12)


def test_a_segment_sees_its_own_tokens_only(llama):
    first, second = ragged_examples(2)
    other = EncodedExample([(token + 7) % VOCABULARY for token in first.input_ids], first.labels)
    packs = [Pack.of([first, second]), Pack.of([other, second])]
    losses = []
    for pack in packs:
        with attending(llama, pack), torch.no_grad():
            losses.append(pack_losses(llama, pack))
    together, changed = losses
    torch.testing.assert_close(together[1], changed[1], rtol=0, atol=0)
    assert together[0] != changed[0]


def test_packs_outside_of_segment_attention_are_refused(llama):
    with pytest.raises(AssertionError, match="the segments would see each other"):
        pack_losses(llama, Pack.of(ragged_examples(2)))


def test_a_pack_without_a_target_counts_for_nothing(llama):
    pile = PileGradient(llama)
    pile.add(Pack.of([EncodedExample([0, 0], [-100, -100])]))
    assert pile.totals.num_examples == 0
    assert all(buffer.abs().sum() == 0 for buffer in pile.sums.buffers.values())


@pytest.mark.parametrize("packing", [True, False])
def test_a_part_of_a_batch_is_the_batch_of_its_examples(llama, packing):
    examples = ragged_examples(4)
    layout = BatchLayout.of(llama, examples, packing=packing)
    whole = layout.make(examples)
    assert lengths_of(whole) == [len(example.input_ids) for example in examples]
    for start, stop in [(0, 1), (1, 2), (1, 3), (2, 4), (0, 4)]:
        part, expected = part_of(whole, start, stop), layout.make(examples[start:stop])
        part, expected = (vars(each) if packing else each for each in (part, expected))
        assert part.keys() == expected.keys()
        for field, value in expected.items():
            same = torch.equal(part[field], value) if isinstance(value, torch.Tensor) else part[field] == value
            assert same, field


def test_a_bad_example_in_a_pack_is_named():
    model = tiny_llama(tied=False)
    with torch.no_grad():
        model.model.embed_tokens.weight[5] = float("nan")
    examples = [EncodedExample([7, token, 8], [-100, token, 8]) for token in (6, 5, 9)]
    with pytest.raises(ValueError, match=r"the loss of example b.jsonl:2 is nan"):
        PileGradient(model).add(Pack.of(examples), sources=["a.jsonl:1", "b.jsonl:2", "c.jsonl:3"])


def test_the_chunked_head_holds_fewer_logits_at_once(llama, monkeypatch):
    seen = []
    head = llama.lm_head
    head.register_forward_hook(lambda _module, _inputs, output: seen.append(output.shape[-2]))
    pack = Pack.of(ragged_examples(8))
    with attending(llama, pack):
        pack_losses(llama, pack, head_chunk=6).sum().backward()
    assert max(seen) == 6
    assert len(seen) > 4


def test_the_attention_is_put_back_after_an_error(llama):
    before = llama.config._attn_implementation
    inside = []

    def fail():
        with segment_attention(llama):
            inside.append(llama.config._attn_implementation)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert inside == [NAME]
    assert llama.config._attn_implementation == before
