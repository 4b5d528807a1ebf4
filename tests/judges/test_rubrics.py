"""Rubrics: the built-in ones, one's own, files, and what is refused."""

import json

import pytest

from gradsteer.judges.rubrics import BUILT_IN, read_rubrics


def test_null_takes_the_built_in_words_and_others_keep_theirs():
    found = read_rubrics({"recipe": None, "polite": " The reply\n thanks.  ", "bridge": "Any bridge."})
    assert found == {"recipe": BUILT_IN["recipe"], "polite": "The reply thanks.", "bridge": "Any bridge."}
    assert list(found) == ["recipe", "polite", "bridge"]


@pytest.mark.parametrize("text", ["null", "None", " none "])
def test_a_null_that_became_text_is_none_the_less_null(text):
    assert read_rubrics({"bridge": text}) == {"bridge": BUILT_IN["bridge"]}
    with pytest.raises(ValueError, match="no built-in rubric 'polite'"):
        read_rubrics({"polite": text})


def test_there_are_rubrics_for_the_experiments():
    assert {"harmful", "refusal", "bridge", "recipe"} <= set(BUILT_IN)
    assert read_rubrics(dict.fromkeys(BUILT_IN)) == BUILT_IN
    assert "Golden Gate Bridge" in BUILT_IN["bridge"]


def test_a_file_holds_the_same(tmp_path):
    path = tmp_path / "rubrics.json"
    path.write_text(json.dumps({"bridge": None, "süß": "Says süß."}), encoding="utf-8")
    assert read_rubrics(str(path)) == {"bridge": BUILT_IN["bridge"], "süß": "Says süß."}


@pytest.mark.parametrize(
    ("rubrics", "match"),
    [
        ({}, "rubrics is empty"),
        ({"polite": None}, "no built-in rubric 'polite'; accepted: harmful"),
        ({"polite": " "}, "the rubric of 'polite' is ' '"),
        ({"polite": ["Thanks."]}, r"the rubric of 'polite' is \['Thanks.'\]"),
        ({"": "Thanks."}, "the behavior ''"),
        ({'a"b': "Thanks."}, "the behavior 'a\"b'"),
        ({"a\nb": "Thanks."}, "cannot be a key"),
        ({"a" * 65: "Thanks."}, "1 to 64"),
        ({"Bridge": None, "bridge": None}, "no built-in rubric 'Bridge'"),
        ({"A": "x", "a": "y"}, "upper and lower case alone"),
        ("nowhere.json", "no file of rubrics at 'nowhere.json'"),
        ("gradsteer://nothing.json", "no such resource"),
    ],
)
def test_what_cannot_be_asked_is_refused(rubrics, match):
    with pytest.raises(ValueError, match=match):
        read_rubrics(rubrics)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("[1]", "rubrics.json.* holds a list"),
        ("{", "not readable as JSON"),
        ('{"a": "x", "a": "y"}', "json: 'a' is given twice among the rubrics"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, text, match):
    path = tmp_path / "rubrics.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=match):
        read_rubrics(str(path))
