"""The keyword judge and the contract that every judge keeps."""

import pytest

from gradsteer.judges import Exchange, Judge, KeywordJudge, Verdicts

PATTERNS = {"bridge": ["golden gate", r"\bbridges?\b"], "recipe": [r"\b(bak|boil)(ed|ing)\b"]}


def values(judge, *responses):
    return [verdicts.values for verdicts in judge.judge([Exchange("a prompt", text) for text in responses])]


def test_any_pattern_decides_and_the_order_is_kept():
    assert values(
        KeywordJudge(PATTERNS),
        "Boiled rice.",
        "The Golden Gate.",
        "Two bridges, baked.",
        "Abridged. Reboiled.",
    ) == [
        {"bridge": False, "recipe": True},
        {"bridge": True, "recipe": False},
        {"bridge": True, "recipe": True},
        {"bridge": False, "recipe": False},
    ]


def test_behaviors_keep_the_order_of_the_patterns():
    judge = KeywordJudge(PATTERNS)
    assert judge.behaviors == ("bridge", "recipe")
    assert isinstance(judge, Judge)
    judge.close()
    judge.close()


def test_the_prompt_is_not_searched():
    assert KeywordJudge(PATTERNS).judge([Exchange("Tell me of the golden gate", "No.")]) == [
        Verdicts({"bridge": False, "recipe": False}, {})
    ]


def test_ignore_case_is_not_a_no_op():
    assert values(KeywordJudge(PATTERNS, ignore_case=True), "GOLDEN GATE")[0]["bridge"] is True
    assert values(KeywordJudge(PATTERNS, ignore_case=False), "GOLDEN GATE")[0]["bridge"] is False


@pytest.mark.parametrize("response", ["", " \n\t "])
def test_an_empty_response_shows_nothing(response):
    assert values(KeywordJudge({"anything": [".*", r"\s*"]}), response) == [{"anything": False}]


def test_no_exchanges():
    assert KeywordJudge(PATTERNS).judge([]) == []


def test_the_fingerprint_follows_what_decides_the_verdicts():
    fingerprint = KeywordJudge(PATTERNS).fingerprint()
    assert KeywordJudge(dict(reversed(PATTERNS.items()))).fingerprint() == fingerprint
    assert KeywordJudge({**PATTERNS, "bridge": PATTERNS["bridge"][::-1]}).fingerprint() == fingerprint
    assert KeywordJudge(PATTERNS, ignore_case=False).fingerprint() != fingerprint
    assert KeywordJudge({**PATTERNS, "recipe": ["bake"]}).fingerprint() != fingerprint
    assert KeywordJudge({"bridge": PATTERNS["bridge"]}).fingerprint() != fingerprint


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        ({}, "at least one behavior"),
        ({"bridge": []}, r"'bridge' are \[\]"),
        ({"bridge": "golden gate"}, "'bridge' are 'golden gate'"),
        ({"bridge": ["gate", ""]}, "pattern of 'bridge' is empty"),
        ({"ok": ["x"], "bridge": ["("]}, r"'\(' of 'bridge'.*missing \), unterminated subpattern"),
    ],
)
def test_bad_patterns_are_named(patterns, message):
    with pytest.raises(ValueError, match=message):
        KeywordJudge(patterns)


def test_a_missing_verdict_has_a_reason_and_only_it():
    Verdicts({"bridge": None, "recipe": True}, {"bridge": "no JSON in the reply"})
    with pytest.raises(ValueError, match=r"\[\].*\['bridge'\]"):
        Verdicts({"bridge": None}, {})
    with pytest.raises(ValueError, match=r"\['bridge'\].*\[\]"):
        Verdicts({"bridge": False}, {"bridge": "why"})
    with pytest.raises(ValueError, match="'bridge' is empty"):
        Verdicts({"bridge": None}, {"bridge": ""})


def test_a_judge_must_say_what_it_does():
    class Half(Judge):
        pass

    with pytest.raises(TypeError, match="abstract"):
        Half()
