"""Classes of responses: the combinations of verdicts."""

import pytest

from gradsteer.evaluation.verdict_classes import classes_of, in_class


def test_two_behaviors_have_four_classes():
    assert classes_of(["bridge", "recipe"]) == {
        "bridge and recipe": {"bridge": True, "recipe": True},
        "only bridge": {"bridge": True, "recipe": False},
        "only recipe": {"bridge": False, "recipe": True},
        "neither": {"bridge": False, "recipe": False},
    }


def test_the_order_of_behaviors_does_not_matter():
    """A file's verdicts are sorted, a judge's are as it was configured: the two are compared by these names."""
    assert classes_of(["recipe", "bridge"]) == classes_of(["bridge", "recipe"])


@pytest.mark.parametrize(("number", "classes"), [(0, 0), (1, 0), (2, 4), (3, 8), (4, 16), (5, 0)])
def test_how_many_classes_there_are(number, classes):
    assert len(classes_of([f"b{index}" for index in range(number)])) == classes


def test_classes_of_three_partition_the_responses():
    behaviors = ["a", "b", "c"]
    found = classes_of(behaviors)
    assert {"a and b and c", "a and b", "only c", "none"} < set(found)
    for number in range(8):
        verdicts = {name: bool(number >> bit & 1) for bit, name in enumerate(behaviors)}
        assert [name for name, where in found.items() if in_class(verdicts, where)] == [
            name for name, where in found.items() if where == verdicts
        ]
        assert sum(in_class(verdicts, where) for where in found.values()) == 1


@pytest.mark.parametrize("behaviors", [["a", "neither"], ["a", "only a"], ["a", "b", "a and b"], ["a", "b and c", "c"]])
def test_a_behavior_may_be_called_like_a_class(behaviors):
    found = classes_of(behaviors)
    assert len(found) == 2 ** len(behaviors)
    assert not set(found) & set(behaviors)


def test_a_response_with_an_unscored_verdict_is_of_no_known_class():
    where = {"a": True, "b": False}
    assert in_class({"a": True, "b": False, "c": None}, where) is True
    assert in_class({"a": True, "b": True}, where) is False
    assert in_class({"a": True, "b": None}, where) is None
    assert in_class({"a": False}, where) is None
