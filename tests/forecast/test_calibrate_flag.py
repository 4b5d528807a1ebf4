"""attribute --model.calibrate through the real command line; forecast and calibrate on two processes.

Also that a forecast and the steering that it is for agree in their configs.
"""

import json
from collections import Counter

import pytest
import yaml
from judged import forecast_words, lines_of, message_of, rows_of
from road import run, write_lines
from test_configs import CONFIGS
from test_distributed import finish_on_two, kill_both, start_on_two

from gradsteer.attribution.pile_partition import halves_of_prompts
from gradsteer.data.pile_filters import PileFilter
from gradsteer.data.piles import read_pile
from gradsteer.forecast.calibration import Calibration
from gradsteer.models.loading import load_tokenizer
from gradsteer.vectors.parameter_vectors import SteeringVector

# a tiny model rarely ends within three tokens; a slope from few responses is noisy
pytestmark = [
    pytest.mark.filterwarnings("ignore:forecast. .* were cut at the length limit"),
    pytest.mark.filterwarnings("ignore:vector a. its slope is within two standard errors"),
    pytest.mark.filterwarnings("ignore:vector a. its two halves have a cosine of"),
]


def piles_of(responses):
    sides = (("shown", True), ("other", False))
    return json.dumps({name: {"responses": str(responses), "where": {"a": value}} for name, value in sides})


def attribute_words(judged, out, responses, calibrate=None):
    given = [] if calibrate is None else ["--model.calibrate", calibrate]
    return [
        "attribute", "--model.model_name_or_path", str(judged.anchor), "--output_dir", str(out), "--trainer.logger",
        "false", "--data.piles", piles_of(responses), "--vectors.a", "[shown, other]", *given,
    ]  # fmt: skip


@pytest.fixture
def few(judged, tmp_path):
    """Twelve responses a pile, to ten prompts."""
    rows = lines_of(judged.directory / "responses" / "piles.jsonl")
    chosen = {True: [], False: []}
    for row in rows:
        mine = chosen[row["verdicts"]["a"]]
        if len(mine) < 12 and sum(other["id"] == row["id"] for other in mine) < 2:
            mine.append(row)
    return write_lines(tmp_path / "few.jsonl", [*chosen[True], *chosen[False]])


def metadata_of(out):
    return SteeringVector.read_header(out / "vectors" / "a.safetensors")


def test_by_default_the_slope_is_taken_from_all_and_else_from_as_many_as_asked(judged, tmp_path, capsys):
    responses = judged.directory / "responses" / "piles.jsonl"
    run(*attribute_words(judged, tmp_path / "default", responses))
    words = [*attribute_words(judged, tmp_path / "asked", responses), "--model.slope_responses"]
    run(*words, 100)
    found, some = (Calibration.read(metadata_of(tmp_path / name)) for name in ("default", "asked"))
    assert found.slope == pytest.approx(sum(found.halves) / 2)
    assert (found.temperature, found.top_p) == (1.0, 1.0)
    numbers = Counter(row["verdicts"]["a"] for row in lines_of(responses))
    assert (found.num_plus, found.num_minus) == (numbers[True], numbers[False])
    assert found.slope > 2 * found.standard_error > 0
    assert (some.num_plus, some.num_minus) == (100, 100)
    assert some.standard_error > 1.2 * found.standard_error
    assert abs(some.slope - found.slope) < 3 * some.standard_error
    header = metadata_of(tmp_path / "default")
    assert json.loads(header["plus_where"]) == {"a": True}
    assert (tmp_path / "default" / "gradients" / "halves" / "shown-1.safetensors").is_file()
    pile = read_pile("shown", PileFilter(str(responses), {"a": True}), load_tokenizer(str(judged.anchor)))
    assert set(halves_of_prompts([pile]).values()) == {1, 2}


def test_null_vectors_have_no_slope(judged):
    assert Calibration.read(SteeringVector.read_header(judged.vector("a"))) is not None
    null = judged.directory / "vectors" / "permuted" / "a-0.safetensors"
    assert Calibration.read(SteeringVector.read_header(null)) is None


def test_a_count_that_makes_no_sense_is_refused(judged, few, tmp_path, capsys):
    words = attribute_words(judged, tmp_path, few)
    message = message_of([*words, "--model.slope_responses", "19"], capsys)
    assert "model.slope_responses is 19; accepted: 20 or more" in message
    message = message_of([*words, "--model.slope_responses", "20", "--model.calibrate", "false"], capsys)
    assert "model.slope_responses is 20, which has no effect without model.calibrate" in message
    words[words.index("--vectors.a") :] = []
    message = message_of([*words, "--model.slope_responses", "20"], capsys)
    assert "there are no vectors to take a slope of: --vectors.NAME [PLUS, MINUS]" in message


def test_too_few_responses_are_said_by_default_and_taken_where_asked(judged, few, tmp_path, caplog):
    with caplog.at_level("INFO"):
        run(*attribute_words(judged, tmp_path / "default", few))
    assert "vector a: no slope is taken (pile 'shown' holds 12 responses; at least 20 are wanted)" in caplog.text
    assert "calibration" not in metadata_of(tmp_path / "default")
    assert not (tmp_path / "default" / "gradients" / "halves").exists()
    caplog.clear()
    with caplog.at_level("INFO"):
        run(*attribute_words(judged, tmp_path / "asked", few, calibrate="true"))
    found = Calibration.read(metadata_of(tmp_path / "asked"))
    assert (found.num_plus, found.num_minus) == (12, 12)
    assert f"vector a: slope <S, V> = {found.slope:.4g} +- " in caplog.text
    plain, asked = (SteeringVector.load(tmp_path / name / "vectors" / "a.safetensors") for name in ("default", "asked"))
    assert asked.cosine(plain) == pytest.approx(1, abs=1e-5)  # the vector itself is the same


