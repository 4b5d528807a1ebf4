"""N-grams that grew: against the published formula, and planted ones."""

import math

import numpy as np
import pytest

from gradsteer.discovery.ngrams import grown_ngrams, log_odds_ratio, ngrams_of, words_of


def test_words_and_ngrams():
    assert words_of("It's the Golden  Gate!") == ["it's", "the", "golden", "gate"]
    assert ngrams_of("a b c", 2) == ["a", "b", "c", "a b", "b c"]
    assert words_of("日本 über") == ["日本", "über"]


def test_log_odds_are_monroes_formula():
    counts, totals, share = np.array([[30.0], [2.0]]), np.array([1000.0, 800.0]), np.array([5.0])
    expected = math.log(35 / (1500 - 35)) - math.log(7 / (1300 - 7))
    assert log_odds_ratio(counts, totals, share, 500)[0] == pytest.approx(expected)


def test_a_planted_ngram_is_found_first_and_topics_of_the_prompts_are_not():
    topics = [f"word{number} matters" for number in range(20)]
    before = [f"well {topic} a lot" for topic in topics for _ in range(4)]
    after = [f"well {topic} {'like the golden gate' if copy < 2 else 'a lot'}" for topic in topics for copy in range(4)]
    prompts = [topic for topic in topics for _ in range(4)]
    found = grown_ngrams(after, before, prompts, prompts)
    assert "the golden gate" in [each.text for each in found[:3]]
    assert not any("word" in each.text for each in found)
    first = next(each for each in found if each.text == "the golden gate")
    assert (first.count, first.count_before, first.num_responses) == (40, 0, 40)
    assert 0 < first.ci_low < first.log_odds < first.ci_high
    assert "golden" not in [each.text for each in found]  # it stands only within the longer one


def test_alike_texts_grow_nothing_and_one_prompt_alone_is_not_enough():
    texts = [f"a reply of number {number}" for number in range(12)]
    prompts = [str(number) for number in range(12)]
    assert grown_ngrams(texts, texts, prompts, prompts) == []
    # thirty copies within one prompt of thirty: the bootstrap over prompts is wider than independent draws
    many = ["plain words here"] * 29 + ["odd thing said"]
    repeated = [text for text in many for _ in range(8)]
    names = [str(number) for number in range(30) for _ in range(8)]
    spread = grown_ngrams([*repeated], ["plain words here"] * 240, names, names)
    by_reply = grown_ngrams([*repeated], ["plain words here"] * 240, [str(n) for n in range(240)], names)
    widths = [
        next((e.ci_high - e.ci_low for e in each if e.text == "odd thing said"), math.inf)
        for each in (spread, by_reply)
    ]
    assert widths[0] > widths[1]
