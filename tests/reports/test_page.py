"""The page of a run: its order, its examples, half-finished directories, the same bytes, and who writes it."""

import json
import shutil
from pathlib import Path

import pytest
from in_tests import PAINT
from matplotlib.figure import Figure
from pages import NUM_PROMPTS, PATTERNS, Page, evaluation, make_run, page_of, write_lines
from tiny_models import tiny_llama

from gradsteer.__main__ import main
from gradsteer.judges.recorded_patterns import recorded_patterns
from gradsteer.reports.cells import behavior_text
from gradsteer.reports.page import page as page_module
from gradsteer.reports.page.page import write_page
from gradsteer.reports.page.pictures import inlined
from gradsteer.reports.page.records import read_records
from gradsteer.reports.page.words import layer_sentences
from gradsteer.reports.results import read_results
from gradsteer.trainer.callbacks import report as report_callback
from gradsteer.trainer.callbacks.report import ResultsReport

ORDER = [
    "What was asked", "Setup", "Rates", "Forecast against realised", "Examples", "Specificity", "Nulls", "Trade-offs",
    "Limits", "Replay",
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("made") / "run", tiny_llama())


@pytest.fixture
def run(made, tmp_path):
    return shutil.copytree(made, tmp_path / "run")


def test_the_page_reads_in_the_order_of_a_paper_and_says_the_reports_numbers(run):
    written, page = page_of(run)
    assert page.headings == ORDER
    for row in read_results(run / "results.json")["conditions"]:
        for name in row["behaviors"]:
            assert behavior_text(row, name) in page.text
    for said in ("A note.", "7 prompts x 4 samples", "KeywordJudge", "gradient(bridge: bridge true; 5 responses)"):
        assert said in page.text
    for command in ("fit", "attribute", "steer"):
        assert f"python -m gradsteer {command} --config out/{command}/version_0/config.yaml" in page.text
    assert written.not_there == ["forecast.json: no forecast was made (gradsteer forecast)"]
    assert written.not_there[0] in page.text


def test_the_markdown_has_the_same_sections_and_numbers(run):
    written, _ = page_of(run)
    text = written.markdown.read_text(encoding="utf-8")
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == ORDER
    row = read_results(run / "results.json")["conditions"][1]
    assert behavior_text(row, "bridge").replace("[", r"\[").replace("]", r"\]") in text


def test_examples_are_the_largest_median_and_smallest_effect_by_the_rule(run):
    """Against counting by hand; equal effects keep the order of the file."""
    shares = {"up": [1, 4, 2, 2, 0, 3, 2], "down": [1, 0, 1, 1, 2, 0, 1]}  # of 4 replies that show bridge
    names = {"up": "bridge alpha=-0.06", "down": "bridge alpha=+0.06"}
    rows = read_results(run / "results.json")["conditions"]
    steered = [row for row in rows if row["kind"] == "steered" and row["vector"] == "bridge"]
    alphas = sorted((row["alpha"], row["name"]) for row in steered)
    names = {"up": "anchor", "down": alphas[-1][1]}  # of this vector one sign alone was sampled
    assert alphas[0][0] > 0
    for side, name in names.items():
        path = run / "responses" / f"{name.replace(' ', '_')}.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            number = int(line["id"][1:])
            line["verdicts"]["bridge"] = line["sample"] < shares[side][number]
        write_lines(path, lines)
    _, page = page_of(run)
    part = page.source.split('<section id="examples">')[1].split("<h3>")[1]
    effects = [up / 4 - down / 4 for up, down in zip(shares["up"], shares["down"], strict=True)]
    ranked = sorted(range(NUM_PROMPTS), key=lambda number: (-effects[number], number))
    assert (ranked[0], ranked[3], ranked[-1]) == (1, 3, 4)
    found = [text.split("</blockquote>")[0] for text in part.split('<blockquote class="prompt" dir="auto">')[1:]]
    assert found == [f"Question {ranked[place]}?" for place in (0, 3, 6)]
    assert "<b>median effect</b>, rank 4 of 7 prompts: +25 points of bridge" in part
    assert "4 of 4 replies show bridge" in part.split("<article")[1]
    assert "Answer 1.0 of anchor." in part  # the first sample, whatever it says


