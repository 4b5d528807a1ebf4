"""Keys are taken out of texts, whole and in parts; other words stay."""

import pytest

from gradsteer.judges.scrubbing import Scrubber

KEY = "sk-proj-Abcd1234Efgh5678Ijkl9012MnopWxYz"


@pytest.mark.parametrize(
    "shown", ["sk-p****", "****xYz", "sk-...xYz", "(sk-a\u2026)", "sk-XXXXXXXX", "<WxYz>", KEY[7:13]]
)
def test_scrubbing_finds_what_servers_show_of_a_key(shown):
    found = Scrubber(KEY)(f"the key {shown} is wrong")
    assert found.startswith("the key ")
    assert found.endswith(" is wrong")
    assert "<key>" in found
    assert not any(part in found for part in ("sk-", "xYz", KEY[7:13]))


def test_scrubbing_leaves_other_words_alone():
    text = "The request took 1.2 s... and nothing of the kind (xxx) was *** said."
    assert Scrubber(KEY)(text) == text
    assert Scrubber(None)("none") == "none"
    assert Scrubber("abc")("x abc y") == "x <key> y"
    assert KEY not in repr(Scrubber(KEY))
