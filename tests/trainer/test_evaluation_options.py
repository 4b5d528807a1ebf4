"""The options of evaluate that a sceptic asks for, through the real command line, each against an oracle."""

import csv
import json
import sys
from collections import Counter

import pytest
from filelock import FileLock
from judged import PATTERNS, lines_of, message_of, words_of
from road import QUIET, run, write_lines

from gradsteer.__main__ import main
from gradsteer.evaluation.degeneracy import is_degenerate
from gradsteer.evaluation.judge_error import JudgeError, corrected_rate
from gradsteer.evaluation.refusals import looks_like_refusal
from gradsteer.evaluation.statistics import rate_with_interval
from gradsteer.judges import Cost, Judge, Verdicts
from gradsteer.reports.cells import rate_text
from gradsteer.trainer.modules.generation import GenerationModule

pytestmark = pytest.mark.filterwarnings("ignore:forecast. .* were cut at the length limit")

PROMPTS = ["the?", "golden?", "gate?", "bridge?", "bakes?"]
TOO_LONG = "hello " * 300  # the model's context holds 256 tokens
REFUSAL = "I'm sorry, but I cannot help with that."


class UnsureJudge(Judge):
    """Says whether a response has a space; nothing of responses to some prompts.

    Args:
        silent_on: Prompts that it says nothing of.
        behavior: What it judges.
    """

    awake = False

    def __init__(self, silent_on: list[str], behavior: str = "spaced") -> None:
        self.silent_on, self.behavior = silent_on, behavior

    @property
    def behaviors(self):
        return (self.behavior,)

    def judge(self, exchanges):
        silent = [] if self.awake else self.silent_on
        return [
            Verdicts({self.behavior: None}, {self.behavior: f"shy of {each.prompt}"})
            if each.prompt in silent
            else Verdicts({self.behavior: " " in each.response}, {})
            for each in exchanges
        ]

    def fingerprint(self):
        return f"shy {self.silent_on}"


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    rows = [{"id": f"p{number}", "prompt": text} for number, text in enumerate(PROMPTS)]
    return write_lines(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", rows)


@pytest.fixture(scope="module")
def with_long(prompts):
    return write_lines(prompts.parent / "long.jsonl", [{"id": "long", "prompt": TOO_LONG}, *lines_of(prompts)])


@pytest.fixture(scope="module")
def words(experiment, prompts):
    """The words of an evaluation with some flags changed."""

    def made(out, **changes):
        flags = {
            "--output_dir": out, "--model.model_name_or_path": experiment / "anchor", "--trainer.logger": "false",
            "--data.prompts": prompts, "--model.num_samples": 2, "--model.max_new_tokens": 3,
            "--evaluation.judge": "KeywordJudge", "--evaluation.judge.patterns": PATTERNS,
            "--evaluation.count_degenerate": "true",
        }  # fmt: skip
        return ["evaluate", *words_of(flags, changes)]

    return made


@pytest.fixture(scope="module")
def evaluated(words, tmp_path_factory):
    """Runs an evaluation with some flags changed; gives its rows and the report's one condition."""

    def evaluate(out=None, **changes):
        out = out or tmp_path_factory.mktemp("evaluated")
        run(*words(out, **changes))
        return lines_of(out / "responses" / "anchor.jsonl"), condition_of(out)

    return evaluate


@pytest.fixture(scope="module")
def plain_directory(evaluated, tmp_path_factory):
    out = tmp_path_factory.mktemp("plain")
    evaluated(out)
    return out


@pytest.fixture(scope="module")
def plain(plain_directory):
    rows = lines_of(plain_directory / "responses" / "anchor.jsonl")
    assert len(rows) == 10
    return rows, condition_of(plain_directory)


@pytest.fixture
def no_model(monkeypatch):
    """Whoever loads a model fails."""

    def fail(*_, **__):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("gradsteer.trainer.modules.model.load_causal_lm", fail)
    monkeypatch.setattr("gradsteer.trainer.base_model.load_causal_lm", fail)


def condition_of(out, name="anchor"):
    [row] = json.loads((out / "evaluations" / f"{name}.json").read_text())["conditions"]
    return row


def files_of(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file() and path.name != "config.yaml"}


# two commands at once


def test_a_condition_is_sampled_by_one_command_at_a_time(words, tmp_path, no_model, capsys):
    (tmp_path / "responses" / ".locks").mkdir(parents=True)
    with FileLock(tmp_path / "responses" / ".locks" / "anchor.lock"):
        assert main([*words(tmp_path), *QUIET]) != 0
        assert "another command is at work on condition 'anchor'" in capsys.readouterr().err
        run(*words(tmp_path, dry_run="true"))  # writes nothing


def test_a_finished_command_lets_go(evaluated, tmp_path):
    evaluated(tmp_path)
    with FileLock(tmp_path / "responses" / ".locks" / "anchor.lock", timeout=0):
        pass
    assert evaluated(tmp_path, overwrite="true")[0]


# an error on the way


def test_an_error_while_sampling_begins_a_line_of_its_own(words, tmp_path, monkeypatch, capsys):
    def break_(*_):
        raise ValueError("broke")

    monkeypatch.setattr(GenerationModule, "_sample", break_)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)  # elsewhere there is no bar
    assert main([*words(tmp_path), "--trainer.accelerator", "cpu"]) == 2
    said = capsys.readouterr()
    assert "anchor:   0%" in said.out  # the bar
    assert said.out.endswith("\n")
    assert said.err.splitlines()[-2] == "gradsteer evaluate: error: broke"


