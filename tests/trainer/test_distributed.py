"""Two processes give what one gives: attribute and evaluate through the real command line, on gloo."""

import json
import os
import signal
import subprocess
import sys

import pytest
from overriding import overridden
from processes import fork_command, two_places
from road import PATTERNS, QUIET, run, write_lines
from test_configs import CONFIGS
from test_pile_gradient import relative_error

from gradsteer.forecast.calibration import Calibration
from gradsteer.vectors.parameter_vectors import ParameterVector

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(120)]

PILES = {"odd": 7, "single": 1, "even": 4}
STRATEGIES = {
    "ddp": ["--trainer.devices", 2, "--trainer.strategy", "ddp"],
    "fsdp": ["--config", CONFIGS / "strategy" / "fsdp.yaml"],
}
OTHERS = [("packs", "fsdp"), ("attribute", "fsdp"), ("packs", "ddp")]
NUMBERS = ("mean_token_loss", "loss_at_base", "loss_at_anchor", "along_path")
# the work's digest tells the strategies apart; whether a seed was set is the test's own doing
OF_THE_RUN = {"work_digest", "seed", "split_half_cosine", "split_half_cosine_by_layer", "calibration", *NUMBERS}


def start_on_two(words, out, strategy, more=()):
    """Starts a command line on two processes; its artifacts go to out/two."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [*words, *STRATEGIES[strategy], *more, *QUIET, "--output_dir", out / "two"]
    with (out / "log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "gradsteer", *overridden(line)],
            stdout=log, stderr=log, env=environment, start_new_session=True,
        )  # fmt: skip


def run_on_two(words, out, strategy):
    """Runs a command line on two processes that are there already, as on a cluster; its artifacts go to out/two."""
    line = [*words, *STRATEGIES[strategy], *QUIET, "--output_dir", out / "two"]
    ranks = [fork_command(line, log=out / "log", environment=place) for place in two_places()]
    try:
        for process in ranks:
            process.join(timeout=100)
    finally:
        for process in ranks:
            process.kill()
    log = (out / "log").read_text()
    assert [process.exitcode for process in ranks] == [0, 0], log
    assert "Starting with 2 processes" in log
    return log


def finish_on_two(process, out):
    """Waits for what `start_on_two` started; gives what it said."""
    status = process.wait(timeout=110)
    log = (out / "log").read_text()
    assert status == 0, log
    assert "Starting with 2 processes" in log
    return log


def kill_both(process):
    """Kills a command line and the second process that it started, without a warning."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def check_same_vectors(ours, theirs, names):
    """What an interrupted run left is what an uninterrupted one did, metadata and all."""
    for name in names:
        found, expected = (ParameterVector.load(directory / f"{name}.safetensors") for directory in (ours, theirs))
        assert relative_error(found, expected) < 1e-6, name
        assert found.metadata == expected.metadata


def check_same_files(two, one, files):
    """Two processes wrote these files, no others, and what one process wrote."""
    assert sorted(str(path.relative_to(two)) for path in two.rglob("*.safetensors")) == sorted(files)
    assert not [path for path in two.rglob("*") if path.name.startswith(".") and path.name != ".locks"]
    for file in files:
        ours, theirs = (ParameterVector.load(directory / file) for directory in (two, one))
        assert relative_error(ours, theirs) < 1e-6, file
        said, expected = ours.metadata, theirs.metadata
        assert {k: v for k, v in said.items() if k not in OF_THE_RUN} == {
            k: v for k, v in expected.items() if k not in OF_THE_RUN
        }
        for key in expected.keys() & set(NUMBERS):
            assert float(said[key]) == pytest.approx(float(expected[key]), rel=1e-5), key
        if "calibration" in expected:
            slopes = [Calibration.read(each) for each in (said, expected)]
            assert slopes[0].slope == pytest.approx(slopes[1].slope, rel=1e-4)
            assert slopes[0].standard_error == pytest.approx(slopes[1].standard_error, rel=1e-4)


@pytest.fixture(scope="module")
def commands(experiment, inputs, tmp_path_factory):
    """Command lines by name, each without its output directory."""
    directory = tmp_path_factory.mktemp("piles")
    chats = [json.loads(line) for line in (inputs / "chat.jsonl").read_text().splitlines()]
    piles = {name: str(write_lines(directory / f"{name}.jsonl", chats[:size])) for name, size in PILES.items()}
    piles["sampled"] = {"responses": str(experiment / "responses" / "first.jsonl"), "where": {"a": True}}
    anchor = ["--model.model_name_or_path", experiment / "anchor", "--trainer.logger", "false"]
    evaluate = [
        "evaluate", *anchor, "--data.prompts", inputs / "prompts.jsonl", "--model.num_samples", 3, "--evaluation.judge",
        "KeywordJudge", "--evaluation.judge.patterns", PATTERNS, "--evaluation.heldout", inputs / "chat.jsonl",
        "--model.max_new_tokens", 8,
    ]  # fmt: skip
    attribute = [
        "attribute", *anchor, "--data.piles", json.dumps(piles), "--vectors.v", "[odd, single]", "--vectors.w",
        "[odd, even]", "--data.halves", "true", "--data.permutations", 1,
    ]  # fmt: skip
    forecast = [
        "forecast", *anchor, "--forecasting.responses", experiment / "responses" / "first.jsonl", "--steering.alphas",
        "[0.02, 0.05]", "--steering.vectors.a", experiment / "vectors" / "a.safetensors", "--steering.curve_points", 3,
        "--steering.seed_faithful", "true",
    ]  # fmt: skip
    return {
        "forecast": forecast,
        # every example is a pack of its own, so that an odd pile has an odd number of them
        "attribute": [*attribute, "--data.token_budget", 1],
        "packs": [*attribute, "--data.token_budget", 40],
        "evaluate": [*evaluate, "--data.batch_size", 2],
        "idle": [*evaluate, "--data.max_prompts", 1],  # one batch: the second process has nothing to sample
    }


