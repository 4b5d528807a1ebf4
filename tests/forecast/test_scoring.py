"""Log-probabilities of whole responses, in a world so small that every response can be listed."""

import copy
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
import transformers as t
from tiny_models import ragged_examples, tiny_llama

from gradsteer.attribution.pile_gradient import PileGradient
from gradsteer.data.chat import EncodedExample, collate, encode_sampled
from gradsteer.forecast.derivatives import log_prob_derivatives
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.generation.decoding import Draw, SamplingConfig, sample_batch
from gradsteer.steering.weight_steering import steered
from gradsteer.vectors.parameter_vectors import SteeringVector

TOKENS, STOP, LONGEST = 5, 0, 3
PROMPTS = [[1], [3, 2], [4, 4, 1]]
SETTINGS = [(1.0, 1.0), (0.6, 1.0), (1.0, 0.8), (0.6, 0.9)]
# a reply ends with the stop token, or is cut at the longest length
RESPONSES = [
    list(tokens)
    for length in range(1, LONGEST + 1)
    for tokens in product(range(TOKENS), repeat=length)
    if STOP not in tokens[:-1] and (length == LONGEST or tokens[-1] == STOP)
]


def small_llama(*, seed: int = 0, dtype: torch.dtype = torch.float64):
    """A Llama of five tokens whose distributions are far from uniform."""
    torch.manual_seed(seed)
    config = t.LlamaConfig(
        vocab_size=TOKENS, hidden_size=8, intermediate_size=12, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=16, tie_word_embeddings=False, pad_token_id=0, bos_token_id=1,
        eos_token_id=STOP, initializer_range=0.5,
    )  # fmt: skip
    return t.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def direction_of(model, *, seed: int = 7, scale: float = 1.0) -> SteeringVector:
    generator = torch.Generator().manual_seed(seed)
    return SteeringVector(
        {
            name: scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            for name, parameter in model.named_parameters()
        }
    )


def encoded(prompt, response) -> EncodedExample:
    reason = "stop" if response[-1] == STOP else "length"
    return encode_sampled(prompt, response, reason, loss_mask="assistant")


@torch.no_grad()
def exact_log_probs(model, prompt, temperature: float = 1.0, top_p: float = 1.0) -> np.ndarray:
    """(responses,) float64, token by token from plain forward passes and numpy."""
    rows = torch.tensor([[*prompt, *response, *[0] * (LONGEST - len(response))] for response in RESPONSES])
    logits = model(input_ids=rows).logits.double().numpy() / temperature
    found = np.zeros(len(RESPONSES))
    for index, response in enumerate(RESPONSES):
        for step, token in enumerate(response):
            scores = logits[index, len(prompt) - 1 + step]
            probabilities = np.exp(scores - scores.max())
            probabilities /= probabilities.sum()
            if top_p < 1:
                order = np.argsort(-probabilities)
                kept = order[: 1 + int(np.sum(np.cumsum(probabilities[order])[:-1] < top_p))]
                probabilities = np.where(np.isin(np.arange(TOKENS), kept), probabilities, 0)
                probabilities /= probabilities.sum()
            with np.errstate(divide="ignore"):
                found[index] += np.log(probabilities[token])
    return found


def scorer_of(model, temperature=1.0, top_p=1.0, **options) -> ResponseScorer:
    examples = [encoded(prompt, response) for prompt in PROMPTS for response in RESPONSES]
    return ResponseScorer(model, examples, temperature=temperature, top_p=top_p, **options)


# --- every response --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("temperature", "top_p"), SETTINGS)
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_the_probabilities_of_all_responses_sum_to_1_and_are_the_exact_ones(temperature, top_p, alpha):
    assert len(RESPONSES) == 1 + 4 + 16 * 5
    model = small_llama()
    scorer = scorer_of(model, temperature, top_p)
    assert scorer.layout.packs
    with steered(model, direction_of(model), alpha):
        found = scorer.log_probs().reshape(len(PROMPTS), -1)
        exact = [exact_log_probs(model, prompt, temperature, top_p) for prompt in PROMPTS]
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found, exact, atol=1e-5)
    assert np.isneginf(found).any() == (top_p < 1)


