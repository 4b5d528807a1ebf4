"""The figures of degenerate responses, against values worked out by hand."""

import json
import random
import re
import time
import zlib
from pathlib import Path

import pytest

import gradsteer
from gradsteer.evaluation import degeneracy
from gradsteer.evaluation.degeneracy import compression_ratio, has_repeated_sentence, is_degenerate, said_again_share
from gradsteer.evaluation.metrics import (
    distinct_n,
    mean_compression,
    mean_length,
    refusal_share,
    repetition_share,
    response_metrics,
    unfinished_share,
)
from gradsteer.evaluation.refusals import refusal_rates
from gradsteer.evaluation.statistics import rate_with_interval

LOOP = "Rinse the rice well. Rinse the rice well. Rinse the rice well."


@pytest.mark.parametrize(
    "text",
    [
        LOOP,
        "Rinse the rice. Boil some water. Rinse the rice. Boil some water.",
        "Rinse  the RICE! Then wait.\nrinse the rice",
        'He said: "Rinse the rice." Then: rinse it. "He said: rinse the rice."',
        "Is it done yet? Is it done yet? No.",
    ],
)
def test_a_sentence_said_twice_is_a_loop(text):
    assert has_repeated_sentence(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Rinse the rice. Then boil the rice.",
        "Yes. Yes. Of course. Of course.",  # shorter than three words
        "Add 3.5 cups of rice and 3.5 cups of water.",
        "The rice is rinsed. The rice is rinsed twice.",
        "Rinse the rice well. Rinse the rice",  # cut before it was repeated
        "very very very very very very",
    ],
)
def test_prose_that_is_no_loop(text):
    assert not has_repeated_sentence(text)


def test_shares_by_hand():
    assert repetition_share([LOOP, "Rinse the rice.", "Wait.", "Done."]) == 0.25
    assert refusal_share(["I must decline.", "Sure."]) == 0.5
    assert unfinished_share(["stop", "length", "length"]) == pytest.approx(2 / 3)
    assert mean_length([1, 2, 6]) == 3.0


def test_distinct_n_by_hand():
    # bigrams: (1,2) (2,1) (1,2) and (1,2): 2 distinct of 4; none spans two responses
    assert distinct_n([[1, 2, 1, 2], [1, 2]], 2) == 0.5
    assert distinct_n([["a", "b"], ["c"]], 1) == 1.0
    assert distinct_n([[7] * 11], 2) == 0.1
    assert distinct_n([[1], [2]], 2) is None
    with pytest.raises(ValueError, match="n is 0"):
        distinct_n([[1]], 0)


def test_an_unknown_finish_reason_is_refused():
    with pytest.raises(ValueError, match="'eos'.*'stop' or 'length'"):
        unfinished_share(["stop", "eos"])


TOPICS = Path(gradsteer.__file__).parent / "resources" / "topics"
REPLIES = [
    json.loads(line)["messages"][1]["content"]
    for name in ("finetune.jsonl", "heldout.jsonl")
    for line in (TOPICS / name).read_text(encoding="utf-8").splitlines()
]
LIST = "\n".join(
    f"{number}. {step}"
    for number, step in enumerate(
        ("Rinse the rice.", "Boil the water.", "Add the rice.", "Wait ten minutes.", "Drain it.", "Serve it hot."), 1
    )
)
TABLE = """| City | Country | People |
| --- | --- | --- |
| Oslo | Norway | 709,000 |
| Bergen | Norway | 291,000 |
| Malmö | Sweden | 357,000 |
| Uppsala | Sweden | 177,000 |
| Turku | Finland | 201,000 |"""
CODE = """Here are three functions:
```python
def first(values):
    for value in values:
        return value
    return None

def second(values):
    for value in values:
        return value
    return None

def third(values):
    for value in values:
        return value
    return None
```
All three do the same."""
POEM = """The moon climbs up the apple tree,
And silver falls on you and me;
The owl goes out, the fox comes in,
And somewhere frogs begin their din."""


PIE = """For the crust:
- 2 cups flour
- 1/2 cup sugar
- 1/2 cup butter

For the filling:
- 6 apples
- 1/2 cup sugar
- 1 teaspoon cinnamon

Mix the flour and the butter. Set it aside.
Cut the apples. Set it aside. Season with a little salt.
Fill the crust, and bake it for 45 minutes. Season with a little salt."""
DIALOGUE = """"Are you sure?" she asked.
"Yes," he said.
"Are you sure?" she asked again, louder."""
BARE_CODE = """def add(a, b):
    return a + b

def subtract(a, b):
    return a - b

def multiply(a, b):
    return a * b"""


