import json

import pytest
import torch
from tokenizers import AddedToken, Tokenizer
from tokenizers_zoo import (
    CHATML_TEMPLATE,
    chatml_tokenizer,
    gemma_tokenizer,
    gpt2_tokenizer,
    llama3_tokenizer,
    mistral_tokenizer,
    qwen3_tokenizer,
)
from transformers import AutoTokenizer, ByT5Tokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from gradsteer.data.chat import (
    DEFAULT_CHAT_TEMPLATE,
    EncodedExample,
    collate,
    encode_chat,
    encode_prompt,
    encode_sampled,
    ensure_chat_template,
    template_digest,
    tokenizer_digest,
)


def plain_tokenizer(trim_offsets=False):
    tokenizer = gpt2_tokenizer(trim_offsets)
    tokenizer.chat_template = DEFAULT_CHAT_TEMPLATE
    return tokenizer


FAMILIES = {
    "llama3": llama3_tokenizer,
    "chatml": chatml_tokenizer,
    "qwen3": qwen3_tokenizer,
    "gemma": gemma_tokenizer,
    "mistral": mistral_tokenizer,
    "plain": plain_tokenizer,
    "plain, trimmed offsets": lambda: plain_tokenizer(trim_offsets=True),
}


@pytest.fixture(params=FAMILIES)
def tokenizer(request):
    return FAMILIES[request.param]()


def turns(*contents, system=None):
    """Alternating user and assistant turns."""
    messages = [
        {"role": "user" if i % 2 == 0 else "assistant", "content": content} for i, content in enumerate(contents)
    ]
    return ([{"role": "system", "content": system}] if system is not None else []) + messages


def labelled_runs(tokenizer, example):
    """The text of each run of neighbouring labelled tokens; a label is its own token's id."""
    assert len(example.labels) == len(example.input_ids)
    runs, current = [], []
    for token, label in zip(example.input_ids, example.labels, strict=True):
        assert label in (token, -100)
        if label != -100:
            current.append(token)
        elif current:
            runs.append(current)
            current = []
    return [tokenizer.decode(run, clean_up_tokenization_spaces=False) for run in [*runs, current] if run]


def encode_runs(tokenizer, messages):
    return labelled_runs(tokenizer, encode_chat(tokenizer, messages, loss_mask="assistant"))


