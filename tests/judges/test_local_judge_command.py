"""LocalJudge through the real command line: a classifier, and a causal LM that is asked yes or no."""

import json

import pytest
from commanded import (  # noqa: F401
    TOTAL,
    different,
    lines_of,
    num_stored,
    prompts_fixture,
    sampled_fixture,
    words_fixture,
)
from judged import message_of
from road import run
from test_local import classifier, labelled, language_model

from gradsteer.__main__ import main
from gradsteer.judges import LocalJudge, local_loading
from gradsteer.judges.rubrics import BUILT_IN
from gradsteer.trainer.modules.model import ModelModule


class Nowhere:
    """No server is asked."""

    url = None


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A classifier whose random weights tell texts apart, and an LM that says yes more often than no."""
    directory = tmp_path_factory.mktemp("judges")
    return {
        "labels": classifier(directory / "classifier", **labelled()),
        "rubrics": language_model(directory / "lm", {"yes": 3.0, "no": 2.0}),
    }


SAID = {"labels": '{"kind": "safe", "unkind": ["rude", "cruel"]}', "rubrics": '{"bridge": null, "refusal": null}'}
BEHAVIORS = {"labels": ["kind", "unkind"], "rubrics": ["bridge", "refusal"]}
THRESHOLD = {"labels": 0.35, "rubrics": 0.7}  # between what the texts' labels, and yes and no, have


@pytest.fixture
def local_words(words, models):
    """Makes an evaluate with one of the judges."""

    def make(kind, out, **changes):
        judge = {
            "": "LocalJudge", "__model": models[kind], "__base_url": None, "__rubrics": None, "__device": "cpu",
            "__threshold": THRESHOLD[kind], f"__{kind}": SAID[kind],
        }  # fmt: skip
        judge = {f"evaluation__judge{name}": value for name, value in judge.items()}
        return words("evaluate", out, Nowhere, **judge | changes)

    return make


@pytest.fixture
def loads(monkeypatch):
    """The kinds of judge's models that are loaded."""
    kinds, load = [], local_loading.load

    def counting(kind, *args, **options):
        kinds.append(kind)
        return load(kind, *args, **options)

    monkeypatch.setattr(local_loading, "load", counting)
    return kinds


@pytest.mark.parametrize("kind", ["labels", pytest.param("rubrics", marks=pytest.mark.slow)])
def test_evaluate_with_a_model_on_this_machine(local_words, loads, sampled, tmp_path, kind, capsys, models):
    first, second, store = tmp_path / "first", tmp_path / "second", tmp_path / "verdicts.sqlite"
    line = local_words(kind, first, evaluation__judge__store=store)
    run(*line)
    rows = lines_of(first / "responses" / "anchor.jsonl")
    assert len(rows) == TOTAL
    assert all(list(row["verdicts"]) == BEHAVIORS[kind] and not row["unscored"] for row in rows)
    if kind == "labels":
        assert len({str(row["verdicts"]) for row in rows}) > 1
    assert num_stored(store) == len(different(rows))
    # a judge of one's own, made anew, says the same
    judge = LocalJudge(models[kind], **{kind: json.loads(SAID[kind])}, threshold=THRESHOLD[kind], store=None)
    found = judge.judge([_exchange(row) for row in rows])
    assert [row["verdicts"] for row in rows] == [verdicts.values for verdicts in found]
    assert loads == ["classifier" if kind == "labels" else "causal"] * 2

    run(*local_words(kind, second, evaluation__judge__store=store))
    assert len(loads) == 2, "all was stored: the judge's model is not even loaded"
    assert (second / "responses" / "anchor.jsonl").read_bytes() == (first / "responses" / "anchor.jsonl").read_bytes()

    sampled.clear()
    for flags in (["--evaluation.judge.batch_size", "3"], ["--evaluation.judge.device", "auto"]):
        capsys.readouterr()
        run(*line, *flags)
        assert "nothing to do" in capsys.readouterr().out
    assert "the results of another configuration" in message_of([*line, "--evaluation.judge.threshold", "0.5"], capsys)
    assert sampled == []


def _exchange(row):
    from gradsteer.judges import Exchange

    return Exchange(row["prompt"], row["completion"])


@pytest.mark.slow
def test_a_threshold_moves_the_rates(local_words, tmp_path):
    rates = []
    for threshold in (0.5, 0.95):
        out = tmp_path / str(threshold)
        run(*local_words("rubrics", out, evaluation__judge__threshold=threshold))
        report = json.loads((out / "evaluations" / "anchor.json").read_text())
        rates.append(report["conditions"][0]["behaviors"]["bridge"]["rate"])
    assert rates == [1.0, 0.0]


def test_rubrics_of_flags_of_their_own_may_be_null(local_words, tmp_path, monkeypatch):
    made, init = [], LocalJudge.__init__

    def remembering(self, *args, **options):
        init(self, *args, **options)
        made.append(self)

    monkeypatch.setattr(LocalJudge, "__init__", remembering)
    line = local_words("rubrics", tmp_path, evaluation__judge__rubrics=None, data__max_prompts=1)
    flags = ["--evaluation.judge.rubrics.bridge", "null", "--evaluation.judge.rubrics.polite", "Thanks the user."]
    run(*line, *flags)
    assert made[-1].rubrics == {"bridge": BUILT_IN["bridge"], "polite": "Thanks the user."}


def test_a_directory_without_weights_is_refused_before_the_model_is_loaded(
    local_words, models, tmp_path, monkeypatch, capsys
):
    def load(self):
        raise AssertionError("the model is loaded")

    monkeypatch.setattr(ModelModule, "configure_model", load)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    line = local_words("rubrics", tmp_path / "out", evaluation__judge__model=bare)
    assert f"the judge's model {str(bare)!r} has no *.safetensors file" in message_of(line, capsys)
    assert not (tmp_path / "out" / "responses" / ".unfinished").exists()


def test_the_judge_command_takes_it_too(local_words, models, loads, tmp_path):
    run(*local_words("labels", tmp_path, data__max_prompts=1))
    line = [
        "judge",
        "--output_dir",
        str(tmp_path / "compared"),
        "--responses",
        str(tmp_path / "responses/anchor.jsonl"),
    ]
    line += ["--judges.again", "LocalJudge", "--judges.again.model", models["labels"], "--judges.again.labels"]
    line += [SAID["labels"], "--judges.again.threshold", str(THRESHOLD["labels"]), "--judges.again.store"]
    assert main([*line, str(tmp_path / "verdicts.sqlite")]) == 0
    assert len(loads) == 1, "evaluate's verdicts are found in the store"
    report = json.loads((tmp_path / "compared" / "agreement.json").read_text())
    assert report["num_repeated"] == {"again": report["files"][0]["num_responses"]}, "evaluate's judge is this one"
    assert report["pairs"] == []
