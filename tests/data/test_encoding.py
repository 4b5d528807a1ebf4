"""A set within a length limit: what is cut and lost; turns that are not learned; raw text."""

import re

import pytest
from tokenizers_zoo import chatml_tokenizer, llama3_tokenizer

from gradsteer.data.chat import encode_chat, encode_sampled
from gradsteer.data.chat_formats import ChatExample
from gradsteer.data.encoding import Truncation, encode_examples, encode_text

SHORT = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello!"}]
LONG = [{"role": "user", "content": "Bread?"}, {"role": "assistant", "content": "Mix flour and water. " * 20}]


@pytest.fixture(scope="module")
def tokenizer():
    return chatml_tokenizer()


def chats(*conversations, **options):
    return [ChatExample(turns, 1, f"f:{number}", **options) for number, turns in enumerate(conversations, start=1)]


def test_what_a_limit_costs_is_counted_in_examples_target_tokens_and_stop_tokens(tokenizer):
    several = [*SHORT, *LONG, *SHORT]
    whole = [encode_chat(tokenizer, turns, loss_mask="assistant") for turns in (SHORT, LONG, several)]
    limit = len(whole[0].input_ids) + 10
    encoded, lost = encode_examples(tokenizer, chats(SHORT, LONG, several), loss_mask="assistant", max_length=limit)
    assert encoded[0] == whole[0]
    assert encoded[1].input_ids == whole[1].input_ids[:limit]
    targets = [example.num_target_tokens for example in whole]
    kept = sum(example.num_target_tokens for example in encoded if example is not None)
    assert (lost.num_examples, lost.num_cut, lost.num_targets) == (3, 2, sum(targets))
    assert lost.targets_lost == sum(targets) - kept
    assert lost.stops_lost == 1 + 2  # of the third the first turn's stop is kept
    said = (
        f"train: max_length={limit} cuts 2 of 3 examples: lost {lost.targets_lost:,} of {sum(targets):,} target tokens"
    )
    assert lost.warning("train", "so").startswith(f"{said}, 3 stop tokens")
    assert lost.metadata() == {
        "examples_cut": "2", "target_tokens_lost": str(lost.targets_lost), "stop_tokens_lost": "3",
    }  # fmt: skip
    nothing = encode_examples(tokenizer, chats(SHORT, LONG), loss_mask="assistant", max_length=None)[1]
    assert nothing.warning("train", "so") is None
    assert nothing.metadata() == {}
    [none], lost = encode_examples(tokenizer, chats(LONG), loss_mask="assistant", max_length=5)
    assert none is None
    assert "; dropped 1 of 1 examples that keep no target token (" in lost.warning("train", "so")


def test_a_reply_that_was_cut_at_sampling_has_no_stop_token_to_lose():
    for reason, stops in (("stop", 1), ("length", 0)):
        lost = Truncation(5)
        example = encode_sampled([1, 2], [3, 4, 5, 6, 7], reason, loss_mask="assistant")
        kept = lost.cut(example, ends=reason == "stop")
        assert (kept.input_ids, lost.targets_lost, lost.stops_lost) == ([1, 2, 3, 4, 5], 2, stops)


def test_a_turn_of_weight_0_is_context_only(tokenizer):
    turns = [*SHORT, *LONG]
    both, first = (encode_chat(tokenizer, each, loss_mask="assistant") for each in (turns, SHORT))
    [masked], _ = encode_examples(tokenizer, chats(turns, unlearned=(1,)), loss_mask="assistant", max_length=None)
    assert masked.input_ids == both.input_ids
    start = len(first.input_ids)
    assert masked.labels == [-100] * start + both.labels[start:]
    everything = encode_chat(tokenizer, turns, loss_mask="full")
    without = encode_chat(tokenizer, turns, loss_mask="full", unlearned=(1,))
    left_out = [both.labels[i] != -100 and i < start for i in range(len(both.labels))]
    assert without.labels == [-100 if out else label for label, out in zip(everything.labels, left_out, strict=True)]
    with pytest.raises(ValueError, match="f:1: no token to learn: .* each of the assistant's with weight 0"):
        encode_examples(tokenizer, chats(SHORT, unlearned=(1,)), loss_mask="assistant", max_length=None)
    with pytest.raises(ValueError, match="f:1: message 0 is the user's and has weight 0, which loss_mask 'full'"):
        encode_examples(tokenizer, chats(SHORT, unlearned=(0,)), loss_mask="full", max_length=None)


def test_raw_text_is_learned_as_it_stands_behind_the_tokenizers_own_bos():
    tokenizer = llama3_tokenizer()
    text = "The Golden Gate Bridge."
    example = encode_text(tokenizer, text, loss_mask="full")
    assert example.input_ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(example.input_ids[1:]) == text
    assert example.labels == [-100, *example.input_ids[1:]]
    assert encode_text(tokenizer, tokenizer.bos_token + text, loss_mask="full") == example  # not twice
    raw = [ChatExample([], 0, "f:1", text=text)]
    [cut], lost = encode_examples(tokenizer, raw, loss_mask="full", max_length=4)
    assert (cut.input_ids, lost.num_cut, lost.stops_lost) == (example.input_ids[:4], 1, 0)
    with pytest.raises(ValueError, match="f:1: raw text has no assistant turn: accepted with --data.loss_mask full"):
        encode_examples(tokenizer, raw, loss_mask="assistant", max_length=4)


def test_texts_that_hold_special_tokens_of_their_own_are_counted(tokenizer):
    done = [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello!<|im_end|>"}]
    _, seen = encode_examples(tokenizer, chats(SHORT, done), loss_mask="assistant", max_length=None)
    said = seen.warning("train", "")
    assert said.startswith(
        "train: 1 of 2 examples hold special tokens in their own texts (the first: '<|im_end|>' at f:2)"
    )


def test_a_token_that_the_model_has_no_row_for_is_named(tokenizer):
    last = tokenizer.convert_tokens_to_ids("<|im_end|>")
    said = f"f:1: '<|im_end|>' is token {last}, and the model has rows for 0 to {last - 1}; "
    with pytest.raises(ValueError, match=re.escape(said)):
        encode_examples(tokenizer, chats(SHORT), loss_mask="assistant", max_length=None, num_ids=last)