# What each family's model must write for "Hello!" (an earlier turn) and "Paris is it." (the last).
TWO_TURNS = {
    "llama3": ["Hello!<|eot_id|>", "Paris is it.<|eot_id|>"],
    "chatml": ["Hello!<|im_end|>", "Paris is it.<|im_end|>"],
    "qwen3": ["Hello!<|im_end|>", "<think>\n\n</think>\n\nParis is it.<|im_end|>"],
    "gemma": ["Hello!<end_of_turn>", "Paris is it.<end_of_turn>"],
    "mistral": [" Hello! </s>", " Paris is it. </s>"],
    "plain": [" Hello!<|endoftext|>", " Paris is it.<|endoftext|>"],
    "plain, trimmed offsets": [" Hello!<|endoftext|>", " Paris is it.<|endoftext|>"],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_assistants_tokens_are_content_and_end_of_turn(family):
    tokenizer = FAMILIES[family]()
    messages = turns("Hi", "Hello!", "What is the capital of France?", "Paris is it.")
    assert encode_runs(tokenizer, messages) == TWO_TURNS[family]
    assert encode_runs(tokenizer, messages[:2]) == [TWO_TURNS[family][1].replace("Paris is it.", "Hello!")]


@pytest.mark.parametrize("family", ["llama3", "chatml", "qwen3", "plain"])
def test_a_system_message_is_not_learnt(family):
    tokenizer = FAMILIES[family]()
    messages = turns("Hi", "Hello!", "And?", "Paris is it.", system="You are brief. Hello!")
    assert encode_runs(tokenizer, messages) == TWO_TURNS[family]


def test_tokens_and_prompt_are_those_of_the_rendered_text(tokenizer):
    messages = turns("Hi 🌉", " Hello!", "And?", "Paris 🗼")
    example = encode_chat(tokenizer, messages, loss_mask="assistant")
    text = tokenizer.apply_chat_template(messages, tokenize=False, date_string="26 Jul 2024")
    assert tokenizer.decode(example.input_ids, clean_up_tokenization_spaces=False) == text
    # The labels take up exactly where sampling would: behind the prompt's ids.
    first = next(i for i, label in enumerate(example.labels) if label != -100)
    assert example.input_ids[:first] == encode_prompt(tokenizer, messages[:1])
    bos = tokenizer.bos_token_id if tokenizer.bos_token != tokenizer.eos_token else None
    assert example.input_ids.count(bos) == (0 if bos is None else 1)
    assert encode_prompt(tokenizer, messages[:1]).count(bos) == (0 if bos is None else 1)


# Not byte for byte what was given where the template strips: the template's output is what the model sees.
STRIPPING = {"llama3": str.strip, "gemma": str.strip, "mistral": str.strip}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "content",
    [
        "  Hello!  ",
        " \n\nHello!\n\n",
        "\tHello!\t\n ",
        "",
        "🌉",
        "über 🌁👩‍👩‍👧 naïve ☕️\u2028 日本",
        "Hi",  # the user's text
        "user\nHi",
        "assistant",
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHi",
        "User: Hi\nAssistant: Hi",
        "<",
        "a" * 300,
    ],
)
def test_contents_that_could_mislead(family, content):
    tokenizer = FAMILIES[family]()
    written = STRIPPING.get(family, str)(content)
    earlier, last = TWO_TURNS[family]
    expected = [earlier.replace("Hello!", written), last.replace("Paris is it.", written.lstrip("\n"))]
    if family != "qwen3":  # Qwen3 alone strips the line breaks behind the thought that it writes
        expected[1] = last.replace("Paris is it.", written)
    assert encode_runs(tokenizer, turns("Hi", content, "Hi", content)) == expected


def test_contents_that_repeat_each_other(tokenizer):
    same = encode_chat(tokenizer, turns("Hello!", "Hello!", "Hello!", "Hello!"), loss_mask="assistant")
    other = encode_chat(tokenizer, turns("Hello!", "Hello!", "Why?", "Hello!"), loss_mask="assistant")
    assert labelled_runs(tokenizer, same) == labelled_runs(tokenizer, other)
    assert len(labelled_runs(tokenizer, same)) == 2


def test_thoughts_that_the_template_drops_are_not_looked_for():
    messages = turns("Hi", "<think>\nGreet.\n</think>\n\nHello!", "And?", "<think>\nHm.\n</think>\n\nParis.")
    assert encode_runs(qwen3_tokenizer(), messages) == [
        "Hello!<|im_end|>",
        "<think>\nHm.\n</think>\n\nParis.<|im_end|>",
    ]


def test_a_generation_prompt_that_opens_a_thought():
    # DeepSeek's way: the prompt ends with more than what a finished turn is written with.
    template = CHATML_TEMPLATE.replace("assistant\\n' }}{%- endif", "assistant\\n<think>\\n' }}{%- endif")
    assert template != CHATML_TEMPLATE
    tokenizer = chatml_tokenizer(template)
    assert encode_runs(tokenizer, turns("Hi", "Hello!", "And?", "<Paris>")) == [
        "Hello!<|im_end|>",
        "<Paris><|im_end|>",
    ]


def test_a_template_that_ignores_add_generation_prompt():
    template = CHATML_TEMPLATE.split("{%- if add_generation_prompt %}")[0]
    assert encode_runs(chatml_tokenizer(template), turns("Hi", "Hello!", "And?", " Paris")) == [
        "Hello!<|im_end|>",
        " Paris<|im_end|>",
    ]