@pytest.fixture(scope="module")
def on_two(commands, tmp_path_factory):
    """Gives output directory and log of a command on two processes."""
    started = {}

    def start(name, strategy):
        if (name, strategy) not in started:
            out = tmp_path_factory.mktemp(f"{name}_{strategy}")
            # Lightning starts the second process, or both are there already
            begin = start_on_two if strategy == "fsdp" else run_on_two
            started[name, strategy] = out, begin(commands[name], out, strategy)

    def finish(name, strategy):
        start(name, strategy)
        out, begun = started[name, strategy]
        return out / "two", begun if isinstance(begun, str) else finish_on_two(begun, out)

    yield finish
    for _, begun in started.values():
        if not isinstance(begun, str):
            kill_both(begun)


@pytest.fixture(scope="module")
def one(commands, tmp_path_factory):
    """The output directory of attribute on one process."""
    directory = tmp_path_factory.mktemp("one")
    run(*commands["attribute"], "--output_dir", directory)
    return directory


# the halves of a pile of one example, and of a few, are what the warnings say they are
@pytest.mark.filterwarnings("ignore:pile .* all of its prompts are in one half", "ignore:vector .* mostly noise")
@pytest.mark.parametrize(
    ("name", "strategy"),
    [pytest.param(*each, marks=pytest.mark.slow) for each in (("attribute", "ddp"), *OTHERS)],
)  # fmt: skip
def test_attribute_on_two_processes_equals_one(one, on_two, name, strategy):
    """Lightning would even the processes out by repeating examples: 80% wrong on odd piles."""
    two, log = on_two(name, strategy)
    halves = [f"{pile}-{half}" for pile in ("odd", "even", "sampled") for half in (1, 2)]
    halves.append(next(path.stem for path in (one / "gradients" / "halves").glob("single-*")))
    files = [f"gradients/{pile}.safetensors" for pile in (*PILES, "sampled")]
    files += [f"gradients/halves/{half}.safetensors" for half in halves]
    files += ["vectors/v.safetensors", "vectors/w.safetensors"]
    files += [f"gradients/permuted/{vector}-0-{side}.safetensors" for vector in "vw" for side in ("plus", "minus")]
    files += ["vectors/permuted/v-0.safetensors", "vectors/permuted/w-0.safetensors"]
    check_same_files(two, one, files)
    for pile, size in PILES.items():
        assert ParameterVector.load(two / "gradients" / f"{pile}.safetensors").metadata["num_examples"] == str(size)
        assert log.count(f"-> {two / 'gradients' / pile}.safetensors") == 1, "written by one of the processes"
    assert "padded batches" not in log, "packs are refused"


# steer on two processes (test_coherence.py) samples, judges and measures likewise
@pytest.mark.parametrize("name", ["evaluate", pytest.param("idle", marks=pytest.mark.slow)])
def test_evaluate_on_two_processes_writes_the_same_bytes(commands, tmp_path, name):
    run(*commands[name], "--output_dir", tmp_path)
    run_on_two(commands[name], tmp_path, "ddp")
    two = tmp_path / "two"
    for file in ("responses/anchor.jsonl", "evaluations/anchor.json"):
        assert (two / file).read_bytes() == (tmp_path / file).read_bytes()
    assert {path.name for path in (two / "responses").iterdir()} == {"anchor.jsonl", ".sampled", ".locks"}


# a tiny model rarely ends within so few tokens
@pytest.mark.filterwarnings("ignore:forecast. .* were cut at the length limit")
def test_a_curve_on_two_processes_equals_one(commands, tmp_path):
    """Nodes and the alpha left out: each process scores its share of the responses."""
    run(*commands["forecast"], "--output_dir", tmp_path)
    run_on_two(commands["forecast"], tmp_path, "ddp")
    two, one = (json.loads((place / "forecast.json").read_text()) for place in (tmp_path / "two", tmp_path))
    check_close(two["forecast"]["curves"], one["forecast"]["curves"])
    assert one["forecast"]["curves"]
    check_close(two["conditions"], one["conditions"])


def check_close(ours, theirs):
    """Two values of JSON are the same but for the last digits of their numbers."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key in theirs:
            check_close(ours[key], theirs[key])
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for pair in zip(ours, theirs, strict=True):
            check_close(*pair)
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)
    else:
        assert ours == theirs
