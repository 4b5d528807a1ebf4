"""Where a text decides that a pattern matches: no later text may undo it, or move it."""

import random

import pytest

from gradsteer.judges import Exchange, HybridJudge, KeywordJudge
from gradsteer.judges.pattern_positions import decided_after
from gradsteer.judges.patterns import Pattern, compile_patterns

PATTERNS = [r"gate", r"\bship\b", r"go.*gate", r"a+b?", r"(?<!no )ship", r"(gate|ship)s", r"s\B"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_follows_neither_undoes_nor_moves_it(pattern):
    generator = random.Random(0)
    pieces = ["gate", "ship", "s", "no ", "go", " ", "a", "b", "x", "."]
    places = []
    for _ in range(400):
        compiled = Pattern("it", pattern, ignore_case=True)
        text = "".join(generator.choices(pieces, k=8))
        place = decided_after([compiled], text)
        if place is None:
            assert not compiled.search(text + " ") or not compiled.search(text + "x")
            continue
        places.append(place)
        for _ in range(5):
            other = text[:place] + "".join(generator.choices(pieces, k=generator.randrange(6)))
            assert compiled.search(other)
            assert decided_after([compiled], other) == place
    assert len(places) > 20
    assert len(set(places)) > 2


@pytest.mark.parametrize(
    ("patterns", "text", "place"),
    [
        ([r"golden gate"], "The Golden Gate is", 15),
        ([r"\bship\b"], "a ship, a ship", 7),  # the comma decides: "shipment" is no ship
        ([r"\bship\b"], "a ship", None),  # until the end
        ([r"ship", r"gate"], "gate and ship", 4),  # any of them
        ([r"go.*gate"], "go gate gate", 7),  # not where the longest match ends
        ([r"ship$"], "a ship", None),
        ([r"ship(?=s)"], "a ships", None),
        ([r"ship(?!s)", r"a"], "ship a", 6),  # of the first one nothing is said
        ([r"ship(?:\b|x)"], "a ship, a ship", 7),  # "ships" would undo it, though "shipx" would not
        ([r"\s"], "  a ", 3),  # a blank text shows nothing
    ],
)
def test_places(patterns, text, place):
    assert decided_after(compile_patterns("it", patterns, ignore_case=True), text) == place


def test_judges_by_patterns_say_where_and_others_nothing():
    keyword = KeywordJudge({"bridge": ["gate"], "recipe": ["bake"]})
    (found,) = keyword.judge([Exchange("?", "the gate opens")])
    assert found.columns()["decided"] == {"bridge": 8}
    rest = KeywordJudge({"bridge": ["span"], "recipe": ["roast"]})
    rest._verdicts = lambda response: type(found)({"bridge": False, "recipe": True}, {})
    (joined,) = HybridJudge({"bridge": ["gate"]}, rest).judge([Exchange("?", "the gate opens")])
    assert joined.values == {"bridge": True, "recipe": True}
    assert joined.decided == {"bridge": 8}
    assert "decided" not in type(found)({"bridge": True}, {}).columns()
    with pytest.raises(ValueError, match="'bridge' is not shown"):
        type(found)({"bridge": False}, {}, {"bridge": 3})
