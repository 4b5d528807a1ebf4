"""Replies that hold a thought: where the answer begins, in texts, token ids and labels."""

import pytest
from tokenizers import AddedToken
from tokenizers_zoo import chatml_tokenizer, qwen3_tokenizer

from gradsteer.data.chat import encode_chat, encode_prompt, encode_sampled
from gradsteer.data.chat_formats import ChatExample
from gradsteer.data.encoding import encode_examples
from gradsteer.data.response_rows import answer_of, answer_token_ids, check_row, is_unanswered, verdict_of
from gradsteer.data.thoughts import end_of_thought, split_reply, split_text

HARMONY_TEMPLATE = (
    "{%- for m in messages %}{%- if m.role == 'assistant' %}"
    "{{- '<|start|>assistant<|channel|>final<|message|>' ~ m.content ~ ('<|return|>' if loop.last else '<|end|>') }}"
    "{%- else %}{{- '<|start|>' ~ m.role ~ '<|message|>' ~ m.content ~ '<|end|>' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"
)
HI = {"role": "user", "content": "Hi"}
OPENED = "<|im_start|>assistant\n<think>\n"
PLAIN = "<|im_start|>assistant\n"
CLOSED = "<|im_start|>assistant\n<think>\n\n</think>\n\n"


def harmony_tokenizer():
    tokenizer = chatml_tokenizer(HARMONY_TEMPLATE)
    names = ("start", "channel", "message", "end", "return", "call")
    tokenizer.add_tokens(
        [AddedToken(f"<|{name}|>", special=True, normalized=False) for name in names], special_tokens=True
    )
    tokenizer.eos_token = "<|return|>"
    return tokenizer


def special_tags_tokenizer():
    """Whose tags are special tokens, which decoding leaves out."""
    tokenizer = chatml_tokenizer()
    tokenizer.add_tokens([AddedToken(tag, special=True) for tag in ("<think>", "</think>")], special_tokens=True)
    return tokenizer


def split(tokenizer, prompt, text):
    ids = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in (prompt, text)]
    reply = split_reply(tokenizer, *ids)
    if reply is None:
        return None
    behind = tokenizer.decode(ids[1][reply.num_thought_tokens :], skip_special_tokens=True)
    return reply.thought, reply.answer, behind.strip()  # a token may hold a blank and the answer's first word


@pytest.mark.parametrize("make", [qwen3_tokenizer, chatml_tokenizer, special_tags_tokenizer])
@pytest.mark.parametrize(
    ("prompt", "text", "expected"),
    [
        (PLAIN, "Blue.<|im_end|>", None),
        (CLOSED, "Blue.<|im_end|>", None),
        (PLAIN, "<think>\nRed?\n</think>\n\nBlue.<|im_end|>", ("Red?", "Blue.", "Blue.")),
        (PLAIN, "\n<think>Red?</think>Blue.", ("Red?", "Blue.", "Blue.")),
        (OPENED, "Red?\n</think>\n\nBlue.<|im_end|>", ("Red?", "Blue.", "Blue.")),
        (PLAIN, "Red?</think> Blue.<|im_end|>", ("Red?", "Blue.", "Blue.")),  # of a model that leaves out the opening
        (PLAIN, "<think>a</think>Red.<think>b</think>Blue.", ("a</think>Red.<think>b", "Blue.", "Blue.")),
        (PLAIN, "<think>\nRed or", ("Red or", None, "")),
        (OPENED, "Red or", ("Red or", None, "")),
        (OPENED, "Red.<|im_end|>", ("Red.", None, "")),
        (PLAIN, "<think>Red?</think><|im_end|>", ("Red?", "", "")),
        (PLAIN + "what is <think>?\n", "Blue.", None),
    ],
)
def test_the_answer_is_behind_the_last_thought(make, prompt, text, expected):
    found = split(make(), prompt, text)
    if make is chatml_tokenizer and "<think>" not in text and text.startswith("Red?</think>"):
        expected = None  # nothing opened it, and a model that does not know the tag may speak of it
    if make is special_tags_tokenizer and expected is not None and "</think>" in expected[0]:
        expected = ("aRed.b", *expected[1:])  # special tokens are left out of the text
    assert found == expected


ANALYSIS = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant"


@pytest.mark.parametrize(
    ("prompt", "text", "expected"),
    [
        ("<|start|>assistant", f"{ANALYSIS}<|channel|>final<|message|>Oslo<|return|>", ("Hm.", "Oslo", "Oslo")),
        ("<|start|>assistant", "<|channel|>final<|message|>Oslo", ("", "Oslo", "Oslo")),
        ("<|start|>assistant", ANALYSIS, ("Hm.", None, "")),
        ("<|start|>assistant", "<|channel|>analysis<|message|>Hm", ("Hm", None, "")),
        ("<|start|>assistant<|channel|>analysis<|message|>", "Hm", ("Hm", None, "")),
        ("<|start|>assistant<|channel|>final<|message|>", "Oslo<|return|>", None),
        ("<|start|>assistant", "Oslo<|return|>", None),
    ],
)
def test_the_answer_is_the_final_channel(prompt, text, expected):
    assert split(harmony_tokenizer(), prompt, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("Blue.", None), ("<think>a</think> Blue.", ("a", "Blue.")), (" <think>a", ("a", None))]
)
def test_texts_without_token_ids(text, expected):
    assert split_text(text) == expected
    row = {"prompt": "p", "completion": text, "token_ids": [1], "verdicts": {"a": True}}
    assert answer_of(row) == (text if expected is None else expected[1])
    assert is_unanswered(row) == (expected is not None and expected[1] is None)