def test_the_assistant_may_open_and_may_not_have_the_last_word():
    tokenizer = chatml_tokenizer()
    messages = [{"role": "assistant", "content": "Hello!"}, *turns("Hi", "Paris", "And?")]
    assert encode_runs(tokenizer, messages) == ["Hello!<|im_end|>", "Paris<|im_end|>"]
    messages = [*turns("Hi", "One"), {"role": "assistant", "content": "Two"}]
    assert encode_runs(tokenizer, messages) == ["One<|im_end|>", "Two<|im_end|>"]


MARKED = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.role == 'assistant' %}{% generation %}BODY{% endgeneration %}{{- AFTER }}"
    "{%- else %}{{- message.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


@pytest.mark.parametrize(
    ("body", "after"),
    [
        ("{{- message.content + '<|im_end|>' }}", "'\\n'"),
        ("{{- message.content }}", "'<|im_end|>\\n'"),  # the end of turn left out
        ("{{- message.content + '<|im_end|>\\n' }}", "''"),  # what follows it taken in
    ],
)
def test_generation_marks(body, after):
    tokenizer = chatml_tokenizer(MARKED.replace("BODY", body).replace("AFTER", after))
    messages = turns("Hi", " Hello!", "And?", "Paris 🗼")
    assert encode_runs(tokenizer, messages) == [" Hello!<|im_end|>", "Paris 🗼<|im_end|>"]


def test_generation_marks_choose_the_turns():
    template = CHATML_TEMPLATE.replace(
        "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}",
        "{{- '<|im_start|>' + message.role + '\\n' }}{%- if message.role == 'assistant' and loop.last %}"
        "{% generation %}{{- message.content + '<|im_end|>' }}{% endgeneration %}"
        "{%- else %}{{- message.content + '<|im_end|>' }}{%- endif %}{{- '\\n' }}",
    )
    assert encode_runs(chatml_tokenizer(template), turns("Hi", "One", "And?", "Two")) == ["Two<|im_end|>"]


def test_generation_marks_narrow_the_content():
    template = MARKED.replace("{% generation %}BODY", "{{- '(Re)' }}{% generation %}{{- message.content }}")
    tokenizer = chatml_tokenizer(template.replace("AFTER", "'<|im_end|>\\n'"))
    assert encode_runs(tokenizer, turns("Hi", "Hello!")) == ["Hello!<|im_end|>"]


def test_a_header_token_that_swallows_white_space_stays_a_header():
    # Phi-3's added tokens take the white space behind them.
    tokenizer = chatml_tokenizer(
        "{% for message in messages %}{{ '<|' + message.role + '|>\\n' + message.content + '<|im_end|>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
    )
    tokenizer.add_tokens([AddedToken(f"<|{role}|>", special=True, rstrip=True) for role in ("user", "assistant")])
    assert encode_runs(tokenizer, turns("Hi", "  Hello!")) == ["Hello!<|im_end|>"]


def test_a_token_across_the_border_is_learnt():
    tokenizer = chatml_tokenizer()
    border = tokenizer.convert_tokens_to_ids("ĊĊ")
    example = encode_chat(tokenizer, turns("Hi", "\nHello!"), loss_mask="assistant")
    assert border in example.labels  # the header's line break and the content's became one token
    assert labelled_runs(tokenizer, example) == ["\n\nHello!<|im_end|>"]


def test_the_whole_is_learnt_but_for_the_first_token(tokenizer):
    example = encode_chat(tokenizer, turns("Hi", "Hello!"), loss_mask="full")
    assert example.labels == [-100, *example.input_ids[1:]]
    assert example.num_target_tokens == len(example.input_ids) - 1


def test_num_target_tokens_leaves_out_position_0():
    assert EncodedExample([5, 6, 7], [5, 6, -100]).num_target_tokens == 1