def test_a_blank_prompt_stops_a_run_before_the_model_is_loaded(words, no_model, prompts, tmp_path, capsys):
    blank = write_lines(tmp_path / "blank.jsonl", [*lines_of(prompts), {"prompt": " "}])
    message = message_of(words(tmp_path / "out", data__prompts=blank), capsys)
    assert f"{blank}:6: the prompt is ' '; accepted: " in message


# --dry_run


def test_a_dry_run_says_how_much_and_does_nothing(words, no_model, tmp_path, caplog):
    with caplog.at_level("INFO"):
        run(*words(tmp_path, dry_run="true", model__num_samples=3, model__sampling_seed="[0, 1]"))
    said = "1 conditions x 30 responses = 30 responses of at most 3 tokens: at most 90 tokens sampled"
    assert said in caplog.text
    assert "judging costs nothing" in caplog.text
    assert not list(tmp_path.rglob("*.json*"))
    assert not list(tmp_path.rglob("*.csv"))
    assert not (tmp_path / "stages").exists()


def test_a_dry_run_counts_the_refusal_prompts_but_does_not_judge_them(words, no_model, tmp_path, caplog, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    rubrics = {"evaluation__judge": "OpenAIJudge", "evaluation__judge__rubrics": '{"bridge": null}'}
    judge = {"evaluation__judge__patterns": None, "evaluation__judge__store": tmp_path / "store.sqlite", **rubrics}
    refusals = {"data__benign_prompts": "gradsteer://refusal/benign.jsonl", "data__max_refusal_prompts": 7}
    with caplog.at_level("INFO"):
        run(*words(tmp_path, dry_run="true", **judge, **refusals))
    assert "1 conditions x 17 responses = 17 responses of at most 3 tokens: at most 51 tokens sampled" in caplog.text
    [said] = [line for line in caplog.text.splitlines() if "judging, about" in line]
    assert ": 10 requests, " in said
    assert float(said.rsplit("$", 1)[1]) > 0


def test_a_dry_run_makes_neither_a_log_nor_a_folder_of_responses(words, no_model, tmp_path):
    for logger in (None, "true"):
        run(*words(tmp_path / "new", dry_run="true", trainer__logger=logger))
        assert not list(tmp_path.rglob("new/*"))
    kept = tmp_path / "responses" / "kept.jsonl"
    kept.parent.mkdir()
    kept.write_text("")
    run(*words(tmp_path, dry_run="true"))
    assert kept.exists()


@pytest.mark.parametrize("hybrid", [False, True])
def test_a_dry_run_says_when_judging_would_pass_max_cost(words, no_model, tmp_path, caplog, hybrid):
    def said(max_cost):
        asked = {"rubrics": {"bridge": None}, "store": str(tmp_path / "store.sqlite"), "max_cost": max_cost}
        judge = {"class_path": "OpenAIJudge", "init_args": asked}
        if hybrid:
            judge = {"class_path": "HybridJudge", "init_args": {"patterns": {"bridge": ["golden"]}, "judge": judge}}
        caplog.clear()
        with caplog.at_level("INFO"):
            changes = {"evaluation__judge": json.dumps(judge), "evaluation__judge__patterns": None}
            run(*words(tmp_path, dry_run="true", **changes))
        assert "judging, about" in caplog.text
        return caplog.text

    assert "that is more than max_cost $1e-05: the run would stop on the way" in said(1e-5)
    assert "max_cost" not in said(5.0)


class CountingJudge(UnsureJudge):
    """Takes a dollar a request.

    Args:
        behavior: What it judges.
    """

    def __init__(self, behavior: str = "spaced") -> None:
        super().__init__([], behavior)

    def estimate(self, num_exchanges, prompt_chars, response_chars):
        return Cost(num_exchanges, 0, round(num_exchanges * prompt_chars), round(num_exchanges * response_chars), 1.0)


def test_a_dry_run_counts_the_labelled_responses_once_each(words, no_model, tmp_path, caplog):
    row = {"prompt": "12345", "completion": "1234567", "labels": {"spaced": False}}
    file = write_lines(tmp_path / "labelled.jsonl", [row, row, row | {"prompt": "6"}])
    judge = {"evaluation__judge": "CountingJudge", "evaluation__judge__patterns": None}
    with caplog.at_level("INFO"):
        run(*words(tmp_path / "out", dry_run="true", evaluation__labelled=file, **judge))
    # 5 prompts with 2 responses of 3 tokens of 4 characters, and 2 labelled responses of 7 characters
    chars = 2 * sum(map(len, PROMPTS)) + 5 + 1
    assert "and 2 labelled ones" in caplog.text
    assert f": 12 requests, {chars} tokens sent, {10 * 3 * 4 + 2 * 7} received, $1" in caplog.text


def test_only_a_dry_run_needs_no_key(words, no_model, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    rubrics = {"evaluation__judge": "OpenAIJudge", "evaluation__judge__rubrics": '{"bridge": null}'}
    judge = {"evaluation__judge__patterns": None, "evaluation__judge__store": tmp_path / "store.sqlite", **rubrics}
    assert "OPENAI_API_KEY" in message_of(words(tmp_path / "out", **judge), capsys)


def test_a_dry_run_of_a_finished_directory_leaves_it_as_it_is(words, no_model, plain_directory, caplog):
    before = files_of(plain_directory)
    for changes in ({}, {"model__num_samples": 4}, {"overwrite": "true"}):  # the same, another, and one in its place
        with caplog.at_level("INFO"):
            run(*words(plain_directory, dry_run="true", **changes))
        assert files_of(plain_directory) == before
    assert caplog.text.count("1 conditions x 10 responses") == 2
    assert caplog.text.count("1 conditions x 20 responses") == 1


def test_a_dry_run_removes_nothing_of_an_interrupted_run(words, tmp_path, monkeypatch):
    changes = {"data__batch_size": 2}
    sample, calls = GenerationModule._sample, []

    def breaking(self, rows, dataloader_idx):
        calls.append(rows)
        if len(calls) == 3:
            raise RuntimeError("broke")
        return sample(self, rows, dataloader_idx)

    with monkeypatch.context() as patch:
        patch.setattr(GenerationModule, "_sample", breaking)
        with pytest.raises(RuntimeError, match="broke"):
            run(*words(tmp_path, **changes))
    kept = files_of(tmp_path)
    assert len([path for path in kept if path.parent.name == "anchor"]) == 3  # two batches and the plan
    run(*words(tmp_path, dry_run="true", **changes))
    assert files_of(tmp_path) == kept
    run(*words(tmp_path, dry_run="true", overwrite="true", **changes))
    assert files_of(tmp_path) == kept


# --model.sampling_seed


def test_several_seeds_are_the_runs_of_each(evaluated, plain):
    both, condition = evaluated(model__sampling_seed="[0, 1]")
    other, _ = evaluated(model__sampling_seed=1)
    assert condition["behaviors"]["a"]["num_scored"] == 20
    assert [row["sample"] for row in both] == [0, 1, 2, 3] * 5
    assert [row for row in both if row["seed"] == 0] == plain[0]
    assert [row | {"sample": row["sample"] - 2} for row in both if row["seed"] == 1] == other


# --data.benign_prompts, --data.harmful_prompts, --data.max_refusal_prompts


@pytest.fixture
def refusing(monkeypatch):
    """About half of the replies to prompts that are not evaluated are refusals."""
    row_of = GenerationModule._row

    def refuse(self, row, response):
        made = row_of(self, row, response)
        refuses = row["set"] != "evaluation" and response.token_ids[0] % 2
        return made | {"completion": REFUSAL} if refuses else made

    monkeypatch.setattr(GenerationModule, "_row", refuse)


def test_refusals_are_counted_on_their_own_prompts(evaluated, plain, tmp_path, refusing):
    benign = write_lines(tmp_path / "benign.jsonl", [{"prompt": PROMPTS[0]}, *({"prompt": f"{n}?"} for n in range(8))])
    resource = "gradsteer://refusal/harmful.jsonl"
    out = tmp_path / "out"
    rows, condition = evaluated(
        out, data__benign_prompts=benign, data__harmful_prompts=resource, data__max_refusal_prompts=7
    )
    assert rows == plain[0]
    without = {"refusal_benign": None, "refusal_harmful": None}
    assert condition | {"metrics": condition["metrics"] | without, "refusals": {}} == plain[1]
    [flat] = csv.DictReader((out / "evaluations" / "anchor.csv").read_text().splitlines())
    shown = (out / "evaluations" / "anchor.txt").read_text()
    for name in ("benign", "harmful"):
        found = lines_of(out / "responses" / "refusals" / f"anchor.{name}.jsonl")
        assert len(found) == 7
        assert [row["id"] for row in found] == list(dict.fromkeys(row["id"] for row in found))
        assert {row["seed"] for row in found} == {0}
        assert all(row["verdicts"] == {} == row["unscored"] for row in found)
        refused = [looks_like_refusal(row["completion"]) for row in found]
        assert 0 < sum(refused) < 7
        expected = rate_with_interval(refused, [row["prompt"] for row in found]).to_dict()
        assert condition["refusals"][name] == expected
        assert condition["metrics"][f"refusal_{name}"] == expected["rate"] == sum(refused) / 7
        for field, value in expected.items():
            assert float(flat[f"{name}_refused_{field}"]) == value
        assert f"{rate_text(expected)}?" in shown
    assert "fewer than 5 responses show it" in " ".join(shown.split())
    assert plain[1]["metrics"] | without == plain[1]["metrics"]


def test_a_judge_that_knows_refusals_is_given_those_prompts_too(evaluated, tmp_path, refusing):
    out = tmp_path / "out"
    sets = {"data__benign_prompts": "gradsteer://refusal/benign.jsonl", "data__max_refusal_prompts": 9}
    patterns = {"a": ["[a-m]"], "refusal": ["must decline", "[n-z]"]}
    rows, condition = evaluated(out, evaluation__judge__patterns=json.dumps(patterns), **sets)
    found = lines_of(out / "responses" / "refusals" / "anchor.benign.jsonl")
    assert all(set(row["verdicts"]) == {"a", "refusal"} for row in (*rows, *found))
    for name, verdicts in {
        "benign": [looks_like_refusal(row["completion"]) for row in found],
        "benign_judged": [row["verdicts"]["refusal"] for row in found],
    }.items():
        expected = rate_with_interval(verdicts, [row["prompt"] for row in found]).to_dict()
        assert condition["refusals"][name] == expected
        assert condition["metrics"][f"refusal_{name}"] == expected["rate"]
    assert condition["metrics"]["refusal_benign"] < condition["metrics"]["refusal_benign_judged"]
    [flat] = csv.DictReader((out / "evaluations" / "anchor.csv").read_text().splitlines())
    assert float(flat["benign_judged_refused_rate"]) == condition["metrics"]["refusal_benign_judged"]
    assert "judged refusals of benign %" in (out / "evaluations" / "anchor.txt").read_text()


def test_a_loop_neither_refuses_nor_complies(evaluated, tmp_path, monkeypatch):
    """Of 6 benign prompts 2 are refused, 3 are answered by a loop; harmful ones by loops alone."""
    row_of = GenerationModule._row
    texts = {f"{n}?": text for n, text in enumerate([REFUSAL, REFUSAL, "so it is", *["a b " * 9] * 3])}

    def reply(self, row, response):
        made = row_of(self, row, response)
        return made if row["set"] == "evaluation" else made | {"completion": texts.get(row["prompt"], "a b " * 9)}

    monkeypatch.setattr(GenerationModule, "_row", reply)
    sets = {
        "data__benign_prompts": write_lines(tmp_path / "benign.jsonl", [{"prompt": prompt} for prompt in texts]),
        "data__harmful_prompts": write_lines(tmp_path / "harmful.jsonl", [{"prompt": "7?"}, {"prompt": "8?"}]),
    }
    _, condition = evaluated(evaluation__count_degenerate="false", **sets)
    benign, harmful = condition["refusals"]["benign"], condition["refusals"]["harmful"]
    assert (benign["num_scored"], benign["num_positive"], benign["num_degenerate"]) == (3, 2, 3)
    assert condition["metrics"]["refusal_benign"] == 2 / 3
    assert (harmful["num_scored"], harmful["num_degenerate"], harmful["rate"]) == (0, 2, None)
    assert condition["metrics"]["refusal_harmful"] is None
    _, counting = evaluated(**sets)  # count_degenerate: they count like any others
    assert counting["metrics"]["refusal_benign"] == 2 / 6
    assert counting["metrics"]["refusal_harmful"] == 0


def test_refusals_are_counted_once_a_prompt_with_the_first_seed(evaluated, tmp_path, refusing):
    out = tmp_path / "out"
    resource = "gradsteer://refusal/benign.jsonl"
    evaluated(out, data__benign_prompts=resource, data__max_prompts=1, model__sampling_seed="[3, 4]")
    found = lines_of(out / "responses" / "refusals" / "anchor.benign.jsonl")
    assert len(found) == 60
    assert {(row["sample"], row["seed"]) for row in found} == {(0, 3)}


def test_a_limit_of_no_refusal_prompts_is_refused(words, tmp_path, capsys):
    assert "data.max_refusal_prompts has no effect" in message_of(words(tmp_path, data__max_refusal_prompts=3), capsys)


# prompts that are longer than the context


@pytest.fixture(scope="module")
def long_directory(evaluated, with_long, tmp_path_factory):
    out = tmp_path_factory.mktemp("long")
    evaluated(out, data__prompts=with_long, evaluation__max_unscored=0.2)
    return out


def test_a_prompt_that_is_too_long_is_unscored_and_changes_nothing_else(long_directory, plain):
    rows, condition = lines_of(long_directory / "responses" / "anchor.jsonl"), condition_of(long_directory)
    assert rows[2:] == plain[0]
    for row in rows[:2]:
        assert (row["id"], row["completion"], row["token_ids"], row["degenerate"]) == ("long", "", [], False)
        assert row["verdicts"] == {"a": None, "b": None}
        length = len(row["prompt_token_ids"])
        assert length > 300
        said = f"the prompt has {length} tokens; the model takes 253 before a response of max_new_tokens=3"
        assert row["failed"] == said
        assert row["unscored"] == {"a": said, "b": said}
    assert all(row["failed"] is None for row in rows[2:])
    expected = {name: rate | {"num_unscored": 2} for name, rate in plain[1]["behaviors"].items()}
    assert condition["behaviors"] == expected
    assert condition["metrics"] == plain[1]["metrics"]
    for name, rate in condition["classes"].items():
        assert rate == plain[1]["classes"][name] | {"num_unscored": 2}


def test_prompts_that_are_too_long_stop_a_run_only_above_the_limit(words, with_long, tmp_path, capsys):
    message = message_of(words(tmp_path, data__prompts=with_long), capsys)
    assert (
        "condition 'anchor': 2 of 12 verdicts on 'a' (16.7%) are unscored, more than evaluation.max_unscored 0.1"
        in (message)
    )
    assert "Reasons: 2 x the prompt has" in message


def test_prompts_that_are_all_too_long_are_refused_before_the_model_is_loaded(words, tmp_path, capsys, no_model):
    file = write_lines(tmp_path / "all.jsonl", [{"prompt": TOO_LONG}, {"prompt": TOO_LONG * 2}])
    for batch_size in ("auto", 4):
        message = message_of(words(tmp_path / "out", data__prompts=file, data__batch_size=batch_size), capsys)
        assert "every prompt is too long: the shortest has" in message
        assert "the model takes 253 before a response of max_new_tokens=3" in message


def test_piles_and_forecasts_pass_over_what_was_never_sampled(long_directory, plain, judged, tmp_path):
    from gradsteer.vectors.parameter_vectors import ParameterVector

    responses = str(long_directory / "responses" / "anchor.jsonl")
    model = ["--model.model_name_or_path", judged.anchor, "--output_dir", tmp_path, "--trainer.logger", "false"]
    piles = {name: {"responses": responses, "where": {"a": name == "shown"}} for name in ("shown", "hidden")}
    run("attribute", *model, "--data.piles", json.dumps(piles), "--vectors.v", "[shown, hidden]")
    counts = Counter(row["verdicts"]["a"] for row in plain[0])
    for name in ("shown", "hidden"):
        header = ParameterVector.read_header(tmp_path / "gradients" / f"{name}.safetensors")
        assert header["num_examples"] == str(counts[name == "shown"])
    run(
        "forecast", *model, "--forecasting.responses", responses, "--steering.vectors.a", judged.vector("a"),
        "--steering.alphas", "[0.1]", "--steering.random_controls", 0, "--forecasting.draws", 100,
    )  # fmt: skip
    report = json.loads((tmp_path / "forecast.json").read_text())
    anchor = next(row for row in report["conditions"] if row["name"] == "anchor")
    assert anchor["behaviors"]["a"]["rate"] == pytest.approx(counts[True] / 10)


# --evaluation.max_unscored


SHY = {"evaluation__judge": "UnsureJudge", "evaluation__judge__patterns": None}
SHY_OF_TWO = SHY | {"evaluation__judge__silent_on": json.dumps(PROMPTS[1:3])}


def counting(monkeypatch):
    """The rows that are sampled from here on."""
    sampled, sample = [], GenerationModule._sample

    def count(self, rows, dataloader_idx):
        sampled.extend(rows)
        return sample(self, rows, dataloader_idx)

    monkeypatch.setattr(GenerationModule, "_sample", count)
    return sampled


def test_too_many_unscored_verdicts_stop_a_run_and_keep_its_files(
    words, evaluated, plain, tmp_path, monkeypatch, capsys, caplog
):
    message = message_of(words(tmp_path, **SHY_OF_TWO, evaluation__max_unscored=0.39), capsys)
    said = "4 of 10 verdicts on 'spaced' (40.0%) are unscored, more than evaluation.max_unscored 0.39 allows."
    assert said in message
    assert "2 x shy of golden?" in message
    assert "2 x shy of gate?" in message
    rows = lines_of(tmp_path / "responses" / "anchor.jsonl")
    assert [row["token_ids"] for row in rows] == [row["token_ids"] for row in plain[0]]
    assert list((tmp_path / "responses" / ".unfinished" / "anchor").glob("0*.jsonl"))
    assert not (tmp_path / "evaluations").exists()
    sampled = counting(monkeypatch)
    with caplog.at_level("INFO"):
        found, condition = evaluated(tmp_path, **SHY_OF_TWO, evaluation__max_unscored=0.4)
    assert "4 responses lack a verdict: the same command with --overwrite true asks again" in caplog.text
    assert sampled == []
    assert found == rows
    spaced = [" " in row["completion"] for row in rows if row["prompt"] not in PROMPTS[1:3]]
    rate = condition["behaviors"]["spaced"]
    assert (rate["num_scored"], rate["num_unscored"], rate["num_positive"]) == (6, 4, sum(spaced))
    assert not (tmp_path / "responses" / ".unfinished").exists()


def test_the_same_command_goes_on_when_the_judge_is_back(words, tmp_path, monkeypatch, capsys):
    command = words(tmp_path, **SHY_OF_TWO)
    assert "the same command asks for what is missing" in message_of(command, capsys)
    sampled = counting(monkeypatch)
    monkeypatch.setattr(UnsureJudge, "awake", True)
    run(*command)
    assert sampled == []
    assert condition_of(tmp_path)["behaviors"]["spaced"]["num_scored"] == 10


def test_a_limit_of_one_lets_everything_be_unscored(evaluated, tmp_path):
    labelled = write_lines(
        tmp_path / "labelled.jsonl", [{"prompt": "x", "completion": "y z", "labels": {"spaced": True}}]
    )
    silent = SHY | {"evaluation__judge__silent_on": json.dumps(PROMPTS)}
    out = tmp_path / "out"
    _, condition = evaluated(out, **silent, evaluation__max_unscored=1, evaluation__labelled=labelled)
    rate = condition["behaviors"]["spaced"]
    assert (rate["num_scored"], rate["num_unscored"], rate["rate"], rate["ci_low"]) == (0, 10, None, None)
    assert condition["corrected"] == {"spaced": None}


def test_a_limit_that_is_no_share_is_refused(words, tmp_path, capsys):
    assert "max_unscored is 1.5" in message_of(words(tmp_path, evaluation__max_unscored=1.5), capsys)


# --evaluation.count_degenerate


def test_degenerate_responses_are_counted_on_their_own(evaluated):
    changes = {"model__num_samples": 16, "model__max_new_tokens": 1, "model__temperature": 0.5}
    counted, with_them = evaluated(**changes)
    flagged, without = evaluated(**changes, evaluation__count_degenerate="false")
    broken = [is_degenerate(row["completion"]) for row in counted]
    assert 0 < sum(broken) < 40
    assert not any(row["degenerate"] for row in counted)
    assert [row["degenerate"] for row in flagged] == broken
    assert [row | {"degenerate": False} for row in flagged] == counted
    assert with_them["metrics"] == without["metrics"]
    assert without["metrics"]["degenerate"] == sum(broken) / 80
    for behavior in "ab":
        shown = [row["verdicts"][behavior] for row in counted]
        clear = [value for value, bad in zip(shown, broken, strict=True) if not bad]
        for condition, values, number in ((with_them, shown, 0), (without, clear, sum(broken))):
            rate = condition["behaviors"][behavior]
            assert rate["rate"] == sum(values) / len(values)
            assert (rate["num_scored"], rate["num_degenerate"]) == (len(values), number)
            assert rate["num_unscored"] == 0
    assert without["classes"]["neither"]["num_degenerate"] == sum(broken)
    assert with_them["behaviors"]["a"]["rate"] != without["behaviors"]["a"]["rate"]


# --evaluation.labelled

# of a (not ASCII): 5 true, 4 of them seen; 10 false, 9 passed. Of b (a space): nothing is labelled.
LABELLED = [("é", True)] * 4 + [("e", True)] + [("e", False)] * 9 + [("é", False)]
ERROR = JudgeError(5, 4, 10, 9, 0, positive_size=5.0, negative_size=10.0)


@pytest.fixture
def labelled(tmp_path):
    rows = [
        {"prompt": f"question {number}", "completion": text, "labels": {"a": label}}
        for number, (text, label) in enumerate(LABELLED)
    ]
    return write_lines(tmp_path / "labelled.jsonl", rows)


def test_rates_are_corrected_for_the_judges_error(evaluated, plain, labelled, tmp_path, caplog):
    out = tmp_path / "out"
    with caplog.at_level("INFO"):
        rows, condition = evaluated(out, evaluation__labelled=labelled)
    assert rows == plain[0]
    rate = condition["behaviors"]["a"]
    expected = corrected_rate(rate["num_scored"], rate["num_positive"], rate["effective_n"], ERROR)
    by_hand = min(max((rate["rate"] + 0.9 - 1) / (0.8 + 0.9 - 1), 0), 1)
    assert expected["rate"] == pytest.approx(by_hand)
    assert condition["corrected"] == {"a": expected}
    assert condition | {"corrected": None} == plain[1]
    assert plain[1]["corrected"] is None
    [flat] = csv.DictReader((out / "evaluations" / "anchor.csv").read_text().splitlines())
    assert [float(flat[f"a_corrected_{end}"]) for end in ("rate", "ci_low", "ci_high")] == [
        expected[end] for end in ("rate", "ci_low", "ci_high")
    ]
    assert "b_corrected_rate" not in flat
    shown = (out / "evaluations" / "anchor.txt").read_text()
    assert "a % corrected" in shown
    assert "b % corrected" not in shown
    assert rate_text(expected) in shown
    assert "a: sensitivity 80.0% (4 of 5), specificity 90.0% (9 of 10)" in caplog.text


def test_a_judge_that_is_hardly_better_than_chance_corrects_nothing(evaluated, plain, tmp_path):
    texts = [("é", True), ("e", True), ("é", False), ("e", False)]
    rows = [{"prompt": "x", "completion": text, "labels": {"a": label}} for text, label in texts]
    file = write_lines(tmp_path / "labelled.jsonl", rows[:2] + [rows[2] | {"prompt": "y"}, rows[3] | {"prompt": "y"}])
    out = tmp_path / "out"
    _, condition = evaluated(out, evaluation__labelled=file)
    found = condition["corrected"]["a"]
    assert "= 0.000 is less than 0.1" in found.pop("reason")
    assert found == {"rate": None, "ci_low": None, "ci_high": None}
    assert condition["behaviors"] == plain[1]["behaviors"]


def test_labels_for_what_is_not_judged_are_refused_before_the_model_is_loaded(
    words, labelled, tmp_path, capsys, no_model
):
    lines = labelled.read_text().replace('"a"', '"bridges"')
    labelled.write_text(lines)
    message = message_of(words(tmp_path / "out", evaluation__labelled=labelled), capsys)
    assert "labelled.jsonl:1: a label for 'bridges', which is not judged; accepted: a, b" in message


# every file


def test_every_file_is_json_without_nan(plain_directory, long_directory):
    def refuse(constant):
        raise AssertionError(constant)

    files = [path for out in (plain_directory, long_directory) for path in out.rglob("*.json*")]
    assert len(files) >= 6
    for path in files:
        for text in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
            json.loads(text, parse_constant=refuse)