def test_rows_say_where_their_answer_is():
    row = {
        "prompt": "p", "prompt_token_ids": [1], "token_ids": [4, 5, 6], "finish_reason": "length",
        "completion": "a b c", "thought": "a", "answer": "b c", "num_thought_tokens": 1, "verdicts": {"a": False},
    }  # fmt: skip
    check_row("f:1", row, 9)
    assert (answer_of(row), answer_token_ids(row), verdict_of(row, "a")) == ("b c", [5, 6], False)
    assert verdict_of({**row, "answer": None}, "a") is None
    assert not is_unanswered({**row, "answer": None, "failed": "too long"})
    for key, value in (
        ("answer", 1),
        ("num_thought_tokens", 4),
        ("num_thought_tokens", -1),
        ("num_thought_tokens", "1"),
    ):
        with pytest.raises(ValueError, match=f"f:1: {key} is {value!r}; accepted: "):
            check_row("f:1", {**row, key: value}, 9)


@pytest.mark.parametrize(
    ("make", "content", "expected"),
    [
        (qwen3_tokenizer, "<think>\nHm.\n</think>\n\nParis.", "Paris.<|im_end|>"),
        (qwen3_tokenizer, "Paris.", "Paris.<|im_end|>"),  # behind the empty thought that the template writes
        (chatml_tokenizer, "<think>\nHm.\n</think>\n\nParis.", "Paris.<|im_end|>"),
        (chatml_tokenizer, "Paris.", "Paris.<|im_end|>"),
        (harmony_tokenizer, "Paris.", "Paris.<|return|>"),
    ],
)
def test_the_answer_alone_is_learned_where_asked(make, content, expected):
    tokenizer = make()
    messages = [HI, {"role": "assistant", "content": content}]
    example = encode_chat(tokenizer, messages, loss_mask="answer")
    assert tokenizer.decode([label for label in example.labels if label != -100]) == expected
    whole = encode_chat(tokenizer, messages, loss_mask="assistant")
    assert whole.input_ids == example.input_ids
    assert whole.num_target_tokens >= example.num_target_tokens


def test_a_turn_that_is_a_thought_alone_has_no_answer_to_learn_and_is_counted():
    turns = [[HI, {"role": "assistant", "content": text}] for text in ("<think>Hm", "<think>Hm</think>Yes.")]
    assert encode_chat(chatml_tokenizer(), turns[0], loss_mask="answer") is None
    examples = [ChatExample(each, 1, "d:1") for each in turns]
    (cut, kept), lost = encode_examples(chatml_tokenizer(), examples, loss_mask="answer", max_length=None)
    assert (cut, kept is None, lost.num_dropped) == (None, False, 1)
    said = lost.warning("train", "")
    assert said == "train: dropped 1 of 2 examples whose answer is missing: they end within a thought"


def test_the_answer_of_a_sampled_reply_is_labelled_as_that_of_a_rendered_one():
    tokenizer = qwen3_tokenizer()
    prompt = encode_prompt(tokenizer, [HI])
    text = "<think>\nHm.\n</think>\n\nParis.<|im_end|>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    reply = split_reply(tokenizer, prompt, ids)
    sampled = encode_sampled(prompt, ids, "stop", loss_mask="answer", num_thought_tokens=reply.num_thought_tokens)
    messages = [HI, {"role": "assistant", "content": text.removesuffix("<|im_end|>")}]
    rendered = encode_chat(tokenizer, messages, loss_mask="answer")
    assert sampled.labels == rendered.labels[: len(sampled.labels)]


def test_a_text_may_speak_of_the_tag():
    text = "sorry, write </think> there."
    assert split(chatml_tokenizer(), PLAIN, text) is None
    assert answer_of({"completion": text, "token_ids": [1]}) == text
    assert split(chatml_tokenizer(), PLAIN, "Red?\n</think>\n\nBlue.") == ("Red?", "Blue.", "Blue.")


@pytest.mark.parametrize("tags", [("<|START_THINKING|>", "<|END_THINKING|>"), ("<thought>", "</thought>")])
def test_other_tags_of_thoughts(tags):
    assert split(chatml_tokenizer(), PLAIN, f"{tags[0]}Red?{tags[1]}Blue.<|im_end|>") == ("Red?", "Blue.", "Blue.")


@pytest.mark.parametrize(
    ("make", "prompt", "expected"),
    [
        (harmony_tokenizer, "<|start|>user<|message|>So?<|end|><|start|>assistant", "<|channel|>final<|message|>"),
        (harmony_tokenizer, "<|start|>assistant<|channel|>final<|message|>", ""),
        (qwen3_tokenizer, "<|im_start|>assistant\n<think>\n", "\n</think>\n\n"),
        (qwen3_tokenizer, "<|im_start|>assistant\n<think>", "\n\n</think>\n\n"),
        (qwen3_tokenizer, "<|im_start|>assistant\n", ""),
    ],
)
def test_a_thought_that_a_prompt_opens_is_closed(make, prompt, expected):
    tokenizer = make()
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(end_of_thought(tokenizer, ids)) == expected