def test_truncation_keeps_the_left_end(tokenizer):
    whole = encode_chat(tokenizer, turns("Hi", "Hello! How can I help you today?"), loss_mask="assistant")
    first = next(i for i, label in enumerate(whole.labels) if label != -100)
    for max_length in (first + 1, first + 3, len(whole.labels), len(whole.labels) + 9):
        cut = encode_chat(
            tokenizer,
            turns("Hi", "Hello! How can I help you today?"),
            loss_mask="assistant",
            max_length=max_length,
        )
        assert cut == EncodedExample(whole.input_ids[:max_length], whole.labels[:max_length])
    for max_length in (1, first):
        messages = turns("Hi", "Hello! How can I help you today?")
        assert encode_chat(tokenizer, messages, loss_mask="assistant", max_length=max_length) is None
    assert encode_chat(tokenizer, turns("Hi", "Hello!"), loss_mask="full", max_length=1) is None


def test_the_default_template_is_asked_for_and_announced(tmp_path):
    tokenizer = gpt2_tokenizer()
    with pytest.raises(ValueError, match=r"data\.jsonl:3: .*no chat template.*ensure_chat_template"):
        encode_chat(tokenizer, turns("Hi", "Hello!"), loss_mask="full", source="data.jsonl:3")
    with pytest.raises(ValueError, match="no chat template"):
        encode_prompt(tokenizer, turns("Hi"))
    with pytest.warns(UserWarning, match=r"no chat template; using plain .* ended by <\|endoftext\|>"):
        assert ensure_chat_template(tokenizer)
    assert not ensure_chat_template(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == DEFAULT_CHAT_TEMPLATE
    text = tokenizer.decode(encode_prompt(tokenizer, turns("Hi", "Hello!", "And?", system="Be brief.")))
    assert text == "System: Be brief.\nUser: Hi\nAssistant: Hello!<|endoftext|>\nUser: And?\nAssistant:"
    chatml = chatml_tokenizer()
    assert not ensure_chat_template(chatml)
    assert chatml.chat_template == CHATML_TEMPLATE


def test_the_default_template_needs_an_end_of_sequence_token():
    tokenizer = gpt2_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="has no eos_token"):
        ensure_chat_template(tokenizer)


TEMPLATE_WITHOUT_END = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
TEMPLATE_WITHOUT_ANSWERS = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
TEMPLATE_WRITING_TWICE = "{% for m in messages %}{{ m.content + m.content + eos_token }}{% endfor %}"
TEMPLATE_WITH_LENGTHS = "{% for m in messages %}{{ m.content + eos_token }}{{ m.content | length }}{% endfor %}"
TEMPLATE_OF_CONTEXT = (
    "{{ messages | length }}{{ messages[-1].content | length }}"
    "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (TEMPLATE_WITHOUT_END, r"writes '\\n' after assistant turn 1, .*register its end-of-turn token"),
        (TEMPLATE_WITHOUT_ANSWERS, "assistant turn 1: it writes the content 0 times; expected once"),
        (TEMPLATE_WRITING_TWICE, "assistant turn 1: it writes the content 2 times; expected once"),
        (TEMPLATE_WITH_LENGTHS, "what it writes after the turn depends on its content, 'Hello!'"),
        (TEMPLATE_OF_CONTEXT, "it renders the preceding turns differently once the turn is there"),
    ],
)
def test_a_template_that_does_not_tell_the_assistants_tokens_is_refused(template, message):
    tokenizer = chatml_tokenizer(template)
    with pytest.raises(ValueError, match=r"data\.jsonl:3: the chat template .*" + message):
        encode_chat(tokenizer, turns("Hi", "Hello!"), loss_mask="assistant", source="data.jsonl:3")
    assert encode_chat(tokenizer, turns("Hi", "Hello!"), loss_mask="full") is not None


