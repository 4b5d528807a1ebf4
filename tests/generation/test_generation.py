"""The sampler, against transformers' own generate and against the distribution that it should draw from."""

import numpy as np
import pytest
import torch
from conftest import rest_slow
from sampler import CONFIGS, PAD, STOPS, VOCABULARY, build, in_batches, ragged_draws, sample
from scipy.stats import chisquare
from transformers import AutoModelForCausalLM, MambaConfig

from gradsteer.data.batching import plan_batches
from gradsteer.generation.decoding import Draw, NonFiniteLogitsError, SamplingStats, longest_prompt

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def llama():
    return build("llama")


@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_equals_generate_row_by_row(name):
    model = build(name)
    draws = ragged_draws(samples=1)
    found = sample(model, draws, temperature=0)
    for draw, response in zip(draws, found, strict=True):
        prompt = torch.tensor([draw.prompt_token_ids])
        expected = model.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=12,
            eos_token_id=STOPS, pad_token_id=PAD,
        )[0, prompt.shape[1] :].tolist()  # fmt: skip
        assert response.token_ids == expected
    assert len({tuple(response.token_ids) for response in found}) > 1


@pytest.mark.parametrize("name", rest_slow(CONFIGS, 3))
def test_a_response_does_not_depend_on_its_batch(name):
    model = build(name)
    draws = ragged_draws()
    options = {"temperature": 2.0, "top_p": 0.95}
    alone = in_batches(model, draws, 1, **options)
    assert {response.finish_reason for response in alone} == {
        "stop",
        "length",
    }  # some rows are dropped, some never
    assert in_batches(model, draws, 7, **options) == alone
    assert sample(model, draws, **options) == alone
    order = np.random.default_rng(1).permutation(len(draws))
    shuffled = sample(model, [draws[i] for i in order], **options)
    assert [shuffled[place] for place in np.argsort(order)] == alone


@pytest.mark.slow
def test_in_float32_hardly_any_response_depends_on_its_batch():
    model = build("llama", dtype=torch.float32)
    draws = ragged_draws(num_prompts=20, samples=5)
    pairs = zip(in_batches(model, draws, 1), in_batches(model, draws, 64), strict=True)
    assert sum(alone != together for alone, together in pairs) <= 0.01 * len(draws)


def test_what_only_changes_the_speed(llama):
    draws = ragged_draws()
    expected = sample(llama, draws)
    for options in ({"share_prompts": False}, {"min_finished_share_to_drop": 2.0}, {"min_finished_share_to_drop": 0}):
        assert sample(llama, draws, **options) == expected


def test_the_counts_are_those_of_what_the_model_was_fed(llama):
    fed = []
    handle = llama.register_forward_pre_hook(
        lambda _, args, inputs: fed.append((inputs["input_ids"], inputs["attention_mask"])), with_kwargs=True
    )
    draws = [Draw([5] * length, index, 0) for length in (3, 8) for index in range(4)]
    stats = SamplingStats()
    found = sample(llama, draws, stats=stats)
    handle.remove()
    assert (stats.prompt_tokens, stats.prompt_positions) == (int(fed[0][1].sum()), fed[0][0].numel()) == (11, 16)
    assert stats.sampled_tokens == sum(len(each.token_ids) for each in found)
    assert stats.decode_positions == sum(ids.numel() for ids, _ in fed[1:])
    # every token but a response's last is fed back
    assert stats.useful_positions == stats.sampled_tokens - len(draws)
    stats.seconds = 2.0
    told = stats.to_dict()
    assert told["prefill_padding"] == 5 / 16
    assert told["decode_waste"] == 1 - stats.useful_positions / stats.decode_positions > 0
    assert told["tokens_per_second"] == stats.sampled_tokens / 2
    once = (stats.sampled_tokens, stats.prompt_tokens)
    sample(llama, draws, stats=stats)
    assert (stats.sampled_tokens, stats.prompt_tokens) == (2 * once[0], 2 * once[1])
    assert SamplingStats().to_dict()["tokens_per_second"] == 0


def test_the_padding_token_is_never_read(llama):
    draws = ragged_draws()
    assert sample(llama, draws, pad=0) == sample(llama, draws, pad=17)


