"""One command at a time: the locks of steer's conditions and of its report."""

import json

import pytest
from filelock import FileLock
from judged import message_of, rows_of, steer_words
from road import run


@pytest.mark.parametrize(
    ("file", "said"), [("@report", "the report"), ("anchor", "condition 'anchor'"), ("another", None)]
)
def test_two_steers_of_one_directory_collide(judged, tmp_path, capsys, file, said):
    locks = tmp_path / "responses" / ".locks"
    locks.mkdir(parents=True)
    words = steer_words(judged, tmp_path)
    with FileLock(locks / f"{file}.lock"):
        if said is None:
            run(*words)
        else:
            assert f"another command is at work on {said} in" in message_of(words, capsys)
            assert not (tmp_path / "results.json").exists()


def test_an_evaluation_beside_a_steer_takes_no_lock_of_the_report(judged, tmp_path):
    locks = tmp_path / "responses" / ".locks"
    locks.mkdir(parents=True)
    patterns = json.dumps({"a": ["a"]})
    with FileLock(locks / "@report.lock"):
        run(
            "evaluate", "--model.model_name_or_path", judged.anchor, "--output_dir", tmp_path, "--trainer.logger",
            "false", "--name", "results", "--data.prompts", judged.prompts, "--data.max_prompts", 2,
            "--model.max_new_tokens", 2, "--evaluation.judge", "KeywordJudge", "--evaluation.judge.patterns", patterns,
        )  # fmt: skip
    assert rows_of(tmp_path / "evaluations" / "results.json")
