"""What credit asks of piles, and makes of them, without a run."""

from types import SimpleNamespace

import numpy as np
import pytest
from road import write_lines
from test_attribution_module import response
from tokenizers_zoo import chatml_tokenizer

from gradsteer.attribution.credit import CreditOptions
from gradsteer.attribution.pile_partition import Part, Permutation, Wanted, plan_parts
from gradsteer.data.decided import why_nothing_is_decided
from gradsteer.data.pile_filters import PileFilter
from gradsteer.data.piles import read_pile
from gradsteer.trainer import credit as in_a_run
from gradsteer.trainer.credit import TokenCredit, _Sides
from gradsteer.trainer.credit_checks import check_credit, loss_temperature
from gradsteer.trainer.modules.gradient_options import credit_options

REPLY = "bread today bread today bread"


@pytest.fixture(scope="module")
def tokenizer():
    return chatml_tokenizer()


def rows(tokenizer, shown, start=0, **more):
    """A row for each verdict; a true one is decided after the first word."""
    found = [response(tokenizer, f"p{start + number}", REPLY, a=each) for number, each in enumerate(shown)]
    return [row | {"decided": {"a": 5} if row["verdicts"]["a"] else {}, **more} for row in found]


def read(tokenizer, files, shown, **options):
    return read_pile(str(shown), PileFilter(files, {"a": shown}), tokenizer, until_decided=True, **options)


def test_squared_gradients_are_of_replies_that_are_not_cut(tokenizer, tmp_path):
    file = str(write_lines(tmp_path / "r.jsonl", rows(tokenizer, [True, True])))
    cut, whole = read(tokenizer, file, True), read_pile("whole", file, tokenizer)
    assert cut.examples != whole.examples
    *parts, squares = plan_parts([cut], fisher="True")
    assert [part.examples for part in parts] == [cut.examples]
    assert squares.examples == whole.examples
    length = len(cut.examples[0].input_ids) + 1
    limited = read(tokenizer, file, True, max_length=length)
    assert limited.examples == cut.examples
    assert plan_parts([limited], fisher="True")[-1].examples == [each.up_to(length) for each in whole.examples]


def test_a_limit_before_the_deciding_token_takes_no_stop_token(tokenizer, tmp_path):
    """Behind the deciding one there is none any more."""
    file = str(write_lines(tmp_path / "r.jsonl", [row | {"decided": {"a": 16}} for row in rows(tokenizer, [True])]))
    limit = len(read(tokenizer, file, True).examples[0].input_ids) - 1
    assert read(tokenizer, file, True, max_length=limit).truncation.targets_lost == 1
    assert read(tokenizer, file, True, max_length=limit).truncation.stops_lost == 0


@pytest.mark.parametrize("decided", [5, [5], "a", {"a": True}, {"a": 0}])
def test_a_place_that_is_none_is_refused(decided):
    with pytest.raises(ValueError, match=r"^f:1: decided is .*; accepted: behaviors with numbers of characters"):
        why_nothing_is_decided([("f:1", {"decided": decided})], {"a": True})


def test_a_file_may_hold_replies_of_one_verdict_alone(tokenizer, tmp_path):
    """As one of steered samples may: both piles share out what the files hold all the same."""
    first = str(write_lines(tmp_path / "1.jsonl", rows(tokenizer, [True, False, False])))
    second = str(write_lines(tmp_path / "2.jsonl", rows(tokenizer, [True, True], start=3)))
    third = str(write_lines(tmp_path / "3.jsonl", rows(tokenizer, [False, False, False, True, True], start=5)))
    options, vectors = CreditOptions("baseline"), {"v": ["True", "False"]}

    def check(plus, minus):
        piles = [read(tokenizer, plus, True), read(tokenizer, minus, False)]
        check_credit(options, piles, vectors, loss_mask="assistant")

    check([first, second], [second, first])
    for minus in ([first], [third]):  # of as many judged replies, but others
        with pytest.raises(ValueError, match="judged replies: those in neither or both would bias it"):
            check([first, second], minus)


def test_a_sampling_temperature_is_not_taken_of_top_k(tokenizer, tmp_path):
    sampling = {"temperature": 0.6, "top_p": 1.0}
    for top_k in (None, 0, -1, 40):
        file = write_lines(tmp_path / "r.jsonl", rows(tokenizer, [True], **sampling, top_k=top_k))
        pile = read(tokenizer, str(file), True)
        if top_k != 40:
            assert loss_temperature("sampled", [pile]) == 0.6
            continue
        with pytest.raises(ValueError, match=r"r.jsonl:1 was sampled with top_k; accepted: without"):
            loss_temperature("sampled", [pile])


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("inf"), float("nan"), "cold"])
def test_a_temperature_is_a_positive_number(temperature):
    with pytest.raises(ValueError, match="accepted: more than 0, or sampled"):
        credit_options("reply", None, "sum", temperature, "cross_entropy")


def test_a_part_is_another_one_where_other_replies_predict_its_verdicts(tokenizer, tmp_path, monkeypatch):
    """The halves of the prompts depend on all piles: another pile may move a reply into the other half."""
    file = str(write_lines(tmp_path / "r.jsonl", rows(tokenizer, [True, False, True, False])))
    odds = SimpleNamespace(odds=[np.full(5, 0.5)] * 4)
    monkeypatch.setattr(in_a_run, "predict_verdicts", lambda *arguments, **options: odds)
    digests = []
    for more in ([], ["0" * 16]):  # a prompt that comes first, so that the others change their halves
        piles = [read(tokenizer, file, shown) for shown in (True, False)]
        other = SimpleNamespace(name="other", prompts=more)
        trainer = SimpleNamespace(datamodule=SimpleNamespace(piles=[*piles, other]))
        credit = TokenCredit(trainer, None, CreditOptions("baseline"))
        places = [[(pile.name, 0), (pile.name, 1)] for pile in piles]
        part = Part((Wanted("p", "True", permutation=Permutation("v", "plus", 0, 0)),))
        credit._weigh(_Sides("v", *places, [part]), dict.fromkeys([*places[0], *places[1]]), lambda: None)
        digests.append(credit.digest(part))
    assert digests[0] != digests[1]


def test_states_that_memory_does_not_hold_are_refused_with_both_numbers(monkeypatch):
    """All processes of a machine hold all of them, two bytes a number."""
    monkeypatch.setattr(in_a_run, "available_bytes", lambda device, held: 2**30)
    in_a_run._check_room(2**19, 2**9, SimpleNamespace(num_devices=2))
    with pytest.raises(
        ValueError, match=r"of 524,289 tokens .* need 1.0 GiB of memory, and 1.0 GiB are free; accepted"
    ):
        in_a_run._check_room(2**19 + 1, 2**9, SimpleNamespace(num_devices=2))
