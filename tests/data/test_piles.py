"""Piles by length, what makes a pile in the artifacts, and how its responses were sampled."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
from road import run, write_lines
from test_attribution_module import response
from test_attribution_options import encoded, line, models, piles, refused  # noqa: F401 (fixtures)
from test_pile_gradient import autograd_oracle, relative_error

from gradsteer.data.chat import encode_sampled
from gradsteer.data.chat_formats import prompt_text
from gradsteer.data.pile_filters import PileFilter, ResponseFilter
from gradsteer.data.piles import read_pile
from gradsteer.data.response_rows import prompt_digest
from gradsteer.data.sources import DataSource
from gradsteer.models.loading import load_causal_lm, load_tokenizer
from gradsteer.trainer.datamodules.piles import PileDataModule
from gradsteer.vectors.parameter_vectors import PileAverage, SteeringVector


@pytest.fixture(scope="module")
def tokenizer(experiment):
    return load_tokenizer(str(experiment / "anchor"))


@pytest.fixture(scope="module")
def by_length(tokenizer, tmp_path_factory):
    """Nine responses of rising length, one word more each; the first four show `a`, the others do not."""
    rows = [
        response(tokenizer, f"p{number}", " ".join(["bread"] * (number + 1)), a=number < 4, b=False)
        for number in range(9)
    ]
    lengths = [len(row["token_ids"]) for row in rows]
    assert lengths == sorted(set(lengths))
    return write_lines(tmp_path_factory.mktemp("by_length") / "responses.jsonl", rows)


def lines_of(pile):
    return [int(source.rsplit(":", 1)[1]) for source in pile.sources]


# --- by length -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "lines"), [("long", [6, 7, 8, 9]), ("short", [1, 2, 3, 4])])
def test_the_median_of_an_odd_number_goes_to_neither(by_length, tokenizer, length, lines):
    pile = read_pile("x", PileFilter(str(by_length), length=length), tokenizer)
    assert lines_of(pile) == lines
    assert pile.num_considered == 9


@pytest.mark.parametrize(("length", "lines"), [("long", [3, 4]), ("short", [1, 2])])
def test_the_median_is_of_the_responses_that_match(by_length, tokenizer, length, lines):
    pile = read_pile("x", PileFilter(str(by_length), {"a": True}, length=length), tokenizer)
    assert lines_of(pile) == lines


def test_also_is_asked_before_the_length(by_length, tokenizer, tmp_path):
    others = [response(tokenizer, f"p{number}", "bread", a=number not in (0, 8)) for number in range(9)]
    also = [ResponseFilter(str(write_lines(tmp_path / "others.jsonl", others)), {"a": True})]
    found = {
        length: lines_of(read_pile("x", PileFilter(str(by_length), {"b": False}, also, length), tokenizer))
        for length in ("long", "short")
    }
    assert found == {"long": [6, 7, 8], "short": [2, 3, 4]}  # of the lines 2 to 8


def test_ties_at_the_median_go_to_neither(tokenizer, tmp_path):
    rows = [response(tokenizer, f"p{i}", " ".join(["bread"] * n), a=True) for i, n in enumerate([1, 3, 3, 3, 5])]
    path = str(write_lines(tmp_path / "ties.jsonl", rows))
    found = [lines_of(read_pile("x", PileFilter(path, length=length), tokenizer)) for length in ("long", "short")]
    assert found == [[5], [1]]


def test_cut_replies_count_with_the_tokens_that_they_have(tokenizer, tmp_path):
    rows = [response(tokenizer, f"p{i}", " ".join(["bread"] * n), cut=n == 8, a=True) for i, n in enumerate([1, 2, 8])]
    pile = read_pile(
        "x", PileFilter(str(write_lines(tmp_path / "cut.jsonl", rows)), length="long"), tokenizer, max_length=30
    )
    assert lines_of(pile) == [3]
    assert len(pile.examples[0].input_ids) == 30  # max_length cuts what is taken, not what is compared
    rows = [response(tokenizer, f"p{i}", " ".join(["bread"] * n), cut=n == 8, a=True) for i, n in enumerate([1, 8, 8])]
    path = str(write_lines(tmp_path / "mostly.jsonl", rows))
    size = len(rows[1]["token_ids"])
    said = (
        f"pile 'x' is empty: of 3 matching responses, 2 of them truncated, none is longer than their median of {size}"
    )
    with pytest.raises(ValueError, match=said):
        read_pile("x", PileFilter(path, length="long"), tokenizer)
    assert lines_of(read_pile("x", PileFilter(path, length="short"), tokenizer)) == [1]


def test_another_length_is_refused(by_length, tokenizer, line, tmp_path, capsys):  # noqa: F811
    with pytest.raises(ValueError, match="pile 'x': length is 'middle'; accepted: long, short"):
        read_pile("x", PileFilter(str(by_length), length="middle"), tokenizer)
    pile = json.dumps({"x": {"responses": str(by_length), "length": "middle"}})
    message = refused(capsys, *line(tmp_path, "--data.piles", pile))
    assert "pile 'x' is neither a filter nor a file: {" in message
    assert 'length: "long" or "short"' in message


def test_long_against_short_is_a_vector_of_the_command_line(experiment, by_length, tmp_path):
    filters = {side: {"responses": str(by_length), "where": {"a": False}, "length": side} for side in ("long", "short")}
    run(
        "attribute", "--model.model_name_or_path", experiment / "anchor", "--output_dir", tmp_path, "--data.piles",
        json.dumps(filters), "--vectors.length", "[long, short]", "--trainer.logger", "false",
    )  # fmt: skip
    model = load_causal_lm(str(experiment / "anchor"), dtype="float64")
    rows = [json.loads(text) for text in by_length.read_text().splitlines()]
    examples = [
        encode_sampled(row["prompt_token_ids"], row["token_ids"], row["finish_reason"], loss_mask="assistant")
        for row in rows
    ]
    long, short = (autograd_oracle(model, side, "example") for side in (examples[7:], examples[4:6]))
    found = SteeringVector.load(tmp_path / "vectors" / "length.safetensors")
    assert relative_error(found, {name: long[name] - short[name] for name in long}) < 1e-6
    assert (found.metadata["plus"], found.metadata["minus"]) == ("long", "short")
    assert not [key for key in found.metadata if key.endswith("where")]  # verdicts alone do not make these piles


# --- what makes a pile -----------------------------------------------------------------------------------------------


def test_the_verdicts_that_make_a_pile_are_in_the_artifacts(experiment):
    for pile, verdict in (("with", True), ("without", False)):
        said = PileAverage.read_header(experiment / "gradients" / f"{pile}.safetensors")
        assert json.loads(said["where"]) == {"a": verdict}
    said = SteeringVector.read_header(experiment / "vectors" / "a.safetensors")
    assert (said["plus_where"], said["minus_where"]) == ('{"a": true}', '{"a": false}')
    assert "where" not in said


def test_piles_of_the_same_verdicts_say_so_on_both_sides():
    same = PileAverage({}, {"where": '{"a": true}', "pile": "x"})
    said = SteeringVector.contrast(same, same, names=("x", "y")).metadata
    assert said["plus_where"] == said["minus_where"] == '{"a": true}'
    assert "where" not in said
    plain = SteeringVector.contrast(same, PileAverage({}, {}), names=("x", "y")).metadata
    assert "plus_where" in plain
    assert "minus_where" not in plain


def test_a_pile_that_more_than_verdicts_make_has_none():
    assert PileFilter("r", {"a": True}).verdicts_asked == {"a": True}
    assert PileFilter("r").verdicts_asked == {}
    assert PileFilter("r", {"a": True}, also=[ResponseFilter("s")]).verdicts_asked is None
    assert PileFilter("r", {"a": True}, length="long").verdicts_asked is None


def test_files_have_no_verdicts(line, tmp_path):  # noqa: F811
    run(*line(tmp_path, "--data.halves", "true"))
    for path in (tmp_path / "gradients").rglob("*.safetensors"):
        assert "where" not in PileAverage.read_header(path)
    assert not [key for key in SteeringVector.read_header(tmp_path / "vectors" / "v.safetensors") if "where" in key]


# --- sampling --------------------------------------------------------------------------------------------------------


def test_how_each_response_was_sampled(tokenizer, tmp_path):
    rows = [response(tokenizer, f"p{number}", "bread", a=True) for number in range(5)]
    rows[0] |= {"temperature": 0.7, "top_p": 0.9}
    rows[1] |= {"temperature": 1, "top_p": 1}
    rows[2] |= {"temperature": None, "top_p": None}
    rows[3] |= {"temperature": 0.7}
    rows[4]["verdicts"] = {"a": False}
    path = str(write_lines(tmp_path / "rows.jsonl", rows))
    pile = read_pile("x", path, tokenizer)
    assert pile.sampling == [(0.7, 0.9), (1.0, 1.0), None, None, None]
    assert pile.sampled == [True] * 5
    assert read_pile("x", PileFilter(path, {"a": True}), tokenizer).sampling == [(0.7, 0.9), (1.0, 1.0), None, None]
    write_lines(tmp_path / "rows.jsonl", [*rows[:2], {**rows[2], "temperature": "hot", "top_p": 1}])
    with pytest.raises(ValueError, match=r"rows.jsonl:3: temperature is 'hot'; accepted: a number, or null"):
        read_pile("x", path, tokenizer)


def test_texts_were_not_sampled(tokenizer, tmp_path):
    chats = [{"prompt": "hello?", "completion": "bread"}, {"prompt": "how?", "completion": "and bread"}]
    pile = read_pile("x", str(write_lines(tmp_path / "chats.jsonl", chats)), tokenizer)
    assert pile.sampled == [False, False]
    assert pile.sampling == [None, None]
    assert pile.sampled_from == set()


def test_the_weights_that_responses_were_sampled_from(tokenizer, tmp_path):
    rows = [response(tokenizer, f"p{number}", "bread", a=number < 2) for number in range(4)]
    for row, fingerprint in zip(rows, ("f", None, "g", "f"), strict=True):
        row["model_fingerprint"] = fingerprint
    path = str(write_lines(tmp_path / "rows.jsonl", rows))
    assert read_pile("x", path, tokenizer).sampled_from == {"f", "g"}
    assert read_pile("x", PileFilter(path, {"a": True}), tokenizer).sampled_from == {"f"}


def test_responses_that_weights_of_another_dtype_sampled_are_refused_unless_asked(tokenizer, tmp_path):
    rows = [response(tokenizer, f"p{number}", "bread", a=number > 0) for number in range(4)]
    for row, dtype in zip(rows, ("float32", None, "bfloat16", "bfloat16"), strict=True):
        row["dtype"] = dtype
    path = str(write_lines(tmp_path / "rows.jsonl", rows))
    mixed, half = read_pile("x", path, tokenizer), read_pile("y", PileFilter(path, {"a": True}), tokenizer)
    assert mixed.dtypes == {"float32": f"{path}:1", "bfloat16": f"{path}:3"}
    assert half.dtypes == {"bfloat16": f"{path}:3"}  # the row that does not say passes

    def check(pile, dtype, **options):
        data = PileDataModule({"x": path}, **options)
        data.piles, data.trainer = [pile], SimpleNamespace(lightning_module=SimpleNamespace(dtype_name=dtype))
        data._check_dtypes()

    check(half, "bfloat16")
    for pile, dtype, said in ((half, "float32", "bfloat16"), (mixed, "bfloat16", "float32"), (mixed, "float64", "bf")):
        refused_ = rf"pile '[xy]': its responses were sampled by weights in {said}.* and this model's are in {dtype}"
        with pytest.raises(ValueError, match=refused_ + ".*--data.allow_other_dtype true"):
            check(pile, dtype)
    with pytest.warns(UserWarning, match="pile x: its responses were sampled by weights in float32"):
        check(mixed, "bfloat16", allow_other_dtype=True)


def test_a_prompt_is_the_same_behind_another_system_message_and_with_other_white_space():
    """By its digest, by which prompts that a vector was made on are recognised."""
    user, system = {"role": "user", "content": "How  are\nyou?"}, {"role": "system", "content": "Be kind."}
    turns = [user, {"role": "assistant", "content": "Well."}, {"role": "user", "content": "Why?"}]
    single = {prompt_digest(prompt_text(each)) for each in ([user], [system, user])} | {prompt_digest("How are you? ")}
    several = {prompt_digest(prompt_text(each)) for each in (turns, [system, *turns])}
    assert len(single) == len(several) == 1
    others = {prompt_digest(text) for text in ("How are you", "system: How are you?", "Why?")}
    assert len(single | several | others) == 5


# --- texts -----------------------------------------------------------------------------------------------------------


def test_judged_texts_without_token_ids_are_filtered_too(tokenizer, tmp_path):
    rows = [
        {"prompt": f"p{n}?", "completion": "bread " * (n + 1), "verdicts": {"a": n < 2, "b": [0, "true", 1][n]}}
        for n in range(3)
    ]
    path = str(write_lines(tmp_path / "judged.jsonl", rows))
    plain = str(write_lines(tmp_path / "plain.jsonl", [{key: rows[1][key] for key in ("prompt", "completion")}]))
    pile, expected = (
        read_pile("x", PileFilter(path, {"a": True, "b": True}), tokenizer),
        read_pile("x", plain, tokenizer),
    )
    assert (pile.examples, pile.prompt_digests) == (expected.examples, expected.prompt_digests)
    assert (lines_of(pile), pile.num_considered, pile.sampled) == ([2], 3, [False])
    also = [ResponseFilter(path, {"b": False})]
    assert lines_of(read_pile("x", PileFilter(path, {"a": True}, also), tokenizer)) == [1]
    with pytest.raises(ValueError, match="has no verdicts on 'c'; it has: a, b"):
        read_pile("x", PileFilter(path, {"c": True}), tokenizer)
    with pytest.raises(ValueError, match=r"plain\.jsonl' holds no responses with verdicts; .*where: \{COLUMN: VALUE\}"):
        read_pile("x", PileFilter(plain, {"a": True}), tokenizer)
    with pytest.raises(ValueError, match=r"jsonl:1: token_ids is None; length needs"):
        read_pile("x", PileFilter(path, {"a": True}, length="long"), tokenizer)
    rows[0]["verdicts"]["a"] = "perhaps"
    path = str(write_lines(tmp_path / "judged.jsonl", rows))
    with pytest.raises(ValueError, match=r"jsonl:1: the verdict on 'a' is 'perhaps'; accepted: true, false or null"):
        read_pile("x", PileFilter(path, {"a": True}), tokenizer)


def test_replies_that_ended_within_their_thought_are_in_no_pile_by_verdict_or_length(tokenizer, tmp_path):
    texts = ["<think>bread", "bread", "bread bread", "bread bread bread"]
    judged = [{"prompt": "p?", "completion": text, "verdicts": {"a": True}} for text in texts]
    judged += [{"prompt": "p?", "completion": "", "failed": "too long"}, judged[1] | {"finish_reason": "length"}]
    said, path = [], str(write_lines(tmp_path / "judged.jsonl", judged))
    assert lines_of(read_pile("x", PileFilter(path, {"a": True}), tokenizer, say=said.append)) == [2, 3, 4, 6]
    assert f"{path}: 1 of 5 replies were cut off; without token ids they get an end-of-turn token" in said
    rows = [
        response(tokenizer, "p?", text) | {"verdicts": {"a": True}, "example": "of the user's own"} for text in texts
    ]
    path = str(write_lines(tmp_path / "sampled.jsonl", rows))
    assert lines_of(read_pile("x", PileFilter(path, {"a": True}), tokenizer)) == [2, 3, 4]
    assert lines_of(read_pile("x", PileFilter(path, {}, length="short"), tokenizer)) == [2]


def test_a_pile_chooses_its_own_rows_and_columns(by_length, tokenizer, tmp_path):
    rows = [{"prompt": "how?", "chosen": "bread", "rejected": "and bread", "harmful": n} for n in (0, 1)]
    path = str(write_lines(tmp_path / "pairs.jsonl", rows))
    said = []
    by_side = {
        side: read_pile(
            "x", DataSource(path, columns={"completion": side}, where={"harmful": 1}), tokenizer, say=said.append
        )
        for side in ("chosen", "rejected")
    }
    assert [lines_of(pile) for pile in by_side.values()] == [[2], [2]]
    assert by_side["rejected"].num_tokens > by_side["chosen"].num_tokens
    assert [text for text in said if "not used" in text] == [
        f"{path}: not used: {side}" for side in ("rejected", "chosen")
    ]
    with pytest.raises(ValueError, match=r"holds sampled responses; accepted: the file alone, or \{responses: "):
        read_pile("x", DataSource(str(by_length), where={"id": "p1"}), tokenizer)


def test_a_sampled_reply_that_the_limit_cuts_is_counted(by_length, tokenizer):
    whole = read_pile("x", str(by_length), tokenizer)
    longest = max(len(example.input_ids) for example in whole.examples)
    pile = read_pile("x", str(by_length), tokenizer, max_length=longest - 2)
    lost = pile.truncation
    assert whole.num_tokens - pile.num_tokens == lost.targets_lost > 0
    assert (lost.num_examples, lost.num_cut) == (9, lost.stops_lost)
    assert whole.truncation.warning("x", "so") is None


def test_raw_text_is_a_pile_under_the_full_mask(tokenizer, tmp_path):
    path = str(write_lines(tmp_path / "text.jsonl", [{"text": "the golden gate bridge"}, {"text": "bread"}]))
    pile = read_pile("x", path, tokenizer, loss_mask="full")
    assert pile.prompt_digests == sorted(prompt_digest(text) for text in ("the golden gate bridge", "bread"))
    with pytest.raises(ValueError, match=r"text\.jsonl:1: raw text has no assistant turn"):
        read_pile("x", path, tokenizer)


# --- as many as another ----------------------------------------------------------------------------------------------


def test_a_pile_is_drawn_to_the_size_of_another(by_length, tokenizer):
    where = PileFilter(str(by_length), {"a": False}, as_many_as="x")
    drawn = [lines_of(read_pile("y", replace(where, seed=seed), tokenizer, most=3, say=str)) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(len(set(lines)) == 3 and set(lines) <= {5, 6, 7, 8, 9} and lines == sorted(lines) for lines in drawn)
    assert lines_of(read_pile("y", where, tokenizer, most=8)) == [5, 6, 7, 8, 9]


def test_the_other_piles_size_is_known_whatever_the_order(by_length, experiment, tmp_path):
    of = {"y": {"responses": str(by_length), "where": {"a": False}, "as_many_as": "x"},
          "x": {"responses": str(by_length), "where": {"a": True}}}  # fmt: skip
    run(
        "attribute", "--output_dir", tmp_path, "--model.model_name_or_path", experiment / "anchor", "--data.piles",
        json.dumps(of), "--vectors.a", "[x, y]", "--model.calibrate", "false",
    )  # fmt: skip
    headers = {name: PileAverage.read_header(tmp_path / "gradients" / f"{name}.safetensors") for name in of}
    assert [headers[name]["num_examples"] for name in of] == ["4", "4"]
    assert json.loads(SteeringVector.read_header(tmp_path / "vectors" / "a.safetensors")["minus_where"]) == {"a": False}


@pytest.mark.parametrize("other", ["no", "y"])
def test_another_piles_size_is_asked_of_a_pile_of_its_own_size(by_length, other):
    with pytest.raises(ValueError, match=f"pile 'y': as_many_as is '{other}'; accepted: a pile of its own size, x"):
        PileDataModule({"x": PileFilter(str(by_length)), "y": PileFilter(str(by_length), as_many_as=other)})
    with pytest.raises(ValueError, match="seed is 1, which has no effect without as_many_as"):
        PileFilter(str(by_length), seed=1)
