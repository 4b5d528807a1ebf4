"""Patterns: found where Python's `re` finds them, and never longer than their time."""

import random
import re
import threading
import time

import pytest

from gradsteer.judges import Exchange, HybridJudge, KeywordJudge, patterns
from gradsteer.judges.patterns import Pattern, SlowPatternError

SLOW = r"(a|aa)+$"  # 2 ** 60 ways
LONG = "a" * 60 + "b"


@pytest.fixture
def hurried(monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.05)


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        (r"frac{d}", ["frac{d}", "frac", "fracd"]),
        (r"a{e}|b{i<=1}|c{}|{d}|e{2|{", ["a", "a{e}", "b", "c", "c{}", "d", "{d}", "e{2", "{"]),
        (r"x{2}y{1,}z{,2}w{,}!", ["xxyzzw!", "xxyzzzw!", "xy!", "xxy!"]),
        (r"\{a\}\N{DIGIT ONE}{2}", ["{a}11", "{a}1", "a11"]),
        (r"[a[:b:]c]", ["a", "[", ":", "c]", "b]", "d"]),
        (r"[]{x][^]y]", ["]z", "{z", "xz", "]]", "xy"]),
        (r"[\]{]+\[[\\]", [r"]{[" + "\\", "]["]),
        ("(?x) a [ #b] # a set [ and { in a comment\n {2} \\# ", ["a##", "a #", "a  #", "abb#"]),
        (r"(?#a [ comment){", ["{", "["]),
        (r"(?i)straSSe|\bgate\b|(?-i:ONE)", ["STRASSE", "straße", "Gate", "gates", "one", "ONE"]),
        (r"(?P<q>['\"])x(?P=q)|(?<!n)ot(?=e)|(y)?z(?(2)1|2)|(?>a+)b|c++d",
         ["'x'", "'x\"", "ote", "note", "yz1", "z2", "aab", "cd"]),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:Possible nested set:FutureWarning")
def test_what_other_libraries_read_otherwise_is_read_as_re_does(pattern, texts):
    for text in texts:
        expected, found = re.search(pattern, text), Pattern("a", pattern).search(text)
        assert (found and found.span()) == (expected and expected.span()), text


@pytest.mark.filterwarnings("ignore:Possible:FutureWarning")
def test_random_patterns_find_what_re_finds():
    draw = random.Random(0)
    parts = ["a", "b", ".", "\\w", "\\b", "\\s", "[ab]", "[^a]", "{", "}", "{2}", "{1,2}", "{e}", "[[:a:]]", "[]b]",
             "(a|b)", "*", "+?", "|", "^", "$", "\\{", "é", "K", "(?i:k)", "(?=a)", "-", ","]  # fmt: skip
    num_compared = 0
    for _ in range(3000):
        pattern = "".join(draw.choices(parts, k=draw.randint(1, 5)))
        text = "".join(draw.choices("ab{}2e[]: \nkKéÉ-,", k=draw.randint(0, 12)))
        ignore_case = draw.random() < 0.5
        try:
            expected = re.search(pattern, text, re.IGNORECASE if ignore_case else 0)
        except re.error:
            with pytest.raises(ValueError, match="is no regular expression"):
                Pattern("a", pattern, ignore_case)
            continue
        found = Pattern("a", pattern, ignore_case).search(text)
        assert (found and found.span()) == (expected and expected.span()), (pattern, text)
        num_compared += expected is not None
    assert num_compared > 500


def test_most_slow_patterns_are_not(hurried):
    words = "word " * 60
    assert Pattern("a", r"(\w+\s*)+bridge!").search(words) is None
    assert Pattern("a", r"(\w+\s*)+bridge!").search(f"{words}bridge!").end() == 307
    assert Pattern("a", r"(a+)+$").search(LONG) is None


def test_a_pattern_that_takes_too_long_is_named_and_the_others_are_searched(hurried):
    judge = KeywordJudge({"slow": [SLOW], "either": [SLOW, "b"], "other": ["a"]})
    began = time.monotonic()
    first, second, third = judge.judge([Exchange("p", text) for text in (LONG, "aaa", "")])
    assert time.monotonic() - began < 10
    assert first.values == {"slow": None, "either": True, "other": True}
    assert first.unscored == {"slow": "the pattern '(a|aa)+$' takes more than 0.05 s on it"}
    assert second.values == {"slow": True, "either": True, "other": True}
    assert third.values == {"slow": False, "either": False, "other": False}


def test_the_time_is_limited_in_another_thread_too_and_this_one_goes_on(hurried):
    raised = []

    def search():
        with pytest.raises(SlowPatternError):
            Pattern("a", SLOW).search(LONG)
        raised.append(True)

    thread = threading.Thread(target=search)
    thread.start()
    num_steps = 0
    while thread.is_alive():
        time.sleep(0.001)
        num_steps += 1
    assert raised
    assert num_steps > 3


def test_a_pattern_that_takes_too_long_for_all_stops_the_run_with_its_name(monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.001)
    judge = KeywordJudge({"slow": [SLOW]})
    asked = [Exchange("p", LONG)] * 15
    for _ in range(2):  # in a row, over all calls
        assert all(each.unscored for each in judge.judge(asked))
        judge.judge([Exchange("p", "a")])
    with pytest.raises(ValueError, match=r"'slow': the pattern '\(a\|aa\)\+\$' takes .* 16 responses in a row"):
        judge.judge([*asked, *asked])


def test_where_a_pattern_takes_too_long_the_other_judge_is_asked(hurried):
    judge = HybridJudge({"a": [SLOW]}, KeywordJudge({"a": ["b"]}))
    assert judge.judge([Exchange("p", LONG)])[0].values == {"a": True}


def test_letters_are_told_apart_as_unicode_has_it():
    assert not Pattern("a", r"\bहिन्द\b").search("हिन्दी")  # its last sign is a vowel's
    assert Pattern("a", r"\bहिन्दी\b").search("यह हिन्दी है")


def test_a_repeat_that_no_number_holds_is_no_pattern():
    with pytest.raises(ValueError, match="is no regular expression"):
        Pattern("a", "a{99999999999999999999}")
