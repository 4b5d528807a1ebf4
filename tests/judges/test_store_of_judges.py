"""A judge whose verdicts are stored: what was paid for is kept, and what the store holds counts."""

import pytest

from gradsteer.judges import Exchange, StoredJudge, Verdicts
from gradsteer.judges.store import VerdictStore
from gradsteer.judges.stored import Answer

YES, NO = Verdicts({"bridge": True}, {}), Verdicts({"bridge": False}, {})
ASKED = [Exchange("p", str(number)) for number in range(10)]


class Paid(StoredJudge):
    """Has so many questions under way at a time; each taken is paid for."""

    behaviors = ("bridge",)

    def __init__(self, store, at_once=1):
        super().__init__(store)
        self.at_once, self.taken, self.before = at_once, [], lambda: None

    def ask(self, exchanges):
        waiting, under_way = iter(exchanges), []
        while True:
            while len(under_way) < self.at_once and (exchange := next(waiting, None)) is not None:
                self.taken.append(exchange)
                under_way.append(exchange)
            if not under_way:
                return
            self.before()
            yield Answer(under_way.pop(0), YES)

    def fingerprint(self):
        return "paid"


def failing(monkeypatch, judge, fails):
    write, calls = judge.store.write, []

    def failing_write(fingerprint, exchange, verdicts):
        calls.append(exchange)
        if fails(len(calls)):
            raise OSError("no space left")
        return write(fingerprint, exchange, verdicts)

    monkeypatch.setattr(judge.store, "write", failing_write)
    return calls


def test_one_failed_write_loses_nothing_that_was_paid_for(monkeypatch):
    judge = Paid(None, at_once=3)
    failing(monkeypatch, judge, lambda number: number == 2)
    with pytest.raises(OSError, match="no space left"):
        judge.judge(ASKED)
    assert judge.taken == ASKED[:4], "no more is asked for"
    assert list(judge.store.read("paid", ASKED)) == ASKED[:4]
    assert judge.judge(ASKED) == [YES] * 10
    assert judge.taken == ASKED


def test_a_full_disk_ends_after_what_was_under_way(monkeypatch):
    judge = Paid(None, at_once=3)
    calls = failing(monkeypatch, judge, lambda number: number > 1)
    with pytest.raises(OSError, match="no space left"):
        judge.judge(ASKED)
    assert judge.taken == ASKED[:4]
    assert len(calls) == 3, "one more try for all of the rest, not one for each"
    assert list(judge.store.read("paid", ASKED)) == ASKED[:1]


def test_what_another_process_stored_first_counts(tmp_path):
    path = str(tmp_path / "verdicts.sqlite")
    judge, other = Paid(path), VerdictStore(path)
    judge.before = lambda: other.write("paid", ASKED[0], NO)
    assert judge.judge(ASKED[:2]) == [NO, YES]
    assert judge.judge(ASKED[:2]) == [NO, YES]
    other.close()
    judge.close()


def test_write_gives_what_is_stored_and_a_store_knows_its_judges():
    store = VerdictStore(None)
    assert not store.knows("paid")
    assert store.write("paid", ASKED[0], YES) == YES
    assert store.write("paid", ASKED[0], NO) == YES
    assert store.knows("paid")
    assert not store.knows("pai")