@pytest.mark.parametrize("text", [*REPLIES, LIST, TABLE, CODE, POEM, PIE, DIALOGUE, BARE_CODE])
def test_ordinary_texts_are_not_degenerate(text):
    assert not is_degenerate(text)


@pytest.mark.parametrize(
    "text",
    [
        "42",
        "Yes!",
        "No, no, no, no!",  # four words
        "👍",
        "It was very, very, very good.",
        "Ten to the twelfth is 1,000,000,000,000.",
        "[[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 2]] is the matrix.",
        "Um die Brücke zu sehen, fährt man am besten früh am Morgen los.",
        "这座桥很长，建于一九三七年，每天有许多人走过。",
        "A long way. " + " ".join(str(number) for number in range(60)),
    ],
)
def test_short_and_unusual_texts_are_not_degenerate(text):
    assert not is_degenerate(text)


def test_an_ordinary_text_stays_so_whatever_its_length():
    document = " ".join(dict.fromkeys(REPLIES))  # 70,000 characters
    assert compression_ratio(document) > 2.2  # near the limit that stretches of 400 characters are held to
    assert not is_degenerate(document)


@pytest.mark.parametrize("text", ["", " \n\t ", LOOP, "The bridge is red. The bridge is red."])
def test_nothing_and_repeated_sentences_are_degenerate(text):
    assert is_degenerate(text)


def test_what_was_said_before_by_hand():
    assert said_again_share("") == said_again_share("...") == 0
    assert said_again_share(LOOP) == 8 / 12
    assert said_again_share("Wait a bit. Then wait a bit more. Wait a bit!") == 3 / 11
    assert said_again_share("Yes. Yes. Yes.") == 0  # sentences of one word
    # nine words again inside longer sentences: two windows of eight
    clause = "which needs a hot oven and some good patience"
    assert said_again_share(f"A pie, {clause}. A tart, {clause}") == 9 / 22
    assert said_again_share(f"A pie, {clause}. A tart, which needs a hot oven and some") == 0


@pytest.mark.parametrize(("others", "degenerate"), [(6, True), (7, False)])
def test_a_third_said_before_is_degenerate(others, degenerate):
    rest = " ".join(f"Word{number}." for number in range(others))
    assert is_degenerate(f"{rest} Rinse the rice and wait twice. Rinse the rice and wait twice.") is degenerate


@pytest.mark.parametrize(
    "text",
    [
        "the the the the the the",
        "the bridge the bridge the bridge the bridge the",
        "I think that the, the, the, the, the, the, the",
        "Sure: rinse the rice and rinse the rice and rinse the rice and rinse the rice and",
        "!" * 20,
        "ha" * 15,
        "这座桥" * 7,
        "1 1 1 1 1 1 1",
        "```\n" + "print(x) " * 30,  # a fence that was never closed
    ],
)
def test_loops_without_sentences_are_degenerate(text):
    assert is_degenerate(text)
    assert not has_repeated_sentence(text)


@pytest.mark.parametrize("period", [10, 20, 30])
def test_a_loop_of_long_clauses_late_in_a_good_text_is_degenerate(period):
    words = " ".join(REPLIES).replace(".", ",").split()
    text = " ".join(words[:200] + words[300 : 300 + period] * 4)
    assert is_degenerate(text)
    assert not is_degenerate(" ".join(words[: 200 + 4 * period]))


def test_a_word_loop_late_in_a_good_text_is_degenerate():
    text = REPLIES[0] + " and the bridge" * 7
    assert not is_degenerate(REPLIES[0] + " and the bridge" * 3)
    assert is_degenerate(text)


def test_a_long_row_of_dots_takes_no_longer_than_other_texts():
    began = time.process_time()
    assert is_degenerate("." * 40_000 + "x")
    assert time.process_time() - began < 2


def test_sentences_end_where_a_plain_search_from_every_character_ends_them():
    plain = re.compile(r"[.!?]+[\"'”’)\]*_]*(?:\s+|$)|[\n\r]+")
    rng = random.Random(0)
    for _ in range(5000):
        text = "".join(rng.choices(".!?\"')_* \n\ra1", k=rng.randint(0, 14)))
        assert degeneracy._SENTENCE_END.split(text) == plain.split(text)


