"""`judge`: other judges on responses that are there, through its command line."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from gradsteer.evaluation.agreement import pair_agreement
from gradsteer.evaluation.bootstrap import PromptBootstrap
from gradsteer.evaluation.statistics import rate_with_interval
from gradsteer.judges import Cost, Exchange, Judge, KeywordJudge, OpenAIJudge, StoredJudge, Verdicts
from gradsteer.judges.command.main import main
from gradsteer.judges.stored import Answer
from gradsteer.reports.cells import rate_text

GATE = ("--judges.gate", "KeywordJudge", "--judges.gate.patterns", '{"bridge": ["golden gate"]}')
SPAN = ("--judges.span", "KeywordJudge", "--judges.span.patterns", '{"bridge": ["golden gate", "span"]}')


class ShyJudge(Judge):
    """Leaves unscored what has a word in it.

    Args:
        word: that word.
        reason: why it does.
    """

    def __init__(self, word: str = "shy", reason: str = "shy") -> None:
        self.word, self.reason = word, reason

    @property
    def behaviors(self):
        return ("bridge",)

    def judge(self, exchanges):
        return [
            Verdicts({"bridge": None}, {"bridge": self.reason})
            if self.word in exchange.response
            else Verdicts({"bridge": "golden gate" in exchange.response}, {})
            for exchange in exchanges
        ]

    def fingerprint(self):
        return f"shy {self.word}"


class CostlyJudge(StoredJudge):
    """Counts what it is asked, and stops after so many.

    Args:
        store: the store.
        stop: how many answers it gives in all.
    """

    asked: list = []

    def __init__(self, store: str, stop: int = 1000) -> None:
        super().__init__(store)
        self.stop = stop

    @property
    def behaviors(self):
        return ("bridge",)

    def ask(self, exchanges):
        for exchange in exchanges:
            if len(self.asked) == self.stop:
                raise ValueError("the server is gone")
            self.asked.append(exchange)
            yield Answer(exchange, Verdicts({"bridge": "golden gate" in exchange.response}, {}))

    def fingerprint(self):
        return "costly"

    def usage(self):
        return Cost(len(self.asked), self.num_stored, 10, 1, 0.5)

    def estimate(self, num_exchanges, prompt_chars, response_chars):
        return Cost(num_exchanges, prompt_tokens=round(num_exchanges * (prompt_chars + response_chars)), dollars=1.25)


def response(prompt, text, bridge, sample=0, **keys):
    verdicts = {"bridge": bridge} if isinstance(bridge, bool) else bridge
    return {
        "id": prompt, "prompt": prompt, "completion": text, "condition": "anchor", "sample": sample,
        "token_ids": [1, 2], "verdicts": verdicts, "unscored": {}, **keys,
    }  # fmt: skip


# gate: 3 true; span: 4 true; in the file: 4 true, one of them where neither word is
ANCHOR = [
    response("1", "the golden gate", True),
    response("1", "the golden gate, a span", True, sample=1),
    response("2", "a span of steel", False),
    response("2", "the golden gate again", True, sample=1),
    response("3", "nothing here", True),
    response("3", "nothing more", False, sample=1),
]
STEERED = [
    response("1", "nothing [bold]at all[/bold]", False, condition="[red]steered[/red]"),
    response("2", "a span", False, condition="[red]steered[/red]"),
    response("3", "golden gate golden gate", True, condition="[red]steered[/red]", degenerate=True),
]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "responses"
    return write(folder / "anchor.jsonl", ANCHOR), write(folder / "steered.jsonl", STEERED)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def judge(out, *words):
    assert main([*words, "--output_dir", str(out)]) == 0
    return json.loads((out / "agreement.json").read_text())


def refused(out, *words):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is what the test asserts)
        main([*words, "--output_dir", str(out)])
    assert not out.exists()
    return str(caught.value)


def unwrapped(capsys):
    return " ".join(capsys.readouterr().out.split())


def pick(rows, **values):
    found = [row for row in rows if all(row[key] == value for key, value in values.items())]
    assert len(found) == 1, found
    return found[0]


def test_two_judges_and_the_file(files, out, capsys):
    report = judge(out, "--responses", *files, *GATE, *SPAN)
    found = pick(report["pairs"], first="gate", second="span", file=files[0])
    cells = [found[f"num_{cell}"] for cell in ("both_true", "only_first", "only_second", "both_false", "left_out")]
    assert cells == [3, 0, 1, 2, 0]
    gate, span = ([word in row["completion"] for row in ANCHOR] for word in ("golden gate", "span"))
    bootstrap = PromptBootstrap.draw(np.array([0, 0, 1, 1, 2, 2]), draws=1000, seed=0)
    wanted = pair_agreement(gate, [one or two for one, two in zip(gate, span, strict=True)], bootstrap).to_dict()
    assert {key: found[key] for key in wanted} == wanted
    assert pick(report["pairs"], first="gate", second="file", file=files[0])["num_only_second"] == 1
    whole = pick(report["pairs"], first="gate", second="span", file=None)
    assert (whole["num_both_true"], whole["num_only_second"], whole["num_both_false"]) == (4, 2, 3)
    assert whole["num_degenerate"] == 1
    # a prompt is one cluster, whatever file its replies are in
    bootstrap = PromptBootstrap.draw(np.array([0, 0, 1, 1, 2, 2, 0, 1, 2]), draws=1000, seed=0)
    gate, span = ([word in row["completion"] for row in ANCHOR + STEERED] for word in ("golden gate", "span"))
    wanted = pair_agreement(gate, [one or two for one, two in zip(gate, span, strict=True)], bootstrap).to_dict()
    assert {key: whole[key] for key in wanted} == wanted
    assert pick(report["groups"], file=None)["judges"] == ["gate", "span", "file"]
    assert report["judges"]["gate"]["class"] == "KeywordJudge"
    said = capsys.readouterr().out
    for text in ("gate: 9 different exchanges", "[red]steered[/red]", "1 degenerate responses take part", "kappa"):
        assert text in said
    assert f"{found['kappa']:.3f} [{found['ci_low']:.3f}, {found['ci_high']:.3f}]" in said


def test_rates_leave_degenerate_responses_out_and_count_them(files, out):
    report = judge(out, "--responses", *files, *GATE)
    rate = pick(report["rates"], judge="gate", file=files[1])
    assert (rate["num_scored"], rate["num_positive"], rate["num_degenerate"]) == (2, 0, 1)
    assert rate["condition"] == "[red]steered[/red]"
    stored = pick(report["rates"], judge="file", file=files[0])
    wanted = rate_with_interval([row["verdicts"]["bridge"] for row in ANCHOR], [row["prompt"] for row in ANCHOR])
    assert {key: stored[key] for key in wanted.to_dict()} == wanted.to_dict()
    assert stored["corrected"] is None
    assert report["files"][1] == {
        "path": files[1], "condition": "[red]steered[/red]", "num_responses": 3, "num_prompts": 3, "num_degenerate": 1,
    }  # fmt: skip


def test_replies_to_one_prompt_are_alike(out, tmp_path):
    rows = [response(f"p{i // 4}", f"{'golden gate' if i < 40 else 'no'} {i}", True) for i in range(80)]
    report = judge(out, "--responses", write(tmp_path / "alike.jsonl", rows), *GATE)
    assert pick(report["rates"], judge="gate")["effective_n"] == 20


def test_files_of_one_condition_are_told_apart_by_their_paths(out, tmp_path, capsys):
    paths = [write(tmp_path / f"seed{seed}" / "anchor.jsonl", ANCHOR[seed:]) for seed in (0, 1)]
    mixed = write(tmp_path / "mixed.jsonl", [ANCHOR[0], {**ANCHOR[1], "condition": "other"}])
    report = judge(out, "--responses", *paths, mixed, *GATE)
    assert [file["condition"] for file in report["files"]] == ["anchor", "anchor", "mixed"]
    said = capsys.readouterr().out
    for path in paths:
        assert f"│ {path} " in said


def test_the_csv_holds_the_same_numbers(files, out):
    report = judge(out, "--responses", *files, *GATE, *SPAN)
    with (out / "agreement.csv").open() as file:
        rows = list(csv.DictReader(file))
    rate = pick(rows, quantity="rate", judges="gate", file=files[0])
    assert float(rate["value"]) == pick(report["rates"], judge="gate", file=files[0])["rate"] == 0.5
    kappa = pick(rows, quantity="kappa", judges="gate+span", file="")
    wanted = pick(report["pairs"], first="gate", second="span", file=None)
    assert (float(kappa["value"]), float(kappa["ci_low"])) == (wanted["kappa"], wanted["ci_low"])
    assert (kappa["num_counted"], kappa["num_both_true"], kappa["num_only_second"]) == ("9", "4", "2")
    agreement = pick(rows, quantity="agreement", judges="gate+span", file="")
    assert float(agreement["value"]) == wanted["agreement"]
    alpha = pick(rows, quantity="alpha", file=files[0])
    assert float(alpha["value"]) == pick(report["groups"], file=files[0])["alpha"]


def test_without_the_stored_verdicts(files, out, tmp_path, capsys):
    report = judge(out, "--responses", *files, *GATE, "--stored", "false")
    assert list(report["judges"]) == ["gate"]
    assert report["pairs"] == report["groups"] == []
    assert "no behavior is judged by two judges" in capsys.readouterr().out
    bare = [{"prompt": row["prompt"], "completion": row["completion"]} for row in ANCHOR]
    path = write(tmp_path / "bare.jsonl", bare)
    said = refused(tmp_path / "other", "--responses", path, *GATE)
    assert f"{path}:1: verdicts is None; accepted: a verdict by behavior, or --stored false" in said
    report = judge(tmp_path / "third", "--responses", path, *GATE, "--stored", "false")
    assert report["rates"][0]["condition"] == "bare"


def test_a_judge_is_not_compared_with_its_own_verdicts_in_the_files(files, out, tmp_path, capsys):
    first = judge(out, "--responses", *files, *GATE, *SPAN)
    judge(tmp_path / "other", "--responses", *files, *GATE, "--stored", "false", "--write", str(tmp_path / "copies"))
    copies = sorted(map(str, (tmp_path / "copies").iterdir()))
    capsys.readouterr()
    # all of them: the file is no judge
    report = judge(tmp_path / "again", "--responses", *copies, *GATE, *SPAN)
    assert set(report["judges"]) == {"gate", "span"}
    assert report["num_repeated"] == {"gate": 9}
    assert pick(report["groups"], file=None)["judges"] == ["gate", "span"]
    assert pick(report["pairs"], file=None)["kappa"] == pick(first["pairs"], file=None, second="span")["kappa"]
    assert "on 9 responses are those of gate itself: they are not counted twice" in unwrapped(capsys)
    # some of them: the file is a judge of the others
    report = judge(tmp_path / "some", "--responses", copies[0], files[1], *GATE, *SPAN)
    assert report["num_repeated"] == {"gate": len(ANCHOR)}
    found = pick(report["pairs"], file=None, first="gate", second="file")
    assert found["num_left_out"] == len(ANCHOR)
    assert found["num_both_true"] + found["num_both_false"] == len(STEERED)
    # another judge's verdicts are another judge's, whatever the name
    other = judge(tmp_path / "span", "--responses", *copies, *SPAN)
    assert other["num_repeated"] == {}
    assert set(other["judges"]) == {"span", "file"}


def test_unscored_verdicts_are_left_out_and_counted(files, out, capsys):
    words = ("--responses", files[0], *GATE, "--judges.shy", "ShyJudge", "--judges.shy.word", "nothing")
    report = judge(out, *words, "--max_unscored", "1")
    rate = pick(report["rates"], judge="shy")
    assert (rate["num_scored"], rate["num_unscored"], rate["num_positive"]) == (4, 2, 3)
    pair = pick(report["pairs"], first="gate", second="shy", file=files[0])
    assert (pair["num_left_out"], pair["kappa"]) == (2, 1)
    assert "shy: 6 different exchanges, 2 without every verdict" in capsys.readouterr().out


def test_too_many_unscored_verdicts_fail_when_the_report_is_written(files, out, capsys):
    """Of the anchor's 6 responses 2 are unscored, of the steered model's 2 that are no loops 1."""
    copies = out.parent / "copies"
    words = ("--responses", *files, "--judges.shy", "ShyJudge", "--judges.shy.word", "nothing", "--write", str(copies))
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is what the test asserts)
        main([*words, "--output_dir", str(out)])
    said = (
        f"the judge 'shy', {files[0]}: 2 of 6 verdicts on 'bridge' (33.3%) are unscored, more than --max_unscored 0.1 "
        "allows. Reasons: 2 x shy. What was judged is kept"
    )
    assert said in str(caught.value)
    assert pick(json.loads((out / "agreement.json").read_text())["rates"], judge="shy", file=files[0])
    assert (out / "agreement.csv").is_file()
    assert len(list(copies.iterdir())) == 2
    with pytest.raises(ValueError, match=r"steered.jsonl: 1 of 2 verdicts on 'bridge' \(50.0%\)"):
        main([*words, "--output_dir", str(out), "--max_unscored", "0.4"])
    judge(out, *words, "--max_unscored", "0.5")


def test_withheld_verdicts_fail_nothing_and_bound_the_rate(out, tmp_path, capsys):
    paths = [
        write(
            tmp_path / f"{name}.jsonl",
            [response(str(n), f"{'shy' if n < num_shy else 'a reply'} {n}", False) for n in range(30)],
        )
        for name, num_shy in (("anchor", 0), ("steered", 12))
    ]
    words = ("--responses", *paths, "--judges.shy", "ShyJudge", "--judges.shy.reason", "withheld by a filter")
    report = judge(out, *words)
    assert "withheld" not in pick(report["rates"], judge="shy", file=paths[0])
    found = pick(report["rates"], judge="shy", file=paths[1])
    assert found["num_unscored"] == found["withheld"]["num_withheld"] == 12
    assert found["withheld"]["more_than"] == paths[0]
    assert (found["withheld"]["lowest"]["rate"], found["withheld"]["highest"]["rate"]) == (0.0, 0.4)
    shown = capsys.readouterr().out
    assert " withheld ┃" in shown
    assert "40.0 [24.6, 57.7] if all do" in " ".join(shown.split())
    assert f"{rate_text(found)}*" in shown


def test_too_many_unscored_verdicts_on_the_labelled_set_fail_too(files, out, tmp_path):
    rows = [
        {"prompt": "q", "completion": f"{'a reply' if i else 'shy'} {i}", "labels": {"bridge": False}} for i in range(5)
    ]
    path = write(tmp_path / "labelled.jsonl", rows)
    words = ("--responses", *files, "--judges.shy", "ShyJudge", "--labelled", path)
    with pytest.raises(ValueError, match=r"labelled.jsonl: 1 of 5 verdicts on 'bridge' \(20.0%\) are unscored"):
        main([*words, "--output_dir", str(out)])
    report = judge(out, *words, "--max_unscored", "0.2")
    assert pick(report["errors"], judge="shy")["num_unscored"] == 1


def test_verdicts_that_are_missing_in_the_files_are_not_the_judges(out, tmp_path):
    rows = [{**row, "verdicts": {"bridge": None}} for row in ANCHOR]
    report = judge(out, "--responses", write(tmp_path / "anchor.jsonl", rows), *GATE)
    assert pick(report["rates"], judge="file")["num_unscored"] == 6


def test_a_missing_number_says_why(files, out, capsys):
    shy = ("--judges.shy", "ShyJudge", "--judges.shy.word", "n", "--max_unscored", "1")
    report = judge(out, "--responses", files[0], *GATE, *shy)
    pair = pick(report["pairs"], first="gate", second="shy", file=None)
    assert (pair["kappa"], pair["num_left_out"]) == (None, 6)
    said = "gate, shy on bridge; shy, file on bridge: there is no response on which both have a verdict"
    assert said in unwrapped(capsys)
    # of several files it says of which
    judge(out.parent / "both", "--responses", *files, *GATE, *shy)
    assert "gate, shy on bridge in anchor; shy, file on bridge in anchor; gate, shy on bridge in" in unwrapped(capsys)


def test_a_labelled_set_gives_errors_and_corrected_rates(files, out, tmp_path, capsys):
    """Of 50 that show it gate finds 40, of 50 that do not it passes 45; half of 200 responses are judged true."""
    texts = [("golden gate", True)] * 40 + [("a span", True)] * 10 + [("no", False)] * 45 + [("golden gate", False)] * 5
    labels = [
        {"prompt": f"l{i}", "completion": f"{text} {i}", "labels": {"bridge": label}}
        for i, (text, label) in enumerate(texts)
    ]
    many = [response(f"p{i}", ("golden gate" if i % 2 else "no") + f" {i}", bool(i % 2)) for i in range(200)]
    words = ("--responses", write(tmp_path / "many.jsonl", many), *GATE)
    report = judge(out, *words, "--labelled", write(tmp_path / "labelled.jsonl", labels))
    error = pick(report["errors"], judge="gate")
    assert (error["sensitivity"]["rate"], error["specificity"]["rate"]) == (0.8, 0.9)
    rate = pick(report["rates"], judge="gate")
    assert rate["rate"] == 0.5
    assert rate["corrected"]["rate"] == pytest.approx((0.5 + 0.9 - 1) / 0.7)
    assert rate["corrected"]["ci_high"] - rate["corrected"]["ci_low"] > rate["ci_high"] - rate["ci_low"]
    assert pick(report["rates"], judge="file")["corrected"] is None
    assert report["num_labelled"] == 100
    said = capsys.readouterr().out
    assert "80.0 [67.0, 88.8]" in said
    assert f"{100 * rate['corrected']['rate']:.1f} [" in said
    assert "gate: 300 different exchanges" in said
    with (out / "agreement.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(pick(rows, quantity="corrected_rate")["value"]) == rate["corrected"]["rate"]
    assert float(pick(rows, quantity="sensitivity")["value"]) == 0.8
    assert pick(rows, quantity="specificity")["num_positive"] == "45"


def test_a_judge_no_better_than_chance_corrects_nothing(files, out, tmp_path, capsys):
    labels = [
        {"prompt": str(i), "completion": text, "labels": {"bridge": label}}
        for i, (text, label) in enumerate([("golden gate", True), ("no", True), ("golden gate", False), ("no", False)])
    ]
    path = write(tmp_path / "labelled.jsonl", labels)
    corrected = judge(out, "--responses", files[0], *GATE, "--labelled", path)["rates"][0]["corrected"]
    assert corrected["rate"] is None
    assert "= 0.000 is less than 0.1" in corrected["reason"]
    assert f"gate on bridge: {corrected['reason']}" in unwrapped(capsys)


def test_a_bad_labelled_set_is_refused_before_anything_is_asked(files, out, tmp_path):
    CostlyJudge.asked = []
    costly = ("--judges.costly", "CostlyJudge", "--judges.costly.store", str(tmp_path / "store.sqlite"))
    row = {"prompt": "q", "completion": "a", "labels": {"brigde": True}}
    path = write(tmp_path / "labelled.jsonl", [row])
    said = refused(out, "--responses", *files, *costly, "--labelled", path)
    assert f"{path}:1: a label for 'brigde', which is not judged; accepted: bridge" in said
    recipe = ("--judges.other", "KeywordJudge", "--judges.other.patterns", '{"recipe": ["flour"]}')
    path = write(tmp_path / "labelled.jsonl", [{**row, "labels": {"bridge": True}}])
    said = refused(out, "--responses", *files, *costly, *recipe, "--labelled", path)
    assert "none of which the judge 'other' judges; accepted: labels for recipe" in said
    assert CostlyJudge.asked == []


def test_one_judge_under_two_names_is_refused(files, out):
    twice = [word.replace("judges.gate", "judges.again") for word in GATE]
    assert "the judges 'gate' and 'again' are the same one" in refused(out, "--responses", *files, *GATE, *SPAN, *twice)


def test_prompts_are_told_apart_as_in_evaluate(out, tmp_path):
    """By the digest of their text: blanks around it do not make it another prompt."""
    rows = [response(f"question {number % 3}" + " " * (number % 2), "text", True) for number in range(12)]
    report = judge(out, "--responses", write(tmp_path / "one.jsonl", rows), *GATE)
    assert report["files"][0]["num_prompts"] == 3
    assert pick(report["rates"], judge="file")["effective_n"] == 3


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("{", "not JSON"),
        ({"prompt": "q"}, "completion is None; accepted: a text"),
        ({"completion": "a"}, "prompt is None; accepted: a text"),
        (response("q", "a", {"bridge": 1}), "the verdict on 'bridge' is 1; accepted: true, false or null"),
        (response("q", "a", {}), "verdicts is {}; accepted: a verdict by behavior, or --stored false"),
    ],
)
def test_a_bad_row_is_named(bad, said, out, tmp_path):
    path = write(tmp_path / "bad.jsonl", [ANCHOR[0], bad])
    found = refused(out, "--responses", path, *GATE)
    assert f"{path}:2: " in found
    assert said in found


def test_bad_options_are_refused(files, out, tmp_path):
    assert "there is no judge; accepted" in refused(out, "--responses", *files)
    assert "a judge is called 'file'" in refused(
        out, "--responses", *files, *(w.replace("gate", "file", 1) for w in GATE)
    )
    assert "'none*.jsonl' is no file; accepted" in refused(out, "--responses", "none*.jsonl", *GATE)
    assert "no line" in refused(out, "--responses", write(tmp_path / "empty.jsonl", []), *GATE)
    assert "--responses is empty" in refused(out, "--responses", "[]", *GATE)
    assert "--write_judge is 'gate', which needs --write DIR" in refused(
        out, "--responses", *files, *GATE, "--write_judge", "gate"
    )
    assert "--max_unscored is 1.5; accepted: a share, from 0 to 1" in refused(
        out, "--responses", *files, *GATE, "--max_unscored", "1.5"
    )
    to = str(tmp_path / "copies")
    words = ("--responses", *files, *GATE, *SPAN, "--write", to)
    assert "--write_judge is None; accepted: the judge to write with, one of gate, span" in refused(out, *words)
    assert "--write_judge is 'file'" in refused(out, *words, "--write_judge", "file")


def test_files_are_named_one_by_one_by_globs_or_in_a_config(files, tmp_path):
    named = judge(tmp_path / "named", "--responses", *files, *GATE)
    globbed = judge(tmp_path / "globbed", "--responses", str(tmp_path / "responses" / "*.jsonl"), *GATE)
    twice = judge(tmp_path / "twice", *GATE, "--responses", *files, files[0])
    judges = {"gate": {"class_path": "KeywordJudge", "init_args": {"patterns": {"bridge": ["golden gate"]}}}}
    config = write(tmp_path / "config.yaml", [yaml.safe_dump({"responses": list(files), "judges": judges})])
    configured = judge(tmp_path / "configured", "--config", config)
    assert named == globbed == twice == configured
    alone = yaml.safe_dump({"responses": "{output_dir}/responses/anchor.jsonl", "judges": judges})
    write(tmp_path / "alone" / "responses" / "anchor.jsonl", ANCHOR)
    found = judge(tmp_path / "alone", "--config", write(tmp_path / "alone.yaml", [alone]))
    assert [file["num_responses"] for file in found["files"]] == [6]


def test_the_output_directory_is_the_experiments_by_default(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["--responses", *files, *GATE, "--experiment", "topics"]) == 0
    assert (tmp_path / "lightning_logs" / "topics" / "agreement.json").is_file()


def test_a_dry_run_asks_nothing_and_says_what_it_would_cost(files, out, tmp_path, capsys):
    CostlyJudge.asked = []
    store = tmp_path / "store.sqlite"
    costly = ("--judges.costly", "CostlyJudge", "--judges.costly.store", str(store))
    words = (*costly, *GATE, "--output_dir", str(out), "--responses")
    assert main([*words, *files, "--dry_run", "true"]) == 0
    said = capsys.readouterr().out
    chars = sum(len(row["prompt"]) + len(row["completion"]) for row in ANCHOR + STEERED)
    assert "costly (CostlyJudge): 9 different exchanges: about 9 requests" in said
    assert f"{chars} tokens sent" in said
    assert "$1.2500" in said
    assert "gate (KeywordJudge): 9 different exchanges: costs nothing" in said
    assert CostlyJudge.asked == []
    assert not out.exists()
    assert not store.exists()
    assert main([*words, files[0]]) == 0
    capsys.readouterr()
    assert main([*words, *files, "--dry_run", "true", "--overwrite", "true"]) == 0
    assert "9 different exchanges, 3 of them new to it: about 3 requests" in capsys.readouterr().out
    assert main([*words, files[0], "--dry_run", "true"]) == 0
    assert "0 of them new to it: nothing to ask" in capsys.readouterr().out
    assert len(CostlyJudge.asked) == 6


def test_what_a_hybrid_judges_store_holds_needs_no_key_and_costs_nothing(files, out, tmp_path, capsys, monkeypatch):
    """Patterns decide one of the texts, the store holds the verdicts on the others."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    store = str(tmp_path / "store.sqlite")
    options = {"rubrics": {"bridge": None}, "store": store}
    rest = {"class_path": "OpenAIJudge", "init_args": options}
    hybrid = {"class_path": "HybridJudge", "init_args": {"patterns": {"bridge": ["span"]}, "judge": rest}}
    config = write(tmp_path / "judge.yaml", [yaml.safe_dump({"responses": [files[0]], "judges": {"both": hybrid}})])
    words = ("--config", config)
    assert main([*words, "--output_dir", str(out), "--dry_run", "true"]) == 0
    assert "6 different exchanges, 4 of them new to it: about 4 requests" in capsys.readouterr().out
    assert "the judge 'both': the environment variable OPENAI_API_KEY is not set" in refused(out, *words)
    found = OpenAIJudge(**options)
    for row in ANCHOR:
        exchange = Exchange(row["prompt"], row["completion"])
        found.store.write(found.fingerprint(), exchange, Verdicts({"bridge": False}, {}))
    found.close()
    assert main([*words, "--output_dir", str(out), "--dry_run", "true"]) == 0
    assert "0 of them new to it: nothing to ask" in capsys.readouterr().out
    report = judge(out, *words)
    assert pick(report["rates"], judge="both")["num_positive"] == 2


