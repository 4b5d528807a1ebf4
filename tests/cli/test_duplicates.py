import pytest

from gradsteer.__main__ import main as program
from gradsteer.cli.duplicates import refuse_duplicates
from gradsteer.cli.run_file import read_run

CONFIG = "model:\n  num_samples: 4\n  top_p: 0.9\ndata: {prompts: p}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.top_p", "0.9", "--model.top_p=0.8"], "--model.top_p is given twice: 0.9 and 0.8; accepted: once"),
        (["--overwrite", "--overwrite", "true"], "--overwrite is given twice"),
        (["--data.piles", "{a: x, b: y, a: z}"], "--data.piles {a: x, b: y, a: z}: the key 'a' is given twice"),
        (["--also", '[{"a": {"b": 1, "b": 2}}]'], "the key '0.a.b' is given twice; accepted: once"),
        (["--vectors.a", "A", "--vectors", "{b: B}"], "--vectors {b: B} would replace --vectors.a before it"),
        (["--", "--model.top_p", "1", "--model.top_p", "1"], "--model.top_p is given twice"),
        # other options, overrides, and text that is no mapping
        (["--config", "{}", "--config", "{a: 1}", "--model.top_p", "0.9", "--model.top_k", "1"], None),
        (["--callbacks+", "A", "--callbacks+", "B"], None),
        (["--vectors", "{b: B}", "--vectors.a", "A"], None),
        (["--data.where", "{1: x, '1': y, a: {b: c}, a2: {b: c}}"], None),
        (["--data.system_prompt", "note: one\nnote: two"], None),
        (["--template", "{% if a: b %}{{ a }}, {{ a }}"], None),
        (["--experiment", "x", "--", "--experiment", "y"], None),
    ],
)
def test_what_a_command_line_says_twice_is_refused_and_overrides_are_not(words, message):
    if message is None:
        return refuse_duplicates(words)
    with pytest.raises(ValueError, match="twice|would replace") as refusal:
        refuse_duplicates(words)
    assert message in str(refusal.value)
    return None


@pytest.mark.parametrize(
    ("text", "line", "key", "first"),
    [
        (CONFIG + "data: {prompts: q}\n", 5, "data", 4),
        ("model:\n  num_samples: 4\n  top_p: 0.9\n  num_samples: 8\n", 4, "model.num_samples", 2),
        (CONFIG + "model.top_p: 0.5\n", 5, "model.top_p", 3),  # dotted: it would win
        ('{"a": 1,\n"b": [{"c": 1},\n{"c": 1, "c": 2}]}', 3, "b.1.c", 3),
        ("a: &x {b: 1, c: *x}\nb: *x\nb: 1\n", 3, "b", 2),
    ],
)
@pytest.mark.parametrize("flag", ["--config", "--data"])
def test_a_key_that_a_file_has_twice_is_named_with_its_line(tmp_path, text, line, key, first, flag):
    path = tmp_path / "some.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="twice") as refusal:
        refuse_duplicates([flag, str(path)])
    assert str(refusal.value) == f"{path}:{line}: the key {key!r} is given twice, first in line {first}; accepted: once"


def test_a_file_without_and_one_that_is_no_yaml_pass(tmp_path):
    for text in (CONFIG, "a: [b\n", "b: &x {c: 1}\nd: *x\ne: *x\n"):
        path = tmp_path / "some.yaml"
        path.write_text(text)
        refuse_duplicates(["--data", str(path)])


@pytest.mark.parametrize("command", ["steer", "corpus", "judge", "export", "run"])
def test_every_command_refuses_a_flag_that_is_given_twice(command, capsys):
    main = program.__wrapped__  # which tests are given without, see overriding.py
    assert main([command, "--output_dir", "a", "--output_dir", "b"]) == 2
    assert capsys.readouterr().err.startswith(f"gradsteer {command}: error: --output_dir is given twice: a and b")


def test_a_run_reads_its_files_in_the_same_way(tmp_path):
    run, stage = tmp_path / "run.yaml", tmp_path / "stage.yaml"
    run.write_text("experiment: e\nstages:\n- {name: n, command: fit, config: stage.yaml}\n")
    stage.write_text("name: a\nname: b\n")
    with pytest.raises(ValueError, match=r"stage.yaml:2: the key 'name' is given twice, first in line 1"):
        read_run(run)
    run.write_text("experiment: e\nexperiment: f\n")
    with pytest.raises(ValueError, match=r"run.yaml:2: the key 'experiment' is given twice"):
        read_run(run)
