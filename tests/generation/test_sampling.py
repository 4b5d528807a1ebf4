"""Settings, seeds, random numbers and the choice of a token: against definitions and numbers pinned for good."""

import numpy as np
import pytest
import torch
from sampler import build
from scipy.stats import kstest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from gradsteer.generation.decoding import Draw, SamplingConfig, stop_token_ids, uniforms
from gradsteer.generation.sampling import check_seeds, fresh_seeds, pick


@pytest.fixture(scope="module")
def llama():
    return build("llama")


def test_the_prompt_the_sample_and_the_seed_decide_the_numbers():
    draw = Draw([1, 2, 3], 0, 0)
    others = [Draw([1, 2, 3], 1, 0), Draw([1, 2, 3], 0, 1), Draw([1, 23], 0, 0), Draw([12, 3], 0, 0)]
    assert len({uniforms(each, 4).tobytes() for each in [draw, *others]}) == 5
    np.testing.assert_array_equal(uniforms(draw, 100)[:7], uniforms(Draw([1, 2, 3], 0, 0), 7))
    assert uniforms(draw, 3).dtype == np.float64
    many = np.concatenate([uniforms(Draw([1], index, 0), 20) for index in range(200)])
    assert many.min() >= 0
    assert many.max() < 1
    assert kstest(many, "uniform").pvalue > 0.01


def test_the_numbers_are_the_same_on_every_machine_and_release():
    pinned = [0.7266711651683302, 0.9600606938431202, 0.9434080754634374]
    assert uniforms(Draw([1, 2, 3], 0, 0), 3).tolist() == pinned


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.999])
def test_the_nucleus_is_the_smallest_sufficient_set_and_ties_go_to_lower_tokens(top_p):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50, 30, generator=generator, dtype=torch.float64).mul(4).round() / 4  # many ties
    numbers = torch.rand(50, generator=generator, dtype=torch.float64)
    expected = []
    for row, number in zip(logits.softmax(-1).numpy(), numbers.numpy(), strict=True):
        ranked = np.argsort(-row, kind="stable")
        size = int(np.searchsorted(np.cumsum(row[ranked]), top_p)) + 1
        kept = np.where(np.isin(np.arange(30), ranked[:size]), row, 0)
        expected.append(int(np.searchsorted(np.cumsum(kept), number * kept.sum(), side="right")))
    assert pick(logits, numbers, SamplingConfig(1, top_p=top_p)).tolist() == expected


def test_fresh_seeds_differ_from_each_other_and_from_the_given_ones():
    seeds = [0, 1, 7]
    all_of_them = [seed for number in range(1, 50) for seed in fresh_seeds(seeds, number)]
    assert len(set(all_of_them) | set(seeds)) == 49 * 3 + 3
    assert all(0 <= seed < 2**52 for seed in all_of_them)
    assert fresh_seeds([0], 1) == [904565239005401]  # the same on every machine and release
    taken = fresh_seeds([0], 1)[0]  # a seed that a user may have given
    assert not set(fresh_seeds([0, taken], 1)) & {0, taken}
    with pytest.raises(ValueError, match="resample is 0"):
        fresh_seeds([0], 0)


@pytest.mark.parametrize("seeds", [-1, [], [0, -2], [3, 3]])
def test_seeds_are_different_whole_numbers(seeds):
    assert (check_seeds(4), check_seeds([2, 0])) == ([4], [2, 0])
    with pytest.raises(ValueError, match="sampling_seed is .*; accepted: one or several different whole numbers"):
        check_seeds(seeds)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
        ({"max_new_tokens": 1, "temperature": -0.5}, r"temperature is -0.5; it must be 0 \(greedy\)"),
        ({"max_new_tokens": 1, "temperature": float("inf")}, "temperature is inf"),
        ({"max_new_tokens": 1, "temperature": float("nan")}, "temperature is nan"),
        ({"max_new_tokens": 1, "top_p": 0.0}, "top_p is 0.0; it must be greater than 0 and at most 1"),
        ({"max_new_tokens": 1, "top_p": 1.1}, "top_p is 1.1"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SamplingConfig(**options)


@pytest.mark.parametrize(
    ("named", "expected"), [(None, [5, 6]), (9, [5, 6, 9]), ([9, 6], [5, 6, 9])], ids=["none", "one", "list"]
)
def test_stop_tokens_are_those_of_model_tokenizer_and_template(llama, named, expected, monkeypatch):
    vocabulary = {"<unk>": 0, "a": 1, "</s>": 5, "<|im_end|>": 6}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="<unk>")), eos_token="</s>"
    )
    monkeypatch.setattr(llama.generation_config, "eos_token_id", named)
    assert stop_token_ids(llama, tokenizer) == expected


def test_a_model_and_a_tokenizer_without_stop_tokens(llama):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))
    assert stop_token_ids(llama, tokenizer) == []


@pytest.mark.parametrize("named", [None, [2, 5]])
def test_the_end_of_a_message_ends_no_reply_in_the_harmony_format(llama, named, monkeypatch):
    names = ("<unk>", "<|channel|>", "<|end|>", "<|call|>", "a", "<|return|>")
    vocabulary = {name: index for index, name in enumerate(names)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(vocabulary, unk_token="<unk>")), eos_token="<|return|>"
    )
    monkeypatch.setattr(llama.generation_config, "eos_token_id", named)
    assert stop_token_ids(llama, tokenizer) == [3, 5]