def test_false_takes_no_slope_and_says_nothing(judged, tmp_path, caplog):
    with caplog.at_level("INFO"):
        run(*attribute_words(judged, tmp_path, judged.directory / "responses" / "piles.jsonl", calibrate="false"))
    assert "slope <S, V>" not in caplog.text
    assert "no slope" not in caplog.text
    assert "calibration" not in metadata_of(tmp_path)


def test_a_slope_that_cannot_be_taken_is_refused_where_asked(judged, few, inputs, tmp_path, capsys):
    def refused(responses, *more):
        words = attribute_words(judged, tmp_path / "out", responses, calibrate="true")
        message = message_of([*words, *more], capsys)
        assert "model.calibrate: the slope of vector 'a' cannot be taken: " in message
        return message

    rows = lines_of(few)
    greedy = write_lines(tmp_path / "greedy.jsonl", [{**row, "temperature": 0.0} for row in rows])
    assert "at temperature 0: greedy replies have no score function" in refused(greedy)
    unknown = write_lines(tmp_path / "unknown.jsonl", [{**row, "top_p": None} for row in rows])
    assert "the responses do not say at which temperature and top_p" in refused(unknown)
    [prompt, *_] = [row["id"] for row in rows]
    one = write_lines(tmp_path / "one.jsonl", [row for row in rows if row["id"] == prompt or row["verdicts"]["a"]])
    assert "one half of the prompts is too small" in refused(one)
    texts = ["--data.piles", json.dumps({"shown": str(inputs / "chat.jsonl"), "other": str(inputs / "chat.jsonl")})]
    assert "pile 'shown' holds texts, not sampled responses with token ids" in refused(few, *texts)


@pytest.mark.slow
def test_a_slope_in_bfloat16_is_that_of_float32_within_its_error(judged, tmp_path):
    rows = lines_of(judged.directory / "responses" / "piles.jsonl")
    sampled = write_lines(tmp_path / "rounded.jsonl", [{**row, "dtype": "bfloat16"} for row in rows])
    run(*attribute_words(judged, tmp_path / "half", sampled, calibrate="true"), "--model.dtype", "bfloat16")
    half, full = (
        Calibration.read(header) for header in (metadata_of(tmp_path / "half"), metadata_of(judged.directory))
    )
    assert half.slope == pytest.approx(full.slope, abs=full.standard_error)
    assert SteeringVector.load(tmp_path / "half" / "vectors" / "a.safetensors").metadata["dtype"] == "bfloat16"


def on_one_and_two(words, out, strategy="ddp"):
    """The output directories of a command line on one process and on two."""
    process = start_on_two(words, out, strategy)
    try:
        run(*words, "--output_dir", out / "one")
        finish_on_two(process, out)
    finally:
        kill_both(process)
    return out / "one", out / "two"


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(120)
def test_forecast_on_two_processes_equals_one(judged, tmp_path):
    words = forecast_words(judged, tmp_path, steering__system_prompts='{"x": "be brief"}', steering__kl_budgets=0.01)
    one, two = (rows_of(directory / "forecast.json") for directory in on_one_and_two(words, tmp_path))
    assert list(two) == list(one)
    for name, row in one.items():
        assert two[name]["alpha"] == pytest.approx(row["alpha"], rel=1e-6)
        for behavior, rate in row["behaviors"].items():
            assert two[name]["behaviors"][behavior] == pytest.approx(rate, abs=1e-6)
        sizes = [rows[name]["predicted"]["effective_sample_size"] for rows in (one, two)]
        assert sizes[1] == pytest.approx(sizes[0], rel=1e-6)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(120)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_calibrate_on_two_processes_equals_one(judged, tmp_path, strategy):
    words = attribute_words(judged, tmp_path, judged.directory / "responses" / "piles.jsonl")
    one, two = (Calibration.read(metadata_of(directory)) for directory in on_one_and_two(words, tmp_path, strategy))
    assert two.slope == pytest.approx(one.slope, rel=1e-3)  # differences of forward passes, rounded otherwise
    assert two.standard_error == pytest.approx(one.standard_error, rel=1e-3)


@pytest.mark.parametrize("directory", ["demo", "demo-calibration"])
def test_a_runs_commands_agree_on_judge_sampling_and_prompts(directory):
    """What is forecast from must be sampled and judged as what comes out is."""
    names = ("evaluate_evaluation", "steer", "forecast")
    sampled, steer, forecast = (
        yaml.safe_load((CONFIGS / directory / f"{name}.yaml").read_text()) for name in names
    )  # fmt: skip
    assert sampled["evaluation"]["judge"] == steer["evaluation"]["judge"]
    assert sampled["data"]["prompts"] == steer["data"]["prompts"]
    for option in ("model_name_or_path", "temperature", "max_new_tokens", "num_samples"):
        assert sampled["model"][option] == steer["model"][option]
    assert "sampling_seed" in steer["model"], "the same draws would agree with their own forecast"
    responses = "{input_dir}/responses/" + sampled["name"] + ".jsonl"
    assert forecast["forecasting"]["responses"] == responses
    assert steer.get("forecasting", {"responses": responses})["responses"] == responses
    assert forecast["model"]["model_name_or_path"] == steer["model"]["model_name_or_path"]
    for name, file in steer["steering"]["vectors"].items():
        assert forecast["steering"]["vectors"][name] == file
    demo = yaml.safe_load((CONFIGS / "demo" / "steer.yaml").read_text())
    assert steer["evaluation"]["judge"] == demo["evaluation"]["judge"]