def test_messages_that_the_template_refuses():
    tokenizer = gemma_tokenizer()
    with pytest.raises(ValueError, match=r"d\.jsonl:1: .* refuses turns of system, user, assistant: System role"):
        encode_chat(tokenizer, turns("Hi", "Hello!", system="S"), loss_mask="assistant", source="d.jsonl:1")
    with pytest.raises(ValueError, match=r"p\.jsonl:1: .* refuses turns of system, user: System role not"):
        encode_prompt(tokenizer, turns("Hi", system="S"), source="p.jsonl:1")
    with pytest.raises(ValueError, match="must alternate"):
        encode_chat(tokenizer, turns("Hi", "Hello!")[1:], loss_mask="assistant")


def test_what_else_is_refused():
    tokenizer = chatml_tokenizer()
    with pytest.raises(ValueError, match="loss_mask is 'all'; accepted: assistant, answer, full"):
        encode_chat(tokenizer, turns("Hi", "Hello!"), loss_mask="all")
    with pytest.raises(ValueError, match="max_length is 0; expected at least 1"):
        encode_chat(tokenizer, turns("Hi", "Hello!"), loss_mask="full", max_length=0)
    with pytest.raises(ValueError, match="no token to learn: loss_mask='assistant' on turns of user"):
        encode_chat(tokenizer, turns("Hi"), loss_mask="assistant")
    with pytest.raises(ValueError, match="no messages"):
        encode_chat(tokenizer, [], loss_mask="full")


def test_the_date_in_a_prompt_is_the_same_every_day():
    text = llama3_tokenizer().decode(encode_prompt(llama3_tokenizer(), turns("Hi")))
    assert "Today Date: 26 Jul 2024" in text


@pytest.mark.parametrize("finish_reason", ["stop", "length"])
def test_a_sampled_response_keeps_its_ids(finish_reason):
    tokenizer = chatml_tokenizer()
    prompt = encode_prompt(tokenizer, turns("Hi"))
    end = [tokenizer.eos_token_id] if finish_reason == "stop" else []
    # "Hel" + "lo": ids that tokenising the text again would not give
    sampled = [*tokenizer.convert_tokens_to_ids(["H", "e", "l", "l", "o"]), *end]
    example = encode_sampled(prompt, sampled, finish_reason, loss_mask="assistant")
    assert example.input_ids == prompt + sampled
    assert example.labels == [-100] * len(prompt) + sampled
    assert example.num_target_tokens == len(sampled)
    full = encode_sampled(prompt, sampled, finish_reason, loss_mask="full")
    assert full.labels == [-100, *example.input_ids[1:]]


def test_a_rendered_reply_equals_the_same_reply_sampled(tokenizer):
    messages = turns("Hi", "Hello! How can I help you today?")
    rendered = encode_chat(tokenizer, messages, loss_mask="assistant")
    prompt = encode_prompt(tokenizer, messages[:1])
    reply = [label for label in rendered.labels if label != -100]
    sampled = encode_sampled(prompt, reply, "stop", loss_mask="assistant")
    assert sampled.labels == rendered.labels[: len(sampled.labels)]
    assert sampled.input_ids == rendered.input_ids[: len(sampled.labels)]


def test_a_sampled_response_is_checked():
    with pytest.raises(ValueError, match="token_ids is empty"):
        encode_sampled([1], [], "length", loss_mask="assistant")
    with pytest.raises(ValueError, match="finish_reason is 'eos'; accepted: stop, length"):
        encode_sampled([1], [2], "eos", loss_mask="assistant")
    with pytest.raises(ValueError, match="loss_mask is 'none'"):
        encode_sampled([1], [2], "stop", loss_mask="none")
    assert encode_sampled([], [2, 3], "stop", loss_mask="assistant").labels == [-100, 3]


def test_the_tokenizer_digest_survives_saving_and_use(tokenizer, tmp_path):
    digest = tokenizer_digest(tokenizer)
    assert len(digest) == 16
    assert int(digest, 16) >= 0
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    padded = tokenizer_digest(tokenizer)
    tokenizer(["Hi", "Hello there"], padding=True, truncation=True, max_length=4)
    assert tokenizer_digest(tokenizer) == padded
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer_digest(loaded) == padded
    assert template_digest(loaded) == template_digest(tokenizer)


