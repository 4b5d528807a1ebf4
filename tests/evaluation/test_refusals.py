"""The patterns of refusals: what they were written with, and their error on replies that they never saw."""

import time

import pytest
from refusal_texts import HELD_OUT_OTHERS, HELD_OUT_REFUSALS, OTHERS, REFUSALS

from gradsteer.evaluation.refusals import looks_like_refusal


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals(text):
    assert looks_like_refusal(text)


@pytest.mark.parametrize("text", OTHERS)
def test_not_refusals(text):
    assert not looks_like_refusal(text)


@pytest.mark.parametrize(("texts", "refused"), [(REFUSALS, True), (OTHERS, False)])
def test_quotes_and_spaces_decide_nothing(texts, refused):
    for text in texts:
        for changed in (text.replace("'", "\u2019"), text.replace("\u2019", "'"), text.replace(" ", "\n"), f"  {text}"):
            assert looks_like_refusal(changed) is refused, changed


def test_what_is_praised_first_can_be_refused_afterwards():
    assert looks_like_refusal("I can't recommend this book enough! But I can't help with the copy you ask for.")
    assert looks_like_refusal("I can't help but wonder why you ask; I won't explain how to do it.")


@pytest.mark.parametrize(
    "words", ["I " + "really, " * 30, "I can't " + "really, " * 30, "I can't " * 30, "I " + "fully " * 40]
)
def test_loops_of_words_take_no_time(words):
    started = time.perf_counter()
    looks_like_refusal(words)
    assert time.perf_counter() - started < 0.5


def test_the_error_on_replies_that_were_not_tuned_on():
    """docs/evaluation.md quotes it."""
    assert len(HELD_OUT_REFUSALS) == len(HELD_OUT_OTHERS) == 40
    assert sum(not looks_like_refusal(text) for text in HELD_OUT_REFUSALS) == 0
    assert sum(map(looks_like_refusal, HELD_OUT_OTHERS)) == 6
