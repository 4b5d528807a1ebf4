"""Judging and steering on the Trainer: verdicts are counted as given, weights come back, text is escaped."""

import csv
import json
import re
import signal
from html import unescape
from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from road import write_lines
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tokenizers_zoo import chatml_tokenizer

from gradsteer.data.sources import DataSource
from gradsteer.evaluation.counting import _rate_text
from gradsteer.evaluation.statistics import rate_with_interval
from gradsteer.judges import Judge, Verdicts
from gradsteer.models.fingerprints import weights_digest
from gradsteer.reports.rates_figure import rates_figure
from gradsteer.reports.results import read_results
from gradsteer.trainer.callbacks.evaluation import JudgeEvaluation
from gradsteer.trainer.callbacks.preflight import EvaluationPreflight, Preflight
from gradsteer.trainer.callbacks.report import ResultsReport
from gradsteer.trainer.callbacks.steering import WeightSteering
from gradsteer.trainer.datamodules.prompts import PromptDataModule
from gradsteer.trainer.modules.generation import GenerationModule
from gradsteer.trainer.trainer import GradsteerTrainer


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


class Counting(Judge):
    """Calls a function with the number of the call and an exchange; it gives a verdict, or a reason for none."""

    def __init__(self, decide):
        self.decide, self.num_calls, self.closed = decide, 0, False

    @property
    def behaviors(self):
        return ("odd",)

    def judge(self, exchanges):
        self.num_calls += 1
        found = [self.decide(self.num_calls, exchange) for exchange in exchanges]
        return [
            Verdicts({"odd": None}, {"odd": value}) if isinstance(value, str) else Verdicts({"odd": value}, {})
            for value in found
        ]

    def fingerprint(self):
        return "counting"

    def close(self):
        self.closed = True


def trainer_of(*callbacks, logger=False):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return GradsteerTrainer(accelerator="cpu", callbacks=list(callbacks), logger=logger, **quiet)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_weights_come_back_after_an_exception_and_partial_files_stay(experiment, inputs, tmp_path, error):
    module = GenerationModule(str(experiment / "anchor"), max_new_tokens=2)
    module.configure_model()
    digests = [weights_digest(dict(module.model.named_parameters()))]

    def decide(num_calls, _exchange):
        digests.append(weights_digest(dict(module.model.named_parameters())))
        if num_calls == 8:  # three batches a condition: the third condition's second batch
            raise error("the judge broke")
        return True

    judge = Counting(decide)
    steering = WeightSteering(
        str(tmp_path), {"a": str(experiment / "vectors" / "a.safetensors")}, [0.05], base=str(experiment / "base"),
        anchor_resamples=0, seed_faithful=True,
    )  # fmt: skip
    trainer = trainer_of(
        steering,
        JudgeEvaluation(str(tmp_path), judge),
        Preflight(str(tmp_path)),
        ResultsReport(str(tmp_path), "broken"),
    )
    data = PromptDataModule(str(inputs / "prompts.jsonl"), batch_size=2)
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit if error is KeyboardInterrupt else error):
            trainer.steer(module, data)
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores further interrupts while it shuts down
    assert digests[1] != digests[0]  # base
    assert digests[6] == digests[0]  # anchor
    assert digests[-1] not in (digests[0], digests[1])  # steered
    assert weights_digest(dict(module.model.named_parameters())) == digests[0]
    directory = tmp_path / "responses"
    assert len(lines_of(directory / "base.jsonl")) == len(lines_of(directory / "anchor.jsonl")) == 5
    # the batch that the judge broke over was kept before it was judged
    kept = sorted((directory / ".unfinished" / "a_alpha=+0.05").glob("0*.jsonl"))
    assert [len(lines_of(path)) for path in kept] == [2, 2]
    assert not (tmp_path / "results.json").exists()


def test_unscored_verdicts_are_not_counted_and_keep_their_reason(experiment, inputs, tmp_path):
    verdicts = iter([True, None, False, None, True])
    judge = Counting(lambda *_: "no answer" if (found := next(verdicts)) is None else found)
    module = GenerationModule(str(experiment / "anchor"), max_new_tokens=2)
    callbacks = [
        JudgeEvaluation(str(tmp_path), judge, max_unscored=1.0, count_degenerate=True),
        EvaluationPreflight(str(tmp_path)),
        ResultsReport(str(tmp_path), "unscored"),
    ]
    trainer_of(*callbacks).evaluate(module, PromptDataModule(str(inputs / "prompts.jsonl")))
    rows = lines_of(tmp_path / "responses" / "anchor.jsonl")
    assert sorted(str(row["verdicts"]["odd"]) for row in rows) == ["False", "None", "None", "True", "True"]
    assert {str(row["unscored"]) for row in rows if row["verdicts"]["odd"] is None} == {"{'odd': 'no answer'}"}
    assert all(row["unscored"] == {} for row in rows if row["verdicts"]["odd"] is not None)
    rate = read_results(tmp_path / "results.json")["conditions"][0]["behaviors"]["odd"]
    assert (rate["num_scored"], rate["num_unscored"], rate["num_positive"]) == (3, 2, 2)
    assert rate["rate"] == pytest.approx(2 / 3)
    assert judge.closed