def test_unscored_and_degenerate_replies_have_no_effect(run):
    store = {}
    for path in (run / "responses").glob("*.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            line["degenerate"] = line["id"] != "p2"
        store[path] = lines
        write_lines(path, lines)
    _, page = page_of(run)
    assert page.source.count('<article class="example">') == 2  # the one prompt left, for each vector
    assert "rank 1 of 1 prompts" in page.text


def test_matches_of_the_judges_patterns_are_marked_and_of_model_judges_none(run):
    _, page = page_of(run)
    assert {"Golden Gate Bridge", "bakes"} == {*page.marked} - {"marked", "dotted"}
    results = read_results(run / "results.json")
    settings = {"class_path": "gradsteer.judges.OpenAIJudge", "init_args": {"model": "some-model"}}
    results["evaluation"] = evaluation(judge="OpenAIJudge", judge_settings=settings)
    (run / "results.json").write_text(json.dumps(results))
    _, page = page_of(run)
    assert {*page.marked} == {"marked", "dotted"}
    assert "model some-model" in page.text


def test_patterns_that_are_others_now_mark_nothing_and_that_is_said(run):
    results = read_results(run / "results.json")
    results["evaluation"]["judge_settings"]["init_args"]["patterns"] = "{output_dir}/patterns.json"
    (run / "results.json").write_text(json.dumps(results))
    (run / "patterns.json").write_text(json.dumps(PATTERNS))
    _, page = page_of(run)
    assert "Golden Gate Bridge" in page.marked
    (run / "patterns.json").write_text(json.dumps({**PATTERNS, "bridge": ["think"]}))
    written, page = page_of(run)
    assert {*page.marked} == {"marked", "dotted"}
    assert any("others now than those that judged" in text for text in written.not_there)


@pytest.mark.parametrize(
    ("kept", "headings", "said"),
    [
        (["vectors"], [*ORDER[:2], *ORDER[-2:]], "results.json: the rates under steering"),
        (["fit"], [*ORDER[:2], *ORDER[-2:]], "vectors/: no steering vectors here"),
        (["results.json"], [name for name in ORDER if name != "Examples"], "examples of bridge: no prompt"),
        (["results.json", "responses"], ORDER, "vectors/: no steering vectors here"),
    ],
)
def test_a_half_finished_directory_shows_what_is_there_and_says_what_is_not(run, kept, headings, said):
    for path in run.iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    written, page = page_of(run)
    assert page.headings == headings
    assert any(text.startswith(said) for text in written.not_there)
    assert said in page.text


def test_evaluations_alone_have_their_table(run):
    results = read_results(run / "results.json")
    rows = [row for row in results["conditions"] if row["name"] == "anchor"]
    (run / "evaluations").mkdir()
    (run / "evaluations" / "anchor.json").write_text(json.dumps({**results, "conditions": rows}))
    (run / "results.json").unlink()
    _, page = page_of(run)
    assert "Evaluations before steering" in page.text
    assert behavior_text(rows[0], "recipe") in page.text


def test_a_forecast_alone_has_its_table(run):
    results = read_results(run / "results.json")
    rows = [{**row, "kind": "forecast"} for row in results["conditions"]]
    for row in rows:
        row["predicted"] |= {"method": "importance", "kl_per_token": 0.1, "mean_length": 30.0}
    del results["evaluation"]
    forecast = {**results, "forecast": {"warnings": ["few weights"]}, "conditions": rows}
    (run / "forecast.json").write_text(json.dumps(forecast))
    (run / "results.json").unlink()
    _, page = page_of(run)
    assert "Forecast" in page.headings
    assert "nothing was sampled" in page.text
    assert "few weights" in page.text


def test_the_same_records_give_the_same_bytes_wherever_they_lie(run, tmp_path):
    page_of(run)
    once = [(run / name).read_bytes() for name in ("report.html", "report.md")]
    moved = shutil.copytree(run, tmp_path / "elsewhere" / "run2")
    page_of(moved)
    assert [(moved / name).read_bytes() for name in ("report.html", "report.md")] == once
    assert str(tmp_path).encode() not in once[0] + once[1]


def test_steer_wrote_the_page_by_itself_and_the_records_alone_give_the_same(experiment, tmp_path):
    steered = Page((experiment / "report.html").read_text(encoding="utf-8"))
    assert {"Rates", "Where in the model"} < {*steered.headings}
    assert len((experiment / "report.html").read_bytes()) < 1e6
    sources = [value for tag, name, value in steered.attributes if (tag, name) == ("img", "src")]
    assert len(sources) >= 6
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    copy = shutil.copytree(experiment, tmp_path / "copy")
    write_page(copy, recorded_patterns, pictures=sorted((copy / "figures").glob("[!.]*.png")))
    for name in ("report.html", "report.md"):
        assert (copy / name).read_bytes() == (experiment / name).read_bytes()


@pytest.mark.slow
def test_the_command_draws_the_same_pictures(experiment, tmp_path, capsys):
    copy = shutil.copytree(experiment, tmp_path / "experiment")  # a directory whose pictures are painted
    shutil.rmtree(copy / "figures")
    (copy / "report.html").unlink()
    assert main(["report", str(copy)]) == 0
    assert "report.html (" in capsys.readouterr().out
    assert (copy / "report.html").read_bytes() == (experiment / "report.html").read_bytes()


def test_the_command_says_what_it_wrote_and_what_is_not_there(run, capsys):
    (run / "results.json").unlink()
    assert main(["report", str(run)]) == 0
    said = capsys.readouterr().out
    assert f"report: {run / 'report.html'} (" in said
    assert "  not there: results.json: the rates under steering: steer has not finished here" in said


def test_a_page_that_cannot_be_written_does_not_lose_the_run(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "report.html")

    monkeypatch.setattr(report_callback, "write_page", full)
    with pytest.warns(UserWarning, match=r"the run is complete, but its page was not written.*gradsteer report"):
        ResultsReport(str(tmp_path), "exp")._write_page({}, [])


def test_a_directory_without_a_run_is_refused(tmp_path, capsys):
    assert main(["report", str(tmp_path / "none")]) == 2
    assert main(["report", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"no directory at '{tmp_path / 'none'}'; accepted: the --output_dir of a run" in said
    assert "holds nothing of a run" in said


def test_layers_say_their_shares_of_the_squared_norm():
    layers = {"v": {"embedding": 1.0, "0": 2.0, "1": 5.0}, "nothing": {"0": 0.0}}
    assert list(layer_sentences(layers)) == ["v: 62.5% of its squared norm in layer 1, the most of 3; 25.0% in layer 0"]


def test_a_picture_is_inlined_with_its_size(tmp_path):
    figure = Figure(figsize=(3, 2))
    figure.subplots().plot([0, 1], color="#D55E00")
    PAINT(figure, tmp_path / "one.png", dpi=100)
    picture = inlined(tmp_path / "one.png")
    assert (picture.width, picture.height, picture.file) == (300, 200, "one.png")
    assert len(picture.source) < 1.34 * (tmp_path / "one.png").stat().st_size


def test_more_vectors_than_have_examples_are_cut_off_aloud(run, monkeypatch):
    monkeypatch.setattr(page_module, "MOST_VECTORS", 1)
    _, page = page_of(run)
    assert page.source.count("<h3>") == 1
    assert "examples of the first 1 of 2 vectors" in page.text


def test_the_records_of_a_directory_are_read_once(run, monkeypatch):
    read = []
    text = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, *a, **k: read.append(path) or text(path, *a, **k))
    read_records(run)
    assert len(read) == len({*read})


def test_the_templates_are_package_data():
    import tomllib

    root = Path(page_module.__file__).parents[3]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["gradsteer"]
    shipped = {path for pattern in patterns for path in (root / "gradsteer").glob(pattern)}
    assert {*(root / "gradsteer" / "resources" / "report").iterdir()} <= shipped