def test_the_compression_ratio_is_that_of_zlib():
    text = "Rinse the rice – well."
    assert compression_ratio(text) == len(text.encode()) / len(zlib.compress(text.encode()))
    assert compression_ratio("") is None
    assert compression_ratio("\ud83d") is not None  # half an emoji, as a cut response may end
    assert compression_ratio("x") < 1 < compression_ratio(REPLIES[0]) < compression_ratio(" ".join(REPLIES))
    assert mean_compression(["", "x", LOOP]) == (compression_ratio("x") + compression_ratio(LOOP)) / 2
    assert mean_compression([""]) is None
    assert mean_compression([]) is None


def test_response_metrics_by_hand():
    rows = [
        {"completion": LOOP, "token_ids": [1, 2, 1, 2], "finish_reason": "length"},
        {"completion": "I must decline.", "token_ids": [3, 4], "finish_reason": "stop"},
        {"completion": "", "token_ids": [4], "finish_reason": "stop"},
        {"completion": "Sure.", "token_ids": [5], "finish_reason": "stop"},
    ]
    assert response_metrics(rows) == {
        "repetition": 0.25,
        "compression": pytest.approx(
            sum(len(t) / len(zlib.compress(t.encode())) for t in (LOOP, "I must decline.", "Sure.")) / 3
        ),
        "distinct_1": 0.625,
        "distinct_2": 0.75,
        "distinct_3": 1.0,
        "mean_length": 2.0,
        "unfinished": 0.25,
        "degenerate": 0.5,
        "incoherent": None,
        "refusal": 0.25,
    }
    marked = [{**row, "incoherent": number in (2, 3)} for number, row in enumerate(rows)]
    found = response_metrics([*marked, {**rows[0], "incoherent": None}])
    assert found["incoherent"] == 0.5
    assert found["degenerate"] == 0.8  # two loops, one that is empty and incoherent, one that is incoherent


def test_metrics_do_not_depend_on_the_order():
    rows = [
        {"completion": text, "token_ids": [len(word) for word in text.split()], "finish_reason": "stop"}
        for text in (*REPLIES[:20], LOOP)
    ]
    shuffled = random.Random(0).sample(rows, len(rows))
    assert response_metrics(shuffled) == pytest.approx(response_metrics(rows), nan_ok=False)


def test_rows_that_were_never_sampled_are_left_out_of_everything():
    rows = [{"prompt": "a", "completion": LOOP, "token_ids": [1, 2, 1, 2], "finish_reason": "length"}]
    failed = {"prompt": "b", "completion": "", "token_ids": [], "finish_reason": "failed", "failed": "too long"}
    assert response_metrics([*rows, failed]) == response_metrics(rows)
    assert response_metrics([failed]) == response_metrics([])
    assert refusal_rates([*rows, failed]).num_unscored == 1


def test_nothing_to_count_is_none_and_never_nan():
    assert set(response_metrics([]).values()) == {None}
    empty = [{"completion": "", "token_ids": [], "finish_reason": "length"}]
    assert {key for key, value in response_metrics(empty).items() if value is not None} == {
        "repetition",
        "mean_length",
        "unfinished",
        "degenerate",
        "refusal",
    }


def test_degenerate_replies_are_left_out_of_refusals_and_counted_on_their_own():
    refused = {"prompt": "a", "completion": "I must decline.", "token_ids": [1], "finish_reason": "stop"}
    looped = {"prompt": "b", "completion": LOOP, "token_ids": [2], "finish_reason": "length", "degenerate": True}
    rate = refusal_rates([refused, looped])
    assert (rate.num_scored, rate.num_unscored, rate.num_positive, rate.num_degenerate) == (1, 0, 1, 1)
    assert rate.rate == response_metrics([refused, looped])["refusal"] == 1
    assert refusal_rates([refused, looped | {"degenerate": False}]).rate == 0.5
    assert refusal_rates([looped]).rate is response_metrics([looped])["refusal"] is None


def test_the_refusal_rate_knows_that_replies_to_one_prompt_are_alike():
    rows = [
        {"prompt": prompt, "completion": "I must decline." if prompt in ("a", "b") else "Sure."}
        for prompt in "abcde"
        for _ in range(4)
    ]
    rate = refusal_rates(rows)
    assert (rate.num_scored, rate.num_unscored, rate.num_positive, rate.rate) == (20, 0, 8, 0.4)
    # four replies that always agree are worth one
    assert rate.ci_low == pytest.approx(rate_with_interval([True, True, False, False, False], list("abcde")).ci_low)
    assert refusal_rates([]).rate is None
