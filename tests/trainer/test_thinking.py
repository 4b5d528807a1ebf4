"""A model that thinks before it answers: what is stored, judged, counted, forecast and learned of its replies."""

import json
import shutil
import warnings

import pytest
from road import run, write_lines
from sampler import build
from tokenizers_zoo import qwen3_tokenizer

import gradsteer.trainer.modules.generation as generation
from gradsteer.data.pile_filters import PileFilter
from gradsteer.data.piles import read_pile
from gradsteer.evaluation.counting import count_responses, excess_of_unscored
from gradsteer.forecast.forecaster import Forecaster
from gradsteer.forecast.judged_responses import read_judged_responses
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.generation.sampling import Sampled
from gradsteer.judges.command.inputs import read_response_file
from gradsteer.models.loading import load_causal_lm, load_tokenizer
from gradsteer.records import read_jsonl

BLUE = "<think>\nRed, red, I cannot help with red. Red, red, red.\n</think>\n\nBlue."
RED = "<think>\nBlue?\n</think>\n\nRed it is."
CUT = "<think>\nRed or blue or"
PLAIN = "Blue."
REPLIES = [BLUE, RED, CUT, PLAIN]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    directory = tmp_path_factory.mktemp("thinker")
    tokenizer = qwen3_tokenizer()
    tokenizer.save_pretrained(directory)
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": 512, "eos_token_id": tokenizer.eos_token_id}
    build("llama", **sizes).float().save_pretrained(directory)
    return directory


def evaluation(model, out, word):
    return (
        *("evaluate", "--output_dir", out, "--name", "t", "--model.model_name_or_path", model),
        *("--data.prompts", out / "prompts.jsonl", "--model.num_samples", 4, "--model.max_new_tokens", 60),
        *("--evaluation.judge", "KeywordJudge", "--evaluation.judge.patterns", json.dumps({"red": [word]})),
    )


@pytest.fixture(scope="module")
def responses(model, tmp_path_factory):
    """The responses of an evaluation whose sampler draws the replies above."""
    out, tokenizer = tmp_path_factory.mktemp("thinking"), load_tokenizer(str(model))

    def draw(_, draws, config, **options):
        found = []
        for each in draws:
            text = REPLIES[each.sample]
            ids = tokenizer(text + ("" if text is CUT else "<|im_end|>"), add_special_tokens=False)["input_ids"]
            found.append(Sampled(ids, "length" if text is CUT else "stop"))
        return found

    write_lines(out / "prompts.jsonl", [{"id": f"p{n}", "prompt": f"Colour {n}?"} for n in range(5)])
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        patch.setattr(generation, "sample_batch", draw)
        run(*evaluation(model, out, "red"))
    (out / "warnings.json").write_text(json.dumps([str(each.message) for each in caught]))
    return out / "responses" / "t.jsonl"


def rows_by_reply(responses):
    rows = [row for _, row in read_jsonl(responses)]
    return {REPLIES[row["sample"]]: row for row in rows if row["id"] == "p0"}, rows


def test_the_answer_is_judged_and_both_texts_are_stored(responses):
    found, _ = rows_by_reply(responses)
    assert {reply: row["verdicts"]["red"] for reply, row in found.items()} == {
        BLUE: False, RED: True, CUT: None, PLAIN: False
    }  # fmt: skip
    assert [row["completion"] for row in found.values()] == REPLIES
    assert [row.get("answer", "-") for row in found.values()] == ["Blue.", "Red it is.", None, "-"]
    assert found[RED]["thought"] == "Blue?"
    assert found[CUT]["unscored"] == {"red": "the reply ended within its thought"}
    assert not any(row["degenerate"] for row in found.values())  # the loop is in the thought
    assert not {"thought", "answer", "num_thought_tokens"} & found[PLAIN].keys()  # as of a model that does not think


def test_another_judge_is_given_the_same_answers_and_nothing_is_sampled(responses, model, tmp_path, monkeypatch):
    out = shutil.copytree(responses.parent.parent, tmp_path / "again")
    shutil.copy(responses.parent.parent / "prompts.jsonl", out)
    monkeypatch.setattr(generation, "sample_batch", None)
    with pytest.warns(UserWarning, match="ended within their thought"):
        run(*evaluation(model, out, "blue"), "--overwrite", "true")
    before, after = ([row for _, row in read_jsonl(path)] for path in (responses, out / "responses" / "t.jsonl"))
    for key in ("thought", "answer", "num_thought_tokens"):
        assert [row.get(key, "-") for row in after] == [row.get(key, "-") for row in before]
    assert [row["verdicts"]["red"] for row in after[:4]] == [True, False, None, True]


