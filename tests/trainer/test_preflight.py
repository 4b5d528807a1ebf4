"""What a steer clears away before it begins."""

from types import SimpleNamespace

import pytest
import torch

from gradsteer.data.response_rows import prompt_digest
from gradsteer.forecast.calibration import Calibration
from gradsteer.forecast.forecast_file import other_prompts, prompts_said
from gradsteer.judges import KeywordJudge
from gradsteer.records import replacing
from gradsteer.trainer.callbacks.preflight import Preflight
from gradsteer.trainer.session import Session
from gradsteer.vectors.contrast import Contrast
from gradsteer.vectors.parameter_vectors import SteeringVector


def check(directory, steering, judge, rows):
    """Runs the checks of a steer that samples these rows."""
    session = Session(steering=steering, judging=SimpleNamespace(judge=judge))
    data = SimpleNamespace(batches=[rows], batch_size=1)
    Preflight(str(directory)).setup(
        SimpleNamespace(session=session, datamodule=data, is_global_zero=True), None, "test"
    )


@pytest.fixture
def begin(tmp_path):
    def begin(**changes):
        trainer = SimpleNamespace(**{"is_global_zero": True, "session": Session(steering=SimpleNamespace())} | changes)
        Preflight(str(tmp_path)).on_test_batch_start(trainer, None, [], 0, 0)

    return begin


def test_what_a_killed_steer_left_half_written_is_removed_and_nothing_else(tmp_path, begin):
    with replacing(tmp_path / "steps.json") as temporary:
        temporary.write_text("{}")
        left = temporary.name
    others = [
        "steps.json",
        ".steps.mine.tmp.json",
        ".steps.0123456789ab.tmp.json.old",
        ".results.0123456789ab.tmp.json",
    ]
    for name in (left, ".steps.52dcde42c81d.tmp.json", *others):
        (tmp_path / name).write_text("{}")
    begin(is_global_zero=False)
    assert (tmp_path / left).exists()
    begin()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def test_a_forecast_says_its_prompts_in_whatever_order_and_one_of_before_says_nothing():
    about = prompts_said(["a", "b"])
    assert about == prompts_said({"b", "a"})
    assert about["num_prompts"] == 2
    assert other_prompts(about, {"b", "a"}) is None
    assert other_prompts({"num_prompts": 2}, {"c"}) is None
    for others in ({"a"}, {"a", "b", "c"}, {"a", "c"}, {"ab"}):
        said = f"the prompts that are sampled ({len(others)}) are not those that it is of (2)"
        assert said in other_prompts(about, others)


@pytest.mark.parametrize(("sampled", "warns"), [(["x?", "y?"], False), (["x?"], True), (["x?", "y?", "z?"], True)])
def test_steer_warns_of_a_forecast_of_other_prompts(tmp_path, recwarn, sampled, warns):
    about = prompts_said([prompt_digest("x?"), prompt_digest("y?")])
    rows = [{"set": "evaluation", "prompt": text} for text in sampled]
    steering = SimpleNamespace(
        prompt_sources={}, seed_faithful=False, forecast={"forecast": about}, pipelines=[[]], vectors={}
    )
    check(tmp_path, steering, KeywordJudge({"a": ["a"]}), [*rows, {"set": "benign", "prompt": "of another set"}])
    assert any("are not those that it is of (2)" in str(each.message) for each in recwarn) is warns


@pytest.mark.parametrize(
    ("judges", "pipelines", "behavior", "warns"),
    [
        (["this"], [[]], "a", False), ([], [[]], "a", False), (None, [[]], "a", False), (["other"], [[]], "a", True),
        (["other", "this"], [[]], "a", True), (["other"], [["diff_weighting"]], "a", False),
        (["other"], [[]], "b", False),
    ],
)  # fmt: skip
def test_steer_warns_of_a_slope_between_the_classes_of_another_judge(
    tmp_path, recwarn, judges, pipelines, behavior, warns
):
    judge = KeywordJudge({"a": ["a"]})
    vector = SteeringVector({"w": torch.ones(1)})
    if judges is not None:
        found = tuple(judge.fingerprint() if name == "this" else name for name in judges)
        Calibration(1.0, 0.1, (1.0, 1.0), 1.0, 1.0, 30, 30, found).write(vector)
    steering = SimpleNamespace(
        prompt_sources={}, seed_faithful=False, forecast=None, pipelines=pipelines, vectors={"v": vector},
        contrasts={"v": Contrast({behavior: True}, {behavior: False}, behavior)},
    )  # fmt: skip
    check(tmp_path, steering, judge, [])
    said = [str(each.message) for each in recwarn if "vector v: its slope" in str(each.message)]
    assert len(said) == warns