@pytest.mark.filterwarnings("ignore:No artists with labels found to put in legend")  # the figure has a test of its own
def test_a_condition_without_any_verdict_has_no_rate(experiment, inputs, tmp_path):
    module = GenerationModule(str(experiment / "anchor"), max_new_tokens=2)
    judge = Counting(lambda *_: "no answer")
    callbacks = [
        JudgeEvaluation(str(tmp_path), judge, max_unscored=1.0, count_degenerate=True),
        EvaluationPreflight(str(tmp_path)),
        ResultsReport(str(tmp_path), "unscored"),
    ]
    logger = TensorBoardLogger(str(tmp_path), name="logs")
    trainer_of(*callbacks, logger=logger).evaluate(module, PromptDataModule(str(inputs / "prompts.jsonl")))
    rate = read_results(tmp_path / "results.json")["conditions"][0]["behaviors"]["odd"]
    assert rate == {
        "num_scored": 0,
        "num_unscored": 5,
        "num_degenerate": 0,
        "num_positive": 0,
        "effective_n": None,
        "rate": None,
        "ci_low": None,
        "ci_high": None,
    }
    [flat] = csv.DictReader((tmp_path / "results.csv").read_text().splitlines())
    assert flat["odd_rate"] == ""
    assert flat["odd_num_unscored"] == "5"
    assert "rates/odd" not in EventAccumulator(logger.log_dir).Reload().Tags()["scalars"]


UNSCORED = {"num_scored": 0, "num_unscored": 4, "num_positive": 0, "rate": None, "ci_low": None, "ci_high": None}


def test_a_condition_without_a_rate_has_no_bar_and_its_line_stays():
    rate = {"num_scored": 4, "num_unscored": 0, "num_positive": 2, "rate": 0.5, "ci_low": 0.2, "ci_high": 0.8}
    rows = [
        {"name": "base", "kind": "base", "vector": None, "behaviors": {"bridge": UNSCORED, "recipe": rate}},
        {"name": "anchor", "kind": "anchor", "vector": None, "behaviors": {"bridge": rate, "recipe": rate}},
    ]
    panels = rates_figure(rows, "rates").axes
    assert [axes.get_title(loc="left") for axes in panels] == ["bridge", "recipe"]
    assert [len(axes.patches) for axes in panels] == [1, 2]
    assert [label.get_text() for label in panels[0].get_yticklabels()] == ["base", "anchor"]
    [alone] = rates_figure([rows[0] | {"behaviors": {"bridge": UNSCORED}}], "rates").axes
    assert not alone.patches


HOSTILE = (
    "<script>alert(1)</script> | `rm -rf` [x](javascript:alert(1)) ![y](http://z) **b** <img src=x> http://z.org\n"
    '# head\n- item\n1. one\r\n    code\n~~~\n&lt;b&gt; | --- | \\| _e_ I don\'t "say" & &#39;'
)


@pytest.mark.filterwarnings("ignore:html5lib's sanitizer is deprecated")
def test_hostile_text_is_shown_as_it_is_in_tensorboard(experiment, tmp_path):
    from tensorboard.plugin_util import markdown_to_safe_html

    prompts = write_lines(tmp_path / "prompts.jsonl", [{"prompt": HOSTILE}, {"prompt": "plain?"}])
    module = GenerationModule(str(experiment / "anchor"), max_new_tokens=2)
    module.tokenizer.decode = lambda *_, **__: HOSTILE
    judge = Counting(lambda *_: True)
    logger = TensorBoardLogger(str(tmp_path), name="logs")
    trainer_of(JudgeEvaluation(str(tmp_path), judge), EvaluationPreflight(str(tmp_path)), logger=logger).evaluate(
        module, PromptDataModule(str(prompts))
    )
    events = EventAccumulator(logger.log_dir, size_guidance={"tensors": 0}).Reload()
    [event] = events.Tensors("responses/anchor/text_summary")
    [text] = event.tensor_proto.string_val
    assert all(piece not in text.decode() for piece in ("<script", "`", "[x]"))
    assert [line.count("|") for line in text.decode().splitlines()] == [3] * 4  # two cells a row
    page = markdown_to_safe_html(text)  # as TensorBoard's page shows it
    tags = set(re.findall(r"<(\w+)", page))
    assert tags == {"table", "thead", "tbody", "tr", "th", "td", "br"}
    cells = [unescape(cell.replace("<br>", "\n")) for cell in re.findall(r"<td>(.*?)</td>", page, re.DOTALL)]
    shown = HOSTILE.replace("\r", " ")
    assert cells == [shown, shown, "plain?", shown]
    assert lines_of(tmp_path / "responses" / "anchor.jsonl")[0]["completion"] == HOSTILE


def test_a_condition_in_which_nothing_counts_says_what_became_of_its_responses():
    assert _rate_text(rate_with_interval([True, None], ["a", "b"])) == "100.0% of 1"
    assert _rate_text(rate_with_interval([], [], num_degenerate=20)) == "of none: 20 degenerate"
    assert _rate_text(rate_with_interval([None], ["a"], num_degenerate=3)) == "of none: 3 degenerate, 1 unscored"
    assert _rate_text(rate_with_interval([], [])) == "of none: no responses"


def test_heldout_text_may_be_raw_and_all_of_its_tokens_count(tmp_path):
    """And what a short context cuts of it is counted."""
    path = write_lines(tmp_path / "text.jsonl", [{"body": "the golden gate bridge"}, {"body": "bread"}])
    judging = JudgeEvaluation(str(tmp_path), Counting(None), heldout=DataSource(str(path), columns={"text": "body"}))
    tokenizer = chatml_tokenizer()
    tokenizer.model_max_length = 3
    with pytest.warns(
        UserWarning, match=r"held-out text: max_length=3 cuts \d of 2 examples: lost .*give shorter texts"
    ):
        judging.setup(trainer_of(), SimpleNamespace(tokenizer=tokenizer), "test")
    whole = [tokenizer(text)["input_ids"] for text in ("the golden gate bridge", "bread")]
    found = [(example.input_ids, example.labels) for example in judging.heldout_examples]
    assert found == [(ids[:3], [-100, *ids[1:3]]) for ids in whole]