@pytest.mark.parametrize(("temperature", "top_p"), SETTINGS)
def test_it_is_what_the_sampler_draws_from(temperature, top_p):
    model, prompt, number = small_llama(), PROMPTS[1], 6000
    draws = [Draw(prompt, sample, seed=3) for sample in range(number)]
    sampled = sample_batch(
        model, draws, SamplingConfig(LONGEST, temperature, top_p), stop_token_ids=[STOP], pad_token_id=0
    )
    counts = dict.fromkeys(map(tuple, RESPONSES), 0)
    for each in sampled:
        counts[tuple(each.token_ids)] += 1
    scorer = ResponseScorer(model, [encoded(prompt, r) for r in RESPONSES], temperature=temperature, top_p=top_p)
    probabilities = np.exp(scorer.log_probs())
    found = np.array([counts[tuple(response)] for response in RESPONSES])
    assert not found[probabilities == 0].any()
    frequent = number * probabilities >= 5
    z = (found - number * probabilities) / np.sqrt(number * probabilities * (1 - probabilities) + 1e-300)
    assert np.abs(z[frequent]).max() < 4.2
    chi2 = np.square(z[frequent] * np.sqrt(1 - probabilities[frequent])).sum()
    assert abs(chi2 - frequent.sum()) < 5 * np.sqrt(2 * frequent.sum())
    assert np.sqrt(np.square(z[frequent]).mean()) > 0.5  # and they are random


def test_responses_that_were_sampled_here_are_in_their_nuclei():
    model = small_llama()
    scorer = scorer_of(model, 1.0, 0.8)
    plain, said = scorer.log_probs(), scorer.log_probs(sampled_here=True)
    outside = np.isneginf(plain)
    np.testing.assert_array_equal(said[~outside], plain[~outside])
    assert np.isfinite(said).all()
    assert (said[outside] > -np.inf).all()


def test_fixed_nuclei_are_those_of_the_weights_that_they_were_taken_at():
    model, vector = small_llama(), direction_of(small_llama())
    scorer = scorer_of(model, 1.0, 0.8)
    nuclei = scorer.nuclei()
    np.testing.assert_array_equal(scorer.log_probs(nuclei=nuclei), scorer.log_probs(sampled_here=True))
    with steered(model, vector, 0.5):
        moved, fixed = scorer.log_probs(), scorer.log_probs(nuclei=nuclei)
        exact = fixed_nucleus_log_probs(model, small_llama(), 1.0, 0.8)
    assert np.isneginf(moved).any()
    assert np.isfinite(fixed).all()
    np.testing.assert_allclose(fixed, exact, atol=1e-5)


def fixed_nucleus_log_probs(model, anchor, temperature, top_p):
    """Over the anchor's nuclei and the response's own tokens."""
    found = []
    for prompt, response in product(PROMPTS, RESPONSES):
        ids = torch.tensor([[*prompt, *response]])
        with torch.no_grad():
            ours, theirs = (each(input_ids=ids).logits[0].double() / temperature for each in (model, anchor))
        total = 0.0
        for step, token in enumerate(response):
            position = len(prompt) - 1 + step
            probabilities = theirs[position].softmax(-1)
            order = probabilities.argsort(descending=True)
            count = 1 + int((probabilities[order].cumsum(0)[:-1] < top_p).sum())
            kept = sorted({*order[:count].tolist(), token})
            total += float(ours[position, token] - ours[position, kept].logsumexp(0))
        found.append(total)
    return found


# --- invariances -----------------------------------------------------------------------------------------------------


def gpt2(dtype):
    """Its layers compute in float64 throughout; a Llama's norms are float32."""
    torch.manual_seed(0)
    config = t.GPT2Config(
        vocab_size=61, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2,
        initializer_range=0.3,
    )  # fmt: skip
    return t.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_neither_packs_nor_batches_nor_chunks_change_a_score(monkeypatch, dtype, bound, top_p):
    model, examples = gpt2(dtype), ragged_examples(23)
    whole = ResponseScorer(model, examples, temperature=0.7, top_p=top_p)
    assert whole.layout.packs
    assert len(whole) == 1
    expected = whole.log_probs(sampled_here=True)
    found = [ResponseScorer(model, [e], temperature=0.7, top_p=top_p).log_probs(sampled_here=True)[0] for e in examples]
    cut = ResponseScorer(model, examples, temperature=0.7, top_p=top_p, token_budget=30)
    assert len(cut) > 5
    cut.layout = replace(cut.layout, head_chunk=3)
    backwards = ResponseScorer(model, examples[::-1], temperature=0.7, top_p=top_p, token_budget=64)
    monkeypatch.setattr("gradsteer.models.batches.why_not_packs", lambda *_, **__: "no packs here")
    padded = ResponseScorer(model, examples, temperature=0.7, top_p=top_p, pad_token_id=5)
    assert not padded.layout.packs
    assert len(padded) == 2
    others = [found, cut.log_probs(sampled_here=True), backwards.log_probs(sampled_here=True)[::-1]]
    for other in [*others, padded.log_probs(sampled_here=True)]:
        np.testing.assert_allclose(other, expected, rtol=0, atol=bound * max(1, np.abs(expected).max()))