def test_a_reply_cut_within_its_thought_is_counted_on_its_own(responses):
    said = json.loads((responses.parent.parent / "warnings.json").read_text())
    assert [text for text in said if "5 of 20 replies ended within their thought" in text]
    (condition,) = json.loads((responses.parent.parent / "evaluations" / "t.json").read_text())["conditions"]
    rate = condition["behaviors"]["red"]
    assert (rate["num_scored"], rate["num_positive"], rate["num_unscored"]) == (15, 5, 5)
    assert condition["metrics"]["unanswered"] == condition["metrics"]["unfinished"] == 0.25
    assert condition["metrics"]["refusal"] == 0  # "I cannot help" is a thought
    _, rows = rows_by_reply(responses)
    lengths = [
        len(row["token_ids"]) - row.get("num_thought_tokens", 0) for row in rows if row.get("answer", "") is not None
    ]
    assert condition["metrics"]["mean_length"] == sum(lengths) / 15


def test_cut_thoughts_do_not_stop_a_run_and_other_missing_verdicts_do(responses):
    _, rows = rows_by_reply(responses)
    counts = count_responses({"evaluation": rows}, ["red"])
    assert "5 of 20 replies ended within their thought" in str(counts)
    assert excess_of_unscored("t", counts, {"evaluation": rows}, 0.0) is None
    missing = [{**row, "verdicts": {"red": None}, "unscored": {"red": "HTTP 500"}} for row in rows[:1]]
    sets = {"evaluation": [*missing, *rows[1:]]}
    text = excess_of_unscored("t", count_responses(sets, ["red"]), sets, 0.05)
    assert "1 of 15 verdicts on 'red' (6.7%) are unscored" in text
    assert "Reasons: 1 x HTTP 500." in text


def test_the_forecast_scores_whole_replies_and_describes_answers(responses, model):
    tokenizer = load_tokenizer(str(model))
    judged = read_judged_responses(str(responses), tokenizer)
    _, rows = rows_by_reply(responses)
    assert [each.num_target_tokens for each in judged.examples] == [len(row["token_ids"]) for row in rows]
    lm = load_causal_lm(str(model))
    forecaster = Forecaster(judged, ResponseScorer(lm, judged.examples), draws=100)
    forecast = forecaster.forecast(forecaster.score())
    assert forecast.rates["red"].importance == pytest.approx(1 / 3)
    assert forecast.traits["unanswered"] == pytest.approx(0.25)
    (condition,) = json.loads((responses.parent.parent / "evaluations" / "t.json").read_text())["conditions"]
    for name in ("mean_length", "refusal", "unfinished", "repetition"):
        assert forecast.traits[name] == pytest.approx(condition["metrics"][name])


def test_piles_hold_answers_where_asked_and_the_slope_the_whole_reply(responses, model):
    tokenizer = load_tokenizer(str(model))
    where = {"red": False}
    answers, whole = (
        read_pile("x", PileFilter(str(responses), where), tokenizer, loss_mask=mask) for mask in ("answer", "assistant")
    )
    assert len(answers.examples) == len(whole.examples) == 10  # no cut one is among them
    texts = [tokenizer.decode([label for label in each.labels if label != -100]) for each in answers.examples]
    assert texts == ["Blue.<|im_end|>"] * 10
    assert [each.input_ids for each in answers.examples] == [each.input_ids for each in whole.examples]
    assert answers.responses == whole.responses == whole.examples
    everything = read_pile("x", str(responses), tokenizer, loss_mask="answer")
    assert (len(everything.examples), everything.num_dropped) == (15, 5)
    long = read_pile("x", PileFilter(str(responses), length="long"), tokenizer, loss_mask="answer")
    assert {source.rsplit(":", 1)[1] for source in long.sources} == {
        str(line) for line, row in read_jsonl(responses) if REPLIES[row["sample"]] is RED
    }  # whose answer is the longest, and whose reply is not


def test_judge_is_shown_answers_alone(responses):
    file = read_response_file(str(responses), stored=True)
    shown = [None if each is None else each.response for each in file.exchanges[:4]]
    by_sample = dict(zip([row["sample"] for row in file.rows[:4]], shown, strict=True))
    assert by_sample == {0: "Blue.", 1: "Red it is.", 2: None, 3: "Blue."}
    verdicts = file.verdicts({each: None for each in file.exchanges if each is not None}, ["red"])
    assert [each.unscored["red"] for each in verdicts if each is not None] == ["the reply ended within its thought"] * 5
    assert sum(file.judged) == 15
