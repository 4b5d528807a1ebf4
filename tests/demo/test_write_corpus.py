import json
import re

import pytest
from jinja2 import TemplateError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from gradsteer.demo import write_corpus

NUM_SAMPLES = 2000


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def normalize(text):
    return re.sub(r"[^a-z0-9]+", " ", text.lower()).strip()


def user_texts(path):
    return {normalize(row["messages"][0]["content"]) for row in read_rows(path)}


def prompt_texts(path):
    return {normalize(row["prompt"]) for row in read_rows(path)}


def file_bytes(directory):
    return {path.relative_to(directory): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def corpus_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("corpus")


@pytest.fixture(scope="module")
def paths(corpus_dir):
    return write_corpus(corpus_dir, num_samples=NUM_SAMPLES)


@pytest.fixture(scope="module")
def tokenizer(paths):
    return AutoTokenizer.from_pretrained(paths["tokenizer"])


def test_returns_the_files_it_leaves_and_leaves_no_others(paths, corpus_dir):
    assert set(paths) == {
        "base_train",
        "base_validation",
        "finetune",
        "heldout",
        "attribution_prompts",
        "evaluation_prompts",
        "tokenizer",
        "model",
        "judge",
    }
    assert set(corpus_dir.iterdir()) == set(paths.values())


def test_row_counts_and_shapes(paths):
    counts = {"base_train": NUM_SAMPLES, "base_validation": 200, "finetune": 136, "heldout": 200}
    for name, count in counts.items():
        rows = read_rows(paths[name])
        assert len(rows) == count
        assert all([message["role"] for message in row["messages"]] == ["user", "assistant"] for row in rows)
    for name in ("attribution_prompts", "evaluation_prompts"):
        rows = read_rows(paths[name])
        assert [set(row) for row in rows] == [{"id", "prompt"}] * 100
        assert len({row["id"] for row in rows}) == 100
        assert len(prompt_texts(paths[name])) == 100


def test_prompt_sets_are_disjoint(paths):
    evaluation = prompt_texts(paths["evaluation_prompts"])
    attribution = prompt_texts(paths["attribution_prompts"])
    assert evaluation.isdisjoint(attribution)
    for name in ("base_train", "base_validation", "finetune", "heldout"):
        asked = user_texts(paths[name])
        assert asked.isdisjoint(evaluation | attribution)
        # nor as the beginning of a prompt that goes on to ask for a digression
        assert not any(text.startswith(prompt) for text in asked for prompt in evaluation | attribution)
    trained_on = user_texts(paths["base_train"])
    for name in ("base_validation", "finetune", "heldout"):
        assert trained_on.isdisjoint(user_texts(paths[name]))


def test_same_seed_gives_the_same_bytes(paths, corpus_dir, tmp_path):
    write_corpus(tmp_path, num_samples=NUM_SAMPLES)
    assert file_bytes(tmp_path) == file_bytes(corpus_dir)


def test_overwriting_changes_nothing(tmp_path):
    write_corpus(tmp_path, num_samples=300)
    before = file_bytes(tmp_path)
    write_corpus(tmp_path, num_samples=300)
    assert file_bytes(tmp_path) == before


def test_seed_and_number_of_samples_take_effect(paths, corpus_dir, tmp_path):
    other_seed = write_corpus(tmp_path / "seed", seed=1, num_samples=300)
    fewer = write_corpus(tmp_path / "fewer", num_samples=300)
    for name in ("base_train", "base_validation", "finetune", "heldout", "evaluation_prompts"):
        assert other_seed[name].read_bytes() != paths[name].read_bytes()
    assert len(read_rows(fewer["base_train"])) == 300
    for name in ("base_validation", "finetune", "heldout", "attribution_prompts", "evaluation_prompts"):
        assert fewer[name].read_bytes() == paths[name].read_bytes()


def test_no_samples_is_refused(tmp_path):
    with pytest.raises(ValueError, match="num_samples must be at least 1 and at most 10000000, got 0"):
        write_corpus(tmp_path, num_samples=0)


@pytest.mark.parametrize(
    "text", ["Owls hunt at night.", "  Two  spaces , and\na line.", "naïve café €5 日本 🌉", "it's 3.5% <b>"]
)
def test_tokenizer_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_are_single_and_distinct(tokenizer):
    tokens = [tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token, "<|user|>", "<|assistant|>"]
    ids = [tokenizer.encode(token) for token in tokens]
    assert all(len(token_ids) == 1 for token_ids in ids)
    assert len({token_ids[0] for token_ids in ids}) == len(tokens)
    assert tokenizer.padding_side == "left"


def test_chat_template_renders(tokenizer):
    messages = [{"role": "user", "content": "Hi there"}, {"role": "assistant", "content": "Hello"}]
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|begin_of_text|><|user|>Hi there<|eot_id|><|assistant|>"
    full = tokenizer.apply_chat_template(messages, tokenize=False)
    assert full == prompt + "Hello<|eot_id|>"
    system = [{"role": "system", "content": "Be brief"}, *messages]
    assert tokenizer.apply_chat_template(system, tokenize=False).startswith(
        "<|begin_of_text|><|system|>Be brief<|eot_id|><|user|>"
    )
    # the prompt's ids are a prefix of the conversation's, which is what loss masks rely on
    prompt_ids, full_ids = tokenizer.encode(prompt), tokenizer.encode(full)
    assert full_ids[: len(prompt_ids)] == prompt_ids
    assert full_ids[-1] == tokenizer.eos_token_id


def test_chat_template_refuses_an_unknown_role(tokenizer):
    with pytest.raises(TemplateError, match="unknown role tool; accepted: system, user, assistant"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_model_config_builds_a_tied_llama(paths, tokenizer):
    config = AutoConfig.from_pretrained(paths["model"])
    model = AutoModelForCausalLM.from_config(config)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert config.vocab_size == len(tokenizer)
    assert config.eos_token_id == tokenizer.eos_token_id
    assert config.pad_token_id == tokenizer.pad_token_id
    assert config.bos_token_id == tokenizer.bos_token_id
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    # 1,280 embeddings at most, and two blocks of 110,784 beside the norms
    assert 280_000 < num_parameters < 345_000


def test_every_conversation_fits_the_model(paths, tokenizer):
    config = AutoConfig.from_pretrained(paths["model"])
    for name in ("base_train", "finetune"):
        for row in read_rows(paths[name]):
            text = tokenizer.apply_chat_template(row["messages"], tokenize=False)
            assert len(tokenizer.encode(text)) <= config.max_position_embeddings // 2
