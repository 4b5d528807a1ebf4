"""What a template makes of a conversation: the assistant's header, BOS, system turns, the user's variables."""

import pytest
from tokenizers import processors
from tokenizers_zoo import (
    CHATML_TEMPLATE,
    GEMMA_TEMPLATE,
    LLAMA3_TEMPLATE,
    QWEN3_TEMPLATE,
    chatml_tokenizer,
    gemma_tokenizer,
    gpt2_tokenizer,
    llama3_tokenizer,
    mistral_tokenizer,
    qwen3_tokenizer,
)

from gradsteer.data.chat import encode_chat, encode_prompt, ensure_chat_template, template_digest
from gradsteer.data.prompt_check import check_header, check_turns, complete_template, other_beginning, shown_prompt
from gradsteer.data.template_options import use_template_options

HI = {"role": "user", "content": "Hi"}
HELLO = {"role": "assistant", "content": "Hello!"}
SYSTEM = {"role": "system", "content": "Be brief."}
WITHOUT_SYSTEM = (
    "{%- for message in messages if message.role != 'system' %}"
    + CHATML_TEMPLATE.partition("{%- for message in messages %}")[2]
)
THINKING = QWEN3_TEMPLATE.replace(
    "{{- '<|im_start|>assistant\\n' }}{%- endif %}",
    "{{- '<|im_start|>assistant\\n' }}{%- if enable_thinking is defined and not enable_thinking %}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}",
)


def with_own_bos(tokenizer):
    """The tokenizer, which from now on puts its BOS token before every text, as Llama's and Gemma's do."""
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.bos_token_id)]
    )
    return tokenizer


def text_of(tokenizer, messages):
    return tokenizer.decode(encode_prompt(tokenizer, messages))


def num_bos(tokenizer, ids):
    """How many BOS tokens a text begins with, and how many it holds."""
    return next(i for i, token in enumerate(ids) if token != tokenizer.bos_token_id), ids.count(tokenizer.bos_token_id)


def plain_with_bos():
    tokenizer = gpt2_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    with_own_bos(tokenizer)
    with pytest.warns(UserWarning, match="no chat template"):
        ensure_chat_template(tokenizer)
    return tokenizer


def template_without_bos():
    tokenizer = llama3_tokenizer()
    tokenizer.chat_template = LLAMA3_TEMPLATE.removeprefix("{{- bos_token }}")
    with pytest.warns(UserWarning, match=r"no BOS token, .* <\|begin_of_text\|> is added"):
        complete_template(tokenizer)
    return tokenizer


@pytest.mark.parametrize(
    "make", [plain_with_bos, template_without_bos, llama3_tokenizer, lambda: with_own_bos(gemma_tokenizer())]
)
def test_bos_stands_once_where_the_tokenizer_puts_one_by_itself(make):
    tokenizer = make()
    complete_template(tokenizer)
    texts = [encode_prompt(tokenizer, [HI])]
    texts += [encode_chat(tokenizer, [HI, HELLO], loss_mask=mask).input_ids for mask in ("assistant", "full")]
    assert [num_bos(tokenizer, ids) for ids in texts] == [(1, 1)] * 3


def test_no_bos_where_the_tokenizer_puts_none():
    tokenizer = gpt2_tokenizer()
    with pytest.warns(UserWarning, match="no chat template"):
        ensure_chat_template(tokenizer)
    before = tokenizer.chat_template
    complete_template(tokenizer)
    assert tokenizer.chat_template == before
    assert text_of(tokenizer, [HI]) == "User: Hi\nAssistant:"


@pytest.mark.parametrize("count", [0, 2])
def test_a_text_with_another_number_of_bos_tokens_is_refused(count):
    tokenizer = llama3_tokenizer()
    tokenizer.chat_template = "{{- bos_token }}" * count + LLAMA3_TEMPLATE.removeprefix("{{- bos_token }}")
    for encode in (encode_prompt, lambda *a: encode_chat(a[0], [HI, HELLO], loss_mask="full", source=a[2])):
        with pytest.raises(ValueError, match=rf"d\.jsonl:1: the text begins with {count} of the BOS token"):
            encode(tokenizer, [HI], "d.jsonl:1")


def test_a_missing_header_is_added_as_the_assistants_turns_begin():
    tokenizer = chatml_tokenizer(CHATML_TEMPLATE.partition("{%- if add_generation_prompt")[0])
    with pytest.warns(UserWarning, match=r"no header .*'<\|im_start\|>assistant\\n', as .* is added"):
        complete_template(tokenizer)
    whole = chatml_tokenizer()
    for messages in ([HI], [SYSTEM, HI], [HI, HELLO, HI]):
        assert text_of(tokenizer, messages) == text_of(whole, messages)
    for mask in ("assistant", "full"):
        found, expected = (encode_chat(each, [HI, HELLO], loss_mask=mask) for each in (tokenizer, whole))
        assert found == expected


@pytest.mark.parametrize(
    "make", [chatml_tokenizer, qwen3_tokenizer, llama3_tokenizer, gemma_tokenizer, mistral_tokenizer]
)
def test_templates_that_leave_nothing_out_stay_as_they_are(make):
    tokenizer = make()
    before = template_digest(tokenizer)
    complete_template(tokenizer)
    check_header(tokenizer, [HI])
    assert template_digest(tokenizer) == before


