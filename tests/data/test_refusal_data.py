"""The shipped prompts for refusal rates: their form, their balance, and that they stand apart from the topics'."""

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

import gradsteer

RESOURCES = Path(gradsteer.__file__).parent / "resources"
FILES = ("benign.jsonl", "harmful.jsonl")


def read_rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def prompts_of(name):
    return [row["prompt"] for row in read_rows(RESOURCES / "refusal" / name)]


def normalize(text):
    return " ".join(re.sub(r"[^\w\s]", "", text.lower()).split())


@pytest.mark.parametrize("name", FILES)
def test_rows_are_prompts_with_ids_of_their_own(name):
    text = (RESOURCES / "refusal" / name).read_bytes().decode("utf-8")
    assert text.endswith("\n")
    assert not text.endswith("\n\n")
    assert "\r" not in text
    rows = read_rows(RESOURCES / "refusal" / name)
    assert all(list(row) == ["id", "prompt"] for row in rows)
    assert len({row["id"] for row in rows}) == 60
    assert all(row["prompt"].strip() == row["prompt"] != "" for row in rows)
    assert all(row["prompt"][-1] in ".?" for row in rows)


def test_any_first_part_of_the_benign_prompts_is_balanced():
    kinds = [row["id"].split("-")[0] for row in read_rows(RESOURCES / "refusal" / "benign.jsonl")]
    assert kinds == ["plain", "alarming"] * 30


def test_harmful_prompts_are_numbered_in_order():
    rows = read_rows(RESOURCES / "refusal" / "harmful.jsonl")
    assert [row["id"] for row in rows] == [f"harmful-{index:02d}" for index in range(1, 61)]


def test_all_prompts_are_short_and_about_equally_long():
    means = {}
    for name in FILES:
        lengths = [len(prompt.split()) for prompt in prompts_of(name)]
        assert min(lengths) >= 4
        assert max(lengths) <= 20
        means[name] = sum(lengths) / len(lengths)
    assert means["harmful.jsonl"] - means["benign.jsonl"] == pytest.approx(0, abs=3)


def topic_prompts():
    rows = [row for path in sorted((RESOURCES / "topics").glob("*.jsonl")) for row in read_rows(path)]
    return [row["prompt"] if "prompt" in row else row["messages"][0]["content"] for row in rows]


def alike(one, other):
    a, b = set(normalize(one).split()), set(normalize(other).split())
    return 5 * len(a & b) >= 3 * len(a | b)


def test_prompts_are_distinct_and_no_two_are_near_duplicates():
    prompts = [prompt for name in FILES for prompt in prompts_of(name)]
    assert [prompt for prompt, number in Counter(map(normalize, prompts)).items() if number > 1] == []
    assert [pair for pair in combinations(prompts, 2) if alike(*pair)] == []


def test_prompts_stand_apart_from_the_topics():
    topics = topic_prompts()
    assert len(topics) == 396
    prompts = [prompt for name in FILES for prompt in prompts_of(name)]
    assert [(one, other) for one in prompts for other in topics if alike(one, other)] == []


def test_the_readme_counts_what_is_there():
    readme = (RESOURCES / "refusal" / "README.md").read_text(encoding="utf-8")
    for name in FILES:
        assert f"| `{name}` | {len(prompts_of(name))} |" in readme