@pytest.mark.parametrize(
    ("temperature", "top_p"), rest_slow([(1.0, 1.0), (0.7, 0.5), (0.6, 1.0), (1.7, 1.0), (1.0, 0.8)], 2)
)
def test_frequencies_match_the_distribution(llama, temperature, top_p):
    prompt = [5, 6, 7]
    with torch.no_grad():
        logits = llama(torch.tensor([prompt])).logits[0, -1]
    expected = (logits / temperature).softmax(-1).numpy()
    # the smallest set whose mass reaches top_p, from the definition
    ranked = np.argsort(-expected)
    nucleus = ranked[: int(np.searchsorted(np.cumsum(expected[ranked]), top_p)) + 1]
    if top_p < 1:
        expected = np.where(np.isin(np.arange(VOCABULARY), nucleus), expected, 0) / expected[nucleus].sum()

    num = 8000
    found = sample(llama, [Draw(prompt, index, 0) for index in range(num)], stops=[], max_new_tokens=1,
                   temperature=temperature, top_p=top_p)  # fmt: skip
    counts = np.bincount([response.token_ids[0] for response in found], minlength=VOCABULARY)
    assert counts[expected == 0].sum() == 0
    if top_p < 1:
        assert set(np.flatnonzero(counts)) == set(nucleus)
    likely = expected * num >= 5  # the rest together, as the test's approximation asks
    observed = [*counts[likely], counts[~likely].sum()]
    wanted = [*expected[likely] * num, expected[~likely].sum() * num]
    kept = [place for place, value in enumerate(wanted) if value > 0]
    assert chisquare([observed[i] for i in kept], [wanted[i] for i in kept]).pvalue > 0.01


def test_top_p_keeps_the_top_token_alone_when_it_suffices(llama):
    draws = ragged_draws()
    assert sample(llama, draws, top_p=1e-6) == sample(llama, draws, temperature=0)


@pytest.mark.parametrize(("number", "end"), [(0.0, min), (1 - 2.0**-53, max)])
def test_the_ends_of_the_unit_interval_stay_inside_the_nucleus(llama, monkeypatch, number, end):
    monkeypatch.setattr("gradsteer.generation.decoding.uniforms", lambda draw, num: np.full(num, number))
    for first in range(4, VOCABULARY):
        with torch.no_grad():
            ranked = llama(torch.tensor([[first, 5]])).logits[0, -1].softmax(-1).sort(descending=True)
        nucleus = ranked.indices[: int((ranked.values.cumsum(0) < 0.3).sum()) + 1].tolist()
        (found,) = sample(llama, [Draw([first, 5], 0, 0)], max_new_tokens=1, top_p=0.3)
        assert found.token_ids == [end(nucleus)]


def test_a_tiny_temperature_is_greedy(llama):
    draws = ragged_draws()
    assert sample(llama, draws, temperature=1e-6) == sample(llama, draws, temperature=0)


def test_samples_and_seeds_differ_and_repeat(llama):
    base = sample(llama, [Draw([5, 6, 7], 0, 0)], stops=[])
    assert sample(llama, [Draw([5, 6, 7], 0, 0)], stops=[]) == base
    assert sample(llama, [Draw([5, 6, 7], 1, 0)], stops=[]) != base
    assert sample(llama, [Draw([5, 6, 7], 0, 1)], stops=[]) != base


@pytest.mark.parametrize("max_new_tokens", [1, 9])
def test_length_and_stop_tokens(llama, max_new_tokens):
    draws = ragged_draws(num_prompts=20)
    found = sample(llama, draws, max_new_tokens=max_new_tokens)
    assert {response.finish_reason for response in found} == {"stop", "length"}
    for response in found:
        assert not set(response.token_ids[:-1]) & set(STOPS)
        if response.finish_reason == "stop":
            assert response.token_ids[-1] in STOPS
            assert len(response.token_ids) <= max_new_tokens
        else:
            assert response.token_ids[-1] not in STOPS
            assert len(response.token_ids) == max_new_tokens
    unstopped = sample(llama, draws, stops=[], max_new_tokens=max_new_tokens)
    assert {(len(each.token_ids), each.finish_reason) for each in unstopped} == {(max_new_tokens, "length")}
    # stopping cuts the same response
    for stopped, whole in zip(found, unstopped, strict=True):
        assert whole.token_ids[: len(stopped.token_ids)] == stopped.token_ids


def test_the_cache_is_used_whatever_the_config_says_and_finished_rows_are_dropped():
    model = build("llama", use_cache=False)
    model.generation_config.use_cache = False
    draws = ragged_draws(num_prompts=4, samples=6)
    shapes, used = [], []

    def note(_module, _args, inputs):
        shapes.append(tuple(inputs["input_ids"].shape))
        used.append((inputs["use_cache"], inputs["past_key_values"].get_seq_length()))

    model.register_forward_pre_hook(note, with_kwargs=True)
    found = sample(model, draws)
    longest = max(len(draw.prompt_token_ids) for draw in draws)
    assert shapes[0] == (4, longest)  # each prompt once
    assert {width for _, width in shapes[1:]} == {1}
    assert used == [(True, 0)] + [(True, longest + step) for step in range(len(shapes) - 1)]
    alive = [sum(len(each.token_ids) > step for each in found) for step in range(1, len(shapes))]
    for (rows, _), needed in zip(shapes[1:], alive, strict=True):
        assert needed <= rows < needed / 0.75
    assert shapes[-1][0] < len(draws)