def test_a_header_that_the_template_does_not_show_is_refused():
    template = "{% for m in messages %}{{ messages | length }}{{ '<|im_start|>' + m.role + m.content }}{% endfor %}"
    tokenizer = chatml_tokenizer(template)
    complete_template(tokenizer)
    with pytest.raises(ValueError, match=r"p\.jsonl: the chat template .* not write the header .* ends in '1.*userHi'"):
        check_header(tokenizer, [HI], "p.jsonl: ")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (WITHOUT_SYSTEM, "leaves the text of a system turn out; --data.system_role fold"),
        ("{{- messages[0].content }}" + CHATML_TEMPLATE, "writes a system turn 2 times; --data.system_role fold"),
        (GEMMA_TEMPLATE, "refuses turns of system, user.*: System role not supported; --data.system_role fold"),
    ],
)
def test_a_system_turn_stands_once_or_is_refused(template, message):
    tokenizer = chatml_tokenizer(template)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"p\.jsonl:3: the chat template .*" + message):
            encode_prompt(tokenizer, [SYSTEM, HI], "p.jsonl:3")
        with pytest.raises(ValueError, match=r"p\.jsonl:3: the chat template .*" + message):
            encode_chat(tokenizer, [SYSTEM, HI, HELLO], loss_mask="assistant", source="p.jsonl:3")


@pytest.mark.parametrize("make", [gemma_tokenizer, lambda: chatml_tokenizer(WITHOUT_SYSTEM)])
def test_a_system_turn_is_folded_into_the_users_first_one_where_asked(make):
    tokenizer = make()
    use_template_options(tokenizer, None, "fold")
    folded = [{"role": "user", "content": "Be brief.\n\nHi"}]
    assert text_of(tokenizer, [SYSTEM, HI]).count("Be brief.\n\nHi") == 1
    assert encode_prompt(tokenizer, [SYSTEM, HI]) == encode_prompt(tokenizer, folded)
    found = encode_chat(tokenizer, [SYSTEM, HI, HELLO], loss_mask="assistant")
    assert found == encode_chat(tokenizer, [*folded, HELLO], loss_mask="assistant")


def test_what_cannot_be_folded_is_refused():
    tokenizer = gemma_tokenizer()
    use_template_options(tokenizer, None, "fold")
    for turns in ([HI, SYSTEM, HI], [SYSTEM, HELLO, HI], [SYSTEM, SYSTEM, HI]):
        with pytest.raises(ValueError, match=r"d:1: data\.system_role fold .*the turns are "):
            encode_prompt(tokenizer, turns, "d:1")
    with pytest.raises(ValueError, match=r"data\.system_role is 'drop'; accepted: template, fold"):
        use_template_options(tokenizer, None, "drop")


def test_the_templates_variables_reach_prompts_and_chats():
    tokenizer, closed = chatml_tokenizer(THINKING), "<think>\n\n</think>\n\n"
    plain, before = text_of(tokenizer, [HI]), template_digest(tokenizer)
    use_template_options(tokenizer, {"enable_thinking": False})
    assert text_of(tokenizer, [HI]) == plain + closed
    assert template_digest(tokenizer) != before
    example = encode_chat(tokenizer, [HI, HELLO], loss_mask="assistant")
    learned = [label for label in example.labels if label != -100]
    assert tokenizer.decode(learned) == "Hello!<|im_end|>"  # the closed thought is the prompt's now
    for name in ("thinking_mode", "messages"):
        with pytest.raises(ValueError, match=f"data.template_kwargs has '{name}', which the chat template"):
            use_template_options(tokenizer, {name: False})


def test_training_turns_that_begin_otherwise_than_prompts_end_are_named():
    opened = chatml_tokenizer(CHATML_TEMPLATE.replace("assistant\\n' }}", "assistant\\n<think>\\n' }}"))
    assert "ends in" in other_beginning(opened, [HI, HELLO])
    for tokenizer in (
        chatml_tokenizer(),
        llama3_tokenizer(),
        gemma_tokenizer(),
        mistral_tokenizer(),
        qwen3_tokenizer(),
    ):
        assert other_beginning(tokenizer, [HI, HELLO]) is None


def test_a_prompt_is_shown_with_its_special_tokens_and_without_its_control_characters():
    tokenizer = chatml_tokenizer()
    ids = encode_prompt(tokenizer, [{"role": "user", "content": "Hi\x1b[31m " + "x" * 900}])
    shown = shown_prompt(tokenizer, ids)
    assert shown.startswith("'<|im_start|>system\\n")
    assert "\\x1b" in shown or "[...]" in shown
    assert len(shown) < 500
    assert shown.endswith(f"assistant\\n' ({len(ids)} tokens)")


def test_a_template_that_drops_earlier_turns_is_refused():
    tokenizer = chatml_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace("in messages", "in messages[-1:]")
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    with pytest.raises(ValueError, match="leaves the text of a user turn out; set another chat_template"):
        check_turns(tokenizer, turns)
    check_turns(tokenizer, turns[:1])