def replies(prompts, count, *, tokens=61):
    """(prompts x count) examples of different lengths, in an order that mixes the prompts."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for _ in range(count):
        for prompt in prompts:
            length = int(torch.randint(1, 12, (1,), generator=generator))
            found.append(encoded(prompt, torch.randint(3, tokens, (length,), generator=generator).tolist()))
    return found


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_a_prompt_that_is_read_once_changes_no_score(dtype, bound, top_p):
    model, prompts = gpt2(dtype), [[5, 6, 7, 8, 9, 4], [5, 6, 7], [11]]
    examples = [*replies(prompts, 6), encoded([33, 34], [35])]
    how = {"temperature": 0.7, "top_p": top_p}
    plain = ResponseScorer(model, examples, **how, shared_prompts=False)
    assert not plain.layout.shared_prompts
    assert plain.tokens_per_pass == sum(len(example.input_ids) for example in examples)
    expected = plain.log_probs(sampled_here=True)
    bound *= max(1, np.abs(expected).max())
    for budget, order in ((None, 1), (1, 1), (20, -1), (45, -1)):
        scorer = ResponseScorer(model, examples[::order], **how, token_budget=budget)
        assert scorer.layout.shared_prompts
        if budget is None:  # every prompt once, and no reply's last token
            assert scorer.tokens_per_pass == 6 + 3 + 1 + 2 + scorer.num_tokens - len(examples)
        assert scorer.tokens_per_pass < plain.tokens_per_pass
        for chunk in (None, 3):
            scorer.layout = replace(scorer.layout, head_chunk=chunk)
            found = scorer.log_probs(sampled_here=True)[::order]
            np.testing.assert_allclose(found, expected, rtol=0, atol=bound)
    if top_p < 1:
        vector = direction_of(model, scale=0.01)
        nuclei = [each.nuclei() for each in (plain, scorer)]
        with steered(model, vector, 1.0):
            expected, found = (s.log_probs(nuclei=n) for s, n in zip((plain, scorer), nuclei, strict=True))
        np.testing.assert_allclose(found[::-1], expected, rtol=0, atol=bound)


def test_one_response_a_prompt_asks_for_nothing_more(monkeypatch):
    model, examples = gpt2(torch.float32), replies([[5, 6, 7], [5, 6], [8]], 1)
    monkeypatch.setattr("gradsteer.models.batches.why_not_shared", None)
    scorer, plain = (ResponseScorer(model, examples, shared_prompts=shared) for shared in (True, False))
    assert scorer.tokens_per_pass == plain.tokens_per_pass
    np.testing.assert_array_equal(scorer.log_probs(), plain.log_probs())


@pytest.mark.parametrize("refused", ["why_not_shared", "why_not_packs"])
def test_where_prompts_may_not_be_shared_all_is_as_it_was(monkeypatch, refused):
    model, examples = gpt2(torch.float32), replies([[5, 6, 7], [5, 6]], 4)
    expected = ResponseScorer(model, examples).log_probs()
    monkeypatch.setattr(f"gradsteer.models.batches.{refused}", lambda *_, **__: "not here")
    scorer = ResponseScorer(model, examples)
    assert not scorer.layout.shared_prompts
    assert scorer.layout.packs == (refused == "why_not_shared")
    np.testing.assert_allclose(scorer.log_probs(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "examples", [ragged_examples(9), replies([[5, 6, 7, 8], [5, 6], [9]], 5)], ids=["each", "shared"]
)
def test_processes_share_the_batches(monkeypatch, examples):
    """Two ranks in one process: each scores its own batches, and together they have all."""
    model = tiny_llama()
    alone = ResponseScorer(model, examples, token_budget=40).log_probs()
    ranks = [ResponseScorer(model, examples, token_budget=40, rank=rank, world_size=2) for rank in (0, 1)]
    assert len(ranks[0]) == len(ranks[1])  # they meet in every forward pass
    parts = []
    monkeypatch.setattr("gradsteer.forecast.scoring.gathered", lambda found: parts.append(found) or [found])
    for rank in ranks:
        rank.log_probs()
    monkeypatch.setattr("gradsteer.forecast.scoring.gathered", lambda _: parts)
    np.testing.assert_allclose(ranks[0].log_probs(), alone, atol=1e-6)


def test_what_is_counted():
    scorer, ticks = ResponseScorer(tiny_llama(), ragged_examples(9), token_budget=40), []
    scorer.log_probs(tick=lambda: ticks.append(None))
    assert len(ticks) == len(scorer)
    assert scorer.num_tokens == sum(example.num_target_tokens for example in scorer.examples)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, "temperature is 0.0; accepted: more than 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_p": 0.0}, "top_p is 0.0; accepted: more than 0, at most 1"),
        ({"top_p": 1.1}, "top_p is 1.1"),
    ],
)
def test_settings_out_of_range_are_refused(llama, options, message):
    with pytest.raises(ValueError, match=message):
        ResponseScorer(llama, ragged_examples(1), **options)
    with pytest.raises(ValueError, match="there are no responses to score"):
        ResponseScorer(llama, [])


# --- derivatives along a direction -----------------------------------------------------------------------------------


def autograd_derivatives(model, vector, examples, temperature=1.0, nuclei=None):
    """(responses,) of -log p(r) by alpha: plain autograd, response by response.

    Args:
        nuclei: (response, step) -> the tokens over which the softmax runs; all of them by default.
    """
    parameters = dict(model.named_parameters())
    found = []
    for index, example in enumerate(examples):
        logits = model(input_ids=torch.tensor([example.input_ids])).logits[0] / temperature
        places = [place for place, label in enumerate(example.labels) if label != -100 and place > 0]
        loss = logits.new_zeros(())
        for step, place in enumerate(places):
            row = logits[place - 1]
            kept = slice(None) if nuclei is None else nuclei[index, step]
            loss = loss + row[kept].logsumexp(0) - row[example.labels[place]]
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        found.append(sum(float((g * vector[n]).sum()) for n, g in zip(parameters, gradients, strict=True)))
    return np.array(found)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_central_differences_are_autograds_directional_derivative(scale, temperature):
    model, examples = tiny_llama(), ragged_examples(12)
    vector = direction_of(model, scale=scale)
    before = copy.deepcopy(model.state_dict())
    scorer = ResponseScorer(model, examples, temperature=temperature)
    found, passes = log_prob_derivatives(model, scorer, vector)
    exact = autograd_derivatives(model, vector, examples, temperature)
    assert np.linalg.norm(found - exact) < 3e-3 * np.linalg.norm(exact)
    assert 2 <= passes <= 8
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_in_float32_too():
    model, examples = tiny_llama().float(), ragged_examples(12)
    vector = direction_of(tiny_llama())
    found, _ = log_prob_derivatives(model, ResponseScorer(model, examples), vector)
    exact = autograd_derivatives(tiny_llama(), vector, examples)
    assert np.linalg.norm(found - exact) < 3e-3 * np.linalg.norm(exact)


def test_in_bfloat16_steps_are_rounded_so_that_nothing_is_lost_on_average(monkeypatch):
    model, examples = tiny_llama(initializer_range=0.2, dtype=torch.bfloat16), ragged_examples(24)
    same = copy.deepcopy(model).float()
    pile = PileGradient(same, reduction="sum")
    pile.add(collate(examples[:12], 0))
    vector = SteeringVector(pile.average())
    exact = autograd_derivatives(same, vector, examples)

    def regression():
        found, _ = log_prob_derivatives(model, ResponseScorer(model, examples), vector, changes=(0.15, 0.5, 0.3))
        return float(found @ exact / (exact @ exact))

    assert regression() == pytest.approx(1, abs=0.05)
    assert regression() == regression()
    monkeypatch.setattr("gradsteer.forecast.derivatives.HALF_PRECISIONS", ())  # rounded to nearest
    assert regression() < 0.93


def test_a_direction_that_moves_nothing_is_refused(llama):
    scorer = ResponseScorer(llama, ragged_examples(3))
    zero = SteeringVector({"lm_head.weight": torch.zeros(61, 16)})
    some = {"model.embed_tokens.weight": torch.zeros(61, 16, dtype=torch.float64)}
    with pytest.raises(ValueError, match="does not fit the model"):
        log_prob_derivatives(llama, scorer, SteeringVector({"nothing": torch.ones(2)}))
    with pytest.raises(ValueError, match="the vector is zero: it has no direction"):
        log_prob_derivatives(llama, scorer, zero)
    untied = tiny_llama(tied=False)
    some["model.embed_tokens.weight"][0, 0] = 1.0  # of a token that no response has
    with pytest.raises(ValueError, match=r"change by 0.0e\+00 nats .* does not move the model"):
        log_prob_derivatives(untied, ResponseScorer(untied, ragged_examples(3)), SteeringVector(some))