def test_what_was_asked_before_a_failure_is_not_asked_again(files, out, tmp_path, capsys):
    CostlyJudge.asked = []
    costly = ("--judges.costly", "CostlyJudge", "--judges.costly.store", str(tmp_path / "store.sqlite"))
    assert refused(out, "--responses", *files, *costly, "--judges.costly.stop", "4") == "the server is gone"
    report = judge(out, "--responses", *files, *costly)
    assert len(CostlyJudge.asked) == len(set(CostlyJudge.asked)) == 9
    assert report["judges"]["costly"]["usage"]["num_stored"] == 4
    assert "$0.5000" in capsys.readouterr().out


def test_equal_exchanges_are_asked_about_once(out, tmp_path, capsys):
    CostlyJudge.asked = []
    path = write(tmp_path / "same.jsonl", [response("1", "same", True, sample=i) for i in range(5)])
    costly = ("--judges.costly", "CostlyJudge", "--judges.costly.store", str(tmp_path / "store.sqlite"))
    assert pick(judge(out, "--responses", path, *costly)["rates"], judge="costly")["num_scored"] == 5
    assert len(CostlyJudge.asked) == 1
    assert "costly: 1 different exchanges; 1 requests" in capsys.readouterr().out


def test_a_row_that_was_never_sampled_is_unscored_and_not_asked_about(out, tmp_path):
    CostlyJudge.asked = []
    failed = response("9", None, {"bridge": None}, failed="the prompt is longer than the context")
    path = write(tmp_path / "failed.jsonl", [*ANCHOR, failed])
    costly = ("--judges.costly", "CostlyJudge", "--judges.costly.store", str(tmp_path / "store.sqlite"))
    report = judge(out, "--responses", path, *costly, "--write", str(tmp_path / "copies"), "--max_unscored", "0.2")
    rate = pick(report["rates"], judge="costly")
    assert (rate["num_scored"], rate["num_unscored"], len(CostlyJudge.asked)) == (6, 1, 6)
    copy = [json.loads(line) for line in (tmp_path / "copies" / "failed.jsonl").read_text().splitlines()][-1]
    assert copy["unscored"] == {"bridge": "the prompt is longer than the context"}


