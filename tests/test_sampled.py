"""What a steer clears away before it begins."""

from types import SimpleNamespace

import pytest

from gradsteer.callbacks.sampled import SampledConditions
from gradsteer.records import replacing


@pytest.fixture
def begin(tmp_path):
    def begin(**changes):
        trainer = SimpleNamespace(**{"is_global_zero": True, "conditions": []} | changes)
        SampledConditions(str(tmp_path)).on_test_batch_start(trainer, None, [], 0, 0)

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