def test_the_digest_tells_the_order_of_merges():
    tokenizer = chatml_tokenizer()
    digest = tokenizer_digest(tokenizer)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend["model"]["merges"].reverse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(backend)),
        eos_token=tokenizer.eos_token,
        pad_token=tokenizer.pad_token,
        chat_template=tokenizer.chat_template,
    )
    assert tokenizer.get_vocab() == chatml_tokenizer().get_vocab()
    assert tokenizer_digest(tokenizer) != digest


def test_the_digests_tell_tokenizers_apart():
    digests = {tokenizer_digest(make()) for name, make in FAMILIES.items() if "trimmed" not in name}
    assert len(digests) == len(FAMILIES) - 1
    one, other, added = chatml_tokenizer(), chatml_tokenizer(CHATML_TEMPLATE + " "), chatml_tokenizer()
    added.add_tokens(["bridge"])
    assert len({tokenizer_digest(one), tokenizer_digest(other), tokenizer_digest(added)}) == 3
    assert template_digest(one) == template_digest(added) != template_digest(other)
    assert tokenizer_digest(one) == tokenizer_digest(chatml_tokenizer())


@pytest.mark.parametrize("side", ["left", "right"])
def test_collate(side):
    examples = [EncodedExample([1, 2, 3], [-100, 2, 3]), EncodedExample([4], [-100])]
    batch = collate(examples, pad_token_id=9, side=side)
    padded = {"left": [9, 9, 4], "right": [4, 9, 9]}[side]
    assert batch["input_ids"].tolist() == [[1, 2, 3], padded]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [int(token == 4) for token in padded]]
    assert batch["labels"].tolist() == [[-100, 2, 3], [-100] * 3]
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_padding_hides_a_pad_token_that_is_also_the_end_of_turn(tokenizer):
    examples = [
        encode_chat(tokenizer, turns("Hi", content), loss_mask="assistant")
        for content in ("Hello!", "Hello! How can I help you today?")
    ]
    for side in ("left", "right"):
        batch = collate(examples, pad_token_id=tokenizer.eos_token_id, side=side)
        for row, example in enumerate(examples):
            real = batch["attention_mask"][row].bool()
            assert batch["labels"][row][real].tolist() == example.labels
            assert batch["input_ids"][row][real].tolist() == example.input_ids
            assert (batch["labels"][row][~real] == -100).all()


def test_the_padding_side_does_not_change_the_loss():
    torch.manual_seed(0)
    tokenizer = chatml_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = LlamaForCausalLM(config).double().eval()
    examples = [
        encode_chat(tokenizer, turns("Hi", content), loss_mask="assistant")
        for content in ("Hello!", "Hello! How can I help you today?")
    ]
    losses = []
    for side in ("left", "right"):
        batch = collate(examples, tokenizer.pad_token_id, side)
        labels = batch.pop("labels")[:, 1:].flatten()
        with torch.no_grad():  # the model's own loss would be float32
            logits = model(**batch).logits[:, :-1].flatten(0, 1)
        losses.append(torch.nn.functional.cross_entropy(logits, labels).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


def test_collate_is_checked():
    with pytest.raises(ValueError, match="examples is empty"):
        collate([], 0)
    with pytest.raises(ValueError, match="side is 'top'; accepted: left, right"):
        collate([EncodedExample([1], [-100])], 0, "top")


def test_a_tokenizer_that_cannot_say_where_its_tokens_stand_is_refused():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(ValueError, match=r"x\.jsonl:1: ByT5Tokenizer is not a fast tokenizer"):
        encode_chat(ByT5Tokenizer(), turns, loss_mask="assistant", source="x.jsonl:1")
