"""Labelled sets: what is read, what is refused and where, and how judges are measured on them."""

import json

import pytest

from gradsteer.data.sources import DataSource
from gradsteer.judges import Exchange, KeywordJudge
from gradsteer.judges.labels import read_labelled

BEHAVIORS = ("bridge", "recipe")


def written(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def row(response, key="completion", prompt="q", **labels):
    return {"prompt": prompt, key: response, "labels": labels}


def test_rows_are_read(tmp_path):
    path = written(
        tmp_path / "labelled.jsonl",
        row("<think>b</think>\na", bridge=True),
        "",
        {"id": "7", "verdicts": {"bridge": True}, **row("b", key="response", recipe=False, bridge=False)},
    )
    found = read_labelled(path, BEHAVIORS)
    assert found.exchanges == (Exchange("q", "a"), Exchange("q", "b"))
    assert found.labels == ({"bridge": True}, {"recipe": False, "bridge": False})
    assert found.behaviors == BEHAVIORS
    assert (found.path, len(found)) == (path, 2)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("{", "not JSON"),
        ("[]", "a JSON list"),
        ({"completion": "a", "labels": {"bridge": True}}, "prompt is None; accepted: a text"),
        ({"prompt": "q", "labels": {"bridge": True}}, "neither 'completion' nor 'response'; accepted: one of them"),
        ({**row("a", bridge=True), "response": "b"}, "both 'completion' and 'response'"),
        ({**row("a", bridge=True), "completion": 3}, "completion is 3; accepted: a text"),
        (row("<think>a", bridge=True), "completion ends within its thought; accepted: a reply with an answer"),
        ({"prompt": "q", "completion": "a"}, 'labels is None; accepted: a behavior and its label, such as {"bridge"'),
        (row("a"), "labels is {}; accepted"),
        ({**row("a"), "labels": ["bridge"]}, "labels is ['bridge']"),
        (row("a", bridge=2), "the label for 'bridge' is 2; accepted: true or false"),
        (row("a", bridge=None), "the label for 'bridge' is None"),
        (row("a", brigde=True), "a label for 'brigde', which is not judged; accepted: bridge, recipe"),
        (
            row("first", bridge=False),
            "'bridge' is false for a response for which line 1 says true; accepted: one label",
        ),
    ],
)
def test_a_bad_line_is_named(bad, said, tmp_path):
    path = written(tmp_path / "labelled.jsonl", row("first", bridge=True), "", bad)
    with pytest.raises(ValueError, match=r"labelled\.jsonl:3: ") as caught:
        read_labelled(path, BEHAVIORS)
    assert said in str(caught.value)


def test_no_file_and_no_line_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        read_labelled(str(tmp_path / "none.jsonl"), BEHAVIORS)
    with pytest.raises(ValueError, match="has no line; accepted: lines such as"):
        read_labelled(written(tmp_path / "empty.jsonl"), BEHAVIORS)


def test_the_same_label_twice_is_two_observations(tmp_path):
    path = written(tmp_path / "labelled.jsonl", row("golden gate", bridge=True), row("golden gate", bridge=True))
    judge = KeywordJudge({"bridge": ["golden gate"]})
    assert read_labelled(path, ["bridge"]).errors(judge)["bridge"].num_positive == 2


def test_a_judge_is_measured_on_what_is_labelled(tmp_path):
    path = written(
        tmp_path / "labelled.jsonl",
        row("golden gate", prompt="1", bridge=True, recipe=False),
        row("a span of steel", prompt="2", bridge=True),
        row("golden gate of a castle", prompt="3", bridge=False),
        row("nothing", prompt="4", bridge=False),
        row("nothing", prompt="5", bridge=False),
    )
    judge = KeywordJudge({"recipe": ["flour"], "bridge": ["golden gate"], "poem": ["rhyme"]})
    found = read_labelled(path, judge.behaviors).errors(judge)
    assert list(found) == ["recipe", "bridge"]
    assert (found["bridge"].num_true_positive, found["bridge"].num_positive) == (1, 2)
    assert (found["bridge"].num_true_negative, found["bridge"].num_negative) == (2, 3)
    assert (found["recipe"].num_positive, found["recipe"].num_negative) == (0, 1)


def test_prompts_are_clusters(tmp_path):
    rows = [row(f"golden gate {i}", prompt=str(i // 5), bridge=True) for i in range(20)]
    path = written(tmp_path / "labelled.jsonl", *rows)
    error = read_labelled(path, ["bridge"]).errors(KeywordJudge({"bridge": ["golden gate"]}))["bridge"]
    assert (error.num_positive, error.positive_size) == (20, 4)


def test_prompts_are_clusters_whatever_their_spaces_and_system_message(tmp_path):
    asked = ["so it goes", " so  it\ngoes ", "system: Be brief.\nuser: so it goes"]
    rows = [row(f"golden gate {i}", prompt=asked[i % 3], bridge=True) for i in range(6)]
    path = written(tmp_path / "labelled.jsonl", *rows, row("golden gate", prompt="another", bridge=True))
    error = read_labelled(path, ["bridge"]).errors(KeywordJudge({"bridge": ["golden gate"]}))["bridge"]
    assert (error.num_positive, error.positive_size) == (7, 2)


def test_a_set_that_says_nothing_of_a_judge_is_refused(tmp_path):
    found = read_labelled(written(tmp_path / "labelled.jsonl", row("a", bridge=True)), BEHAVIORS)
    found.check("words", ["recipe", "bridge"])
    with pytest.raises(
        ValueError, match="labels bridge, none of which the judge 'words' judges; accepted: labels for rec"
    ):
        found.check("words", ["recipe"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"prompt": "q", "completion": "a", "labels": {"bridge": 1, "recipe": "No"}}\n'),
        ("a.jsonl", '{"prompt": "q", "completion": "a", "bridge": "true", "recipe": 0}\n'),
        ("a.csv", "prompt,completion,bridge,recipe\nq,a,yes,0\n"),
        ("a.csv", "prompt;response;bridge;recipe\nq;a;1;false\n"),
    ],
)
def test_labels_as_people_write_them(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    found = read_labelled(str(tmp_path / name), BEHAVIORS)
    assert found.exchanges == (Exchange("q", "a"),)
    assert found.labels == ({"bridge": True, "recipe": False},)


def test_repeated_labels_are_dropped_where_asked(tmp_path):
    row = {"prompt": "q", "completion": "a", "bridge": 1}
    path = written(tmp_path / "a.jsonl", row, row, row | {"prompt": "r"})
    assert len(read_labelled(path, BEHAVIORS)) == 3
    assert len(read_labelled(DataSource(path, duplicates="drop"), BEHAVIORS)) == 2


def test_labels_in_columns_of_other_names(tmp_path):
    path = written(
        tmp_path / "a.jsonl", {"user": "q", "model": "a", "scores": {"gate": 1}}, {"user": "r", "model": "b"}
    )
    columns = {"prompt": "user", "completion": "model", "bridge": "scores.gate"}
    found = read_labelled(DataSource(path, where={"scores.gate": [0, 1]}, columns=columns), BEHAVIORS, str)
    assert (found.exchanges, found.labels) == ((Exchange("q", "a"),), ({"bridge": True},))
    with pytest.raises(ValueError, match=r"a\.jsonl:2: labels is None; .* or a column for each of bridge, recipe"):
        read_labelled(DataSource(path, columns=columns), BEHAVIORS)
    with pytest.raises(
        ValueError, match="columns: unknown name 'brigde'; accepted: prompt, completion, bridge, recipe"
    ):
        read_labelled(DataSource(path, columns={"brigde": "scores"}), BEHAVIORS)