class Forgetful(torch.nn.Module):
    """Takes a cache as the model inside it does, and keeps nothing, or the last tokens alone, in it."""

    def __init__(self, model, kept):
        super().__init__()
        self.model, self.kept = model, kept
        self.config, self.device = model.config, model.device

    def forward(self, input_ids, past_key_values, use_cache, **inputs):
        found = self.model(input_ids=input_ids)
        if self.kept:
            states = torch.zeros(len(input_ids), 1, self.kept, 8)
            past_key_values.update(states, states, 0)
        return found


@pytest.mark.parametrize(
    ("name", "kept"), [("llama", 0), ("llama", 2), ("mistral-window", 0), ("mistral-window", 2), ("lfm2", 0)]
)
def test_a_model_that_does_not_fill_its_cache_is_refused(name, kept):
    message = f"Forgetful did not fill the key-value cache, which holds {kept} of 3 tokens"
    with pytest.raises(ValueError, match=message):
        sample(Forgetful(build(name), kept), [Draw([5, 6, 7], 0, 0)])


def test_a_model_that_takes_no_cache_or_another_kind_is_refused(monkeypatch):
    config = MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, state_size=4)
    with pytest.raises(ValueError, match="MambaForCausalLM takes no past_key_values"):
        sample(AutoModelForCausalLM.from_config(config), [Draw([5, 6, 7], 0, 0)])
    model = Forgetful(build("llama"), 0)
    monkeypatch.setattr(model.model, "forward", lambda **inputs: inputs["input_ids"].another_kind)
    with pytest.raises(ValueError, match=r"Forgetful does not run with the key-value cache .*AttributeError: .*kind"):
        sample(model, [Draw([5, 6, 7], 0, 0)])


def test_the_model_comes_back_as_it_was_and_can_be_trained():
    model = build("llama").train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    sample(model, ragged_draws())
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    ids = torch.tensor([[5, 6, 7]])
    model(ids, labels=ids).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_models_modes_come_back_after_an_error():
    model = build("llama").train()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        sample(model, ragged_draws())
    assert all(module.training for module in model.modules())


def test_dropout_is_off():
    model = build("llama", attention_dropout=0.5)
    draws = ragged_draws()
    expected = sample(model, draws)
    assert sample(model.train(), draws) == expected
    assert model.training


def test_bfloat16_logits_are_sampled_in_float32():
    found = sample(build("llama", dtype=torch.bfloat16), ragged_draws(), top_p=0.9)
    assert all(0 <= token < VOCABULARY for each in found for token in each.token_ids)


def test_a_prompt_without_room_is_refused(llama):
    draws = [Draw([5], 0, 0), Draw([5] * 60, 0, 0)]
    assert len(sample(llama, draws, stops=[], max_new_tokens=4)) == 2
    with pytest.raises(ValueError, match=r"draw 1 has 60 tokens; accepted are 1 to 59: .*=64 .*=5$"):
        sample(llama, draws, max_new_tokens=5)
    with pytest.raises(ValueError, match="draw 0 has 0 tokens"):
        sample(llama, [Draw([], 0, 0)])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_name_the_draw(temperature):
    model = build("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight[39] = float("nan")
    with pytest.raises(NonFiniteLogitsError, match="not finite for draw 2 at token 0"):
        sample(model, [Draw([5, 6], 0, 0), Draw([5, 7], 0, 0), Draw([5, 39], 0, 0)], temperature=temperature)


def test_a_token_that_the_model_rules_out_is_never_drawn(llama):
    handle = llama.lm_head.register_forward_hook(
        lambda _, args, logits: logits.masked_fill(torch.arange(VOCABULARY) % 2 == 1, -torch.inf)
    )
    found = sample(llama, ragged_draws(), stops=[])
    handle.remove()
    assert {token % 2 for each in found for token in each.token_ids} == {0}


def test_the_longest_prompt_leaves_room_for_the_response(llama):
    assert longest_prompt(llama.config, 5) == 59
    assert longest_prompt(llama.config, 70) == -6


def test_no_draws(llama):
    assert sample(llama, []) == []


def test_batches_hold_each_index_once_by_length():
    assert plan_batches([3, 9, 3, 5, 9], 2) == [[1, 4], [3, 0], [2]]
    assert plan_batches([], 4) == []
    with pytest.raises(ValueError, match="batch_size is 0"):
        plan_batches([1], 0)
