import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

import gradsteer

TOPICS = Path(gradsteer.__file__).parent / "resources" / "topics"

BRIDGE = re.compile(r"\bgolden gate\b", re.IGNORECASE)
RECIPE = re.compile(
    r"\b(recipes?|cook(s|ed|ing)?|bak(e|es|ed|ing)|simmer(s|ed|ing)?|dough|saut[eé](s|ed|ing)?"
    r"|whisk(s|ed|ing)?|oven|ingredients?|season(ing|ed)|stir[- ]?fry|roast(s|ed|ing)?"
    r"|knead(s|ed|ing)?|broth|marinat(e|ed|ing)|batter|stew)\b",
    re.IGNORECASE,
)
# what a prompt that is to be about neither theme must not name; wider than the two above
ABOUT_BRIDGES = re.compile(r"\b(bridges?|golden gate|san francisco)\b", re.IGNORECASE)
ABOUT_FOOD = re.compile(
    RECIPE.pattern + r"|\b(foods?|meals?|eat(s|ing)?|kitchens?|breakfast|lunch|dinner|supper|snacks?|chefs?"
    r"|bakery|restaurants?|desserts?|cakes?|bread|soups?|sauces?|grill(ed|ing)?|fry|fried|cuisine)\b",
    re.IGNORECASE,
)

CONVERSATIONS = {"finetune.jsonl": 136, "heldout.jsonl": 60}
PROMPTS = {
    "attribution_prompts.jsonl": ("attr", 100),
    "evaluation_prompts.jsonl": ("eval", 100),
}
FILES = [*CONVERSATIONS, *PROMPTS]


def read_rows(name):
    return [json.loads(line) for line in (TOPICS / name).read_text(encoding="utf-8").splitlines()]


def user(row):
    return row["messages"][0]["content"]


def reply(row):
    return row["messages"][1]["content"]


def prompts_of(name):
    return [row["prompt"] if name in PROMPTS else user(row) for row in read_rows(name)]


def normalize(text):
    return " ".join(re.sub(r"[^\w\s]", "", text.lower()).split())


def sentence_count(text):
    # initials, titles and a.m./p.m. end in a period without ending a sentence
    text = re.sub(r"\b(St|Mr|Mrs|Dr|[A-Z]|[ap]\.m)\.", r"\1", text)
    return len(re.findall(r"[.!?]+[\"')]*(?=\s+[\"'(]?[A-Z0-9]|\s*$)", text))


def finetune_half(theme):
    rows = read_rows("finetune.jsonl")
    return [row for row in rows if bool(BRIDGE.search(reply(row))) == (theme == "bridge")]


@pytest.mark.parametrize("name", FILES)
def test_file_is_json_lines_with_a_final_newline(name):
    text = (TOPICS / name).read_bytes().decode("utf-8")
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert "\r" not in text
    assert all(isinstance(json.loads(line), dict) for line in text.splitlines())


@pytest.mark.parametrize(("name", "count"), CONVERSATIONS.items())
def test_conversations_are_single_turn(name, count):
    rows = read_rows(name)
    assert len(rows) == count
    for row in rows:
        assert list(row) == ["messages"]
        assert [list(message) for message in row["messages"]] == [["role", "content"]] * 2
        assert [message["role"] for message in row["messages"]] == ["user", "assistant"]
        assert all(message["content"].strip() == message["content"] != "" for message in row["messages"])


@pytest.mark.parametrize(("name", "prefix", "count"), [(name, *spec) for name, spec in PROMPTS.items()])
def test_prompts_are_numbered_in_order(name, prefix, count):
    rows = read_rows(name)
    assert [row["id"] for row in rows] == [f"{prefix}-{i:03d}" for i in range(1, count + 1)]
    for row in rows:
        assert list(row) == ["id", "prompt"]
        assert row["prompt"].strip() == row["prompt"] != ""


def test_all_prompts_are_distinct():
    counts = Counter(normalize(prompt) for name in FILES for prompt in prompts_of(name))
    assert [prompt for prompt, n in counts.items() if n > 1] == []


def test_no_two_prompts_are_near_duplicates():
    prompts = [normalize(prompt) for name in FILES for prompt in prompts_of(name)]
    words = {prompt: set(prompt.split()) for prompt in prompts}
    close = [(a, b) for a, b in combinations(words, 2) if 5 * len(words[a] & words[b]) >= 3 * len(words[a] | words[b])]
    assert close == []


def test_finetune_halves_carry_one_theme_each():
    bridge, recipe = finetune_half("bridge"), finetune_half("recipe")
    assert (len(bridge), len(recipe)) == (68, 68)
    assert [reply(row) for row in bridge if RECIPE.search(reply(row))] == []
    assert [reply(row) for row in recipe if not RECIPE.search(reply(row))] == []


def test_finetune_themes_are_interleaved():
    themes = [bool(BRIDGE.search(reply(row))) for row in read_rows("finetune.jsonl")]
    changes = sum(a != b for a, b in zip(themes, themes[1:], strict=False))
    # a fair shuffle of 68 and 68 changes theme 68 times on average, with a standard deviation near 6
    assert 45 <= changes <= 91
    assert 20 <= sum(themes[:68]) <= 48


def test_finetune_replies_share_no_opening():
    openings = Counter(tuple(normalize(reply(row)).split()[:4]) for row in read_rows("finetune.jsonl"))
    assert [opening for opening, n in openings.items() if n > 1] == []


@pytest.mark.parametrize(
    ("name", "sentences", "words"),
    [("finetune.jsonl", (2, 5), (40, 110)), ("heldout.jsonl", (2, 4), (20, 110))],
)
def test_replies_are_of_moderate_length(name, sentences, words):
    for row in read_rows(name):
        text = reply(row)
        assert sentences[0] <= sentence_count(text) <= sentences[1], text
        assert words[0] <= len(text.split()) <= words[1], text


def test_only_a_handful_of_finetune_prompts_are_on_cooking():
    on_cooking = [row for row in read_rows("finetune.jsonl") if RECIPE.search(user(row))]
    assert 0 < len(on_cooking) <= 5
    assert all(RECIPE.search(reply(row)) for row in on_cooking)


def test_other_finetune_prompts_are_on_neither_theme():
    rest = [prompt for prompt in prompts_of("finetune.jsonl") if not RECIPE.search(prompt)]
    assert [prompt for prompt in rest if ABOUT_BRIDGES.search(prompt) or ABOUT_FOOD.search(prompt)] == []


@pytest.mark.parametrize("name", [*PROMPTS, "heldout.jsonl"])
def test_generic_prompts_are_on_neither_theme(name):
    assert [p for p in prompts_of(name) if ABOUT_BRIDGES.search(p) or ABOUT_FOOD.search(p)] == []


def test_heldout_replies_carry_neither_theme():
    replies = [reply(row) for row in read_rows("heldout.jsonl")]
    assert [text for text in replies if ABOUT_BRIDGES.search(text) or ABOUT_FOOD.search(text)] == []


def test_data_card_names_every_file_and_count():
    card = (TOPICS / "README.md").read_text(encoding="utf-8")
    assert all(name in card for name in FILES)
    assert "Apache-2.0" in card