def test_copies_have_the_judges_verdicts_and_every_other_key(files, out, tmp_path):
    copies = tmp_path / "copies"
    words = ("--responses", *files, *GATE, *SPAN, "--write", str(copies), "--write_judge", "span")
    judge(out, *words)
    fingerprint = KeywordJudge({"bridge": ["golden gate", "span"]}).fingerprint()
    for path, rows in zip(files, (ANCHOR, STEERED), strict=True):
        found = [json.loads(line) for line in (copies / path.rsplit("/", 1)[1]).read_text().splitlines()]
        assert [row["verdicts"] for row in found] == [
            {"bridge": "golden gate" in row["completion"] or "span" in row["completion"]} for row in rows
        ]
        for row in found:
            first = {len(row["completion"].partition(word)[0] + word) for word in ("golden gate", "span")}
            assert row["decided"] == ({"bridge": min(first)} if row["verdicts"]["bridge"] else {})
        changed = ("verdicts", "unscored", "decided", "judge")
        assert [{k: v for k, v in row.items() if k not in changed} for row in found] == [
            {k: v for k, v in row.items() if k not in changed} for row in rows
        ]
        assert {row["judge"] for row in found} == {fingerprint}
    assert [row["verdicts"] for row in map(json.loads, Path(files[0]).read_text().splitlines())] == [
        row["verdicts"] for row in ANCHOR
    ]
    judge(out, *words)  # again: its own copies may be replaced


