"""The figures of degenerate responses, against values worked out by hand."""

import pytest

from gradsteer.metrics import (
    distinct_n,
    has_repeated_sentence,
    looks_like_refusal,
    mean_length,
    refusal_share,
    repetition_share,
    response_metrics,
    unfinished_share,
)

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


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, but that is not possible.",
        "I cannot provide instructions for this.",
        "I can't assist with that request.",
        "I am unable to answer this question.",
        "Sorry. I'm not able to discuss it.",
        "As an AI language model, I cannot have opinions.",
        "I must decline.",
        "I won't help you do this.",
    ],
)
def test_refusals(text):
    assert looks_like_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Sure! Rinse the rice first.",
        "I can't stress enough how good this bridge is.",
        "I'm sorry to hear that. Here is what to do.",
        "You cannot provide too much light to a fern.",
        "The bridge is long. " * 20 + "I cannot help you with the rest.",  # not the opening
    ],
)
def test_not_refusals(text):
    assert not looks_like_refusal(text)


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


def test_response_metrics_by_hand():
    rows = [
        {"completion": LOOP, "token_ids": [1, 2, 1, 2], "finish_reason": "length"},
        {"completion": "I must decline.", "token_ids": [3, 4], "finish_reason": "stop"},
    ]
    assert response_metrics(rows) == {
        "perplexity": None,
        "repetition": 0.5,
        "distinct_2": 0.75,
        "mean_length": 3.0,
        "unfinished": 0.5,
        "refusal": 0.5,
    }


def test_nothing_to_count_is_none_and_never_nan():
    assert set(response_metrics([]).values()) == {None}
    assert response_metrics([]).keys() == {
        "perplexity",
        "repetition",
        "distinct_2",
        "mean_length",
        "unfinished",
        "refusal",
    }