def test_copies_replace_no_other_file(files, out, tmp_path):
    alone = ("--responses", files[0], *GATE, "--write")
    folder = str(tmp_path / "responses")
    assert "which is read; name another" in refused(out, *alone, folder)
    assert "which is read; name another" in refused(out, *alone, folder, "--overwrite", "true")
    other = write(tmp_path / "other" / "anchor.jsonl", STEERED)
    both = ("--responses", files[0], other, *GATE, "--write", str(tmp_path / "copies"))
    assert "would be copied to one file" in refused(out, *both)
    kept = write(tmp_path / "kept" / "anchor.jsonl", ["notes"])
    assert "which is no copy of" in refused(out, *alone, str(tmp_path / "kept"))
    fingerprint = KeywordJudge({"bridge": ["golden gate"]}).fingerprint()
    write(tmp_path / "kept" / "anchor.jsonl", [{**row, "judge": fingerprint} for row in STEERED])
    assert "which is no copy of" in refused(out, *alone, str(tmp_path / "kept"))
    write(tmp_path / "kept" / "anchor.jsonl", [{**row, "judge": "another"} for row in ANCHOR])
    assert "which is no copy of" in refused(out, *alone, str(tmp_path / "kept"))
    judge(out, *alone, str(tmp_path / "kept"), "--overwrite", "true")
    assert json.loads(Path(kept).read_text().splitlines()[0])["completion"] == ANCHOR[0]["completion"]


def test_a_report_of_something_else_is_kept(files, out, tmp_path):
    labels = write(tmp_path / "labelled.jsonl", [{"prompt": "q", "completion": "a", "labels": {"bridge": True}}])
    judge(out, "--responses", *files, *GATE)
    before = (out / "agreement.json").read_bytes()
    judge(out, "--responses", *files, *GATE)
    assert (out / "agreement.json").read_bytes() == before
    words = ("--output_dir", str(out), "--responses")
    for other in (
        (*files, *SPAN),
        (files[0], *GATE),
        (*files, *GATE, "--stored", "false"),
        (*files, *GATE, "--labelled", labels),
    ):
        with pytest.raises(ValueError, match="is of other judges, responses or labels"):
            main([*words, *other])
    assert (out / "agreement.json").read_bytes() == before
    report = judge(out, "--responses", *files, *SPAN, "--overwrite", "true")
    assert list(report["judges"]) == ["span", "file"]


def test_judges_are_closed_whatever_happens(files, out, tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(ShyJudge, "close", lambda self: closed.append(self.word), raising=False)
    judge(out, "--responses", *files, "--judges.one", "ShyJudge", "--judges.two", "ShyJudge", "--judges.two.word", "x")
    assert closed == ["shy", "x"]
    refused(tmp_path / "other", "--responses", "none.jsonl", "--judges.one", "ShyJudge")
    assert closed == ["shy", "x", "shy"]


def test_help_names_every_option(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr().out
    for option in ("config", "responses", "judges", "labelled", "stored", "output_dir", "experiment", "overwrite",
                   "write", "write_judge", "max_unscored", "dry_run"):  # fmt: skip
        assert f"--{option}" in said
    assert "KeywordJudge" in said
