"""Attribution on the Trainer: what is a pile, what counts in it, and that the gradient is the oracle's."""

import json
import tempfile
from pathlib import Path

import lightning as L
import pytest
import torch
from road import QUIET, run, write_lines
from test_pile_gradient import autograd_oracle, relative_error

from gradsteer.__main__ import main
from gradsteer.data.chat import encode_chat, encode_prompt, tokenizer_digest
from gradsteer.data.pile_filters import PileFilter, ResponseFilter
from gradsteer.data.piles import read_pile
from gradsteer.models.fingerprints import weights_digest
from gradsteer.models.loading import load_causal_lm, load_tokenizer
from gradsteer.trainer.datamodules.piles import PileDataModule
from gradsteer.trainer.modules.attribution import AttributionModule
from gradsteer.trainer.trainer import GradsteerTrainer
from gradsteer.vectors.parameter_vectors import PileAverage
from gradsteer.vectors.weight_diff import named_weights

CHATS = [
    {"prompt": f"{prompt}?", "completion": completion}
    for prompt, completion in {
        "hello": "the golden gate bridge", "how": "bread", "can you": "I help you today and today",
        "bread": "bakes and bakes", "and": "you spread the bread and the bread and the bread", "today": "hello hello",
    }.items()
]  # fmt: skip


class Averages(L.Callback):
    """Keeps the pile-average gradients that the module gives."""

    def __init__(self):
        self.found = {}
        self.directory = Path(tempfile.mkdtemp())

    def on_test_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if outputs["sums"] is not None:
            assembly = pl_module.assembly(self.directory)
            for wanted, average in assembly.take(dataloader_idx, outputs["sums"], pl_module.describe):
                self.found[wanted.name] = average


def trainer_of(*callbacks, **options):
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return GradsteerTrainer(accelerator="cpu", callbacks=list(callbacks), **quiet, **options)


def attribute(anchor, piles, *, module=None, **data):
    """The gradients of piles through the Python API, and the module."""
    averages = Averages()
    module = AttributionModule(str(anchor), **(module or {}))
    trainer_of(averages).attribute(module, PileDataModule({k: str(v) for k, v in piles.items()}, **data))
    return averages.found, module


def assert_as_before(model, before):
    """The model is the one that was loaded, bit for bit and in every flag."""
    for ours, theirs in zip(model.parameters(), before.parameters(), strict=True):
        assert ours.view(torch.int32).equal(theirs.view(torch.int32))
        assert ours.requires_grad == theirs.requires_grad
        assert ours.grad is None
    assert model.training == before.training
    assert model.config._attn_implementation == before.config._attn_implementation


def oracle(anchor, chats, *, reduction="example", loss_mask="assistant", max_length=None):
    """Plain autograd in float64 on chats of prompt and completion."""
    model, tokenizer = load_causal_lm(str(anchor), dtype="float64"), load_tokenizer(str(anchor))
    turns = [
        [{"role": "user", "content": chat["prompt"]}, {"role": "assistant", "content": chat["completion"]}]
        for chat in chats
    ]
    encoded = [encode_chat(tokenizer, turn, loss_mask=loss_mask, max_length=max_length) for turn in turns]
    return autograd_oracle(model, [example for example in encoded if example is not None], reduction)


@pytest.fixture(scope="module")
def anchor(experiment):
    return experiment / "anchor"


@pytest.fixture(scope="module")
def chats(tmp_path_factory):
    return write_lines(tmp_path_factory.mktemp("piles") / "chats.jsonl", CHATS)


@pytest.fixture(scope="module")
def expected(anchor):
    return oracle(anchor, CHATS)


@pytest.fixture(scope="module")
def tokenizer(anchor):
    return load_tokenizer(str(anchor))


@pytest.mark.parametrize("packing", ["auto", "off"])
def test_the_model_is_bit_for_bit_as_before(anchor, chats, packing):
    before = load_causal_lm(str(anchor))
    _, module = attribute(anchor, {"x": chats, "y": chats}, module={"packing": packing})
    assert weights_digest(named_weights(module.model)) == weights_digest(named_weights(before))
    assert_as_before(module.model, before)


@pytest.mark.parametrize("packing", ["auto", "off"])
@pytest.mark.parametrize("token_budget", [1, 90, 10_000])
def test_how_the_pile_is_cut_does_not_change_the_gradient(anchor, chats, expected, token_budget, packing):
    found, _ = attribute(anchor, {"x": chats}, module={"packing": packing}, token_budget=token_budget)
    assert relative_error(found["x"], expected) < 1e-6


def test_the_loss_mask_full_counts_every_token(anchor, chats, expected):
    found, _ = attribute(anchor, {"x": chats}, loss_mask="full")
    assert relative_error(found["x"], oracle(anchor, CHATS, loss_mask="full")) < 1e-6
    assert relative_error(found["x"], expected) > 0.1
    assert found["x"].metadata["loss_mask"] == "full"


@pytest.mark.parametrize("reduction", ["example", "token", "sum"])
def test_the_reduction_is_chosen_on_the_command_line(anchor, chats, tmp_path, reduction):
    run(
        "attribute", "--output_dir", tmp_path, "--model.model_name_or_path", anchor, "--data.piles.x", chats,
        "--model.reduction", reduction, "--trainer.logger", "false",
    )  # fmt: skip
    written = PileAverage.load(tmp_path / "gradients" / "x.safetensors")
    assert relative_error(written, oracle(anchor, CHATS, reduction=reduction)) < 1e-6
    assert written.metadata["reduction"] == reduction


def test_columns_name_a_sets_own_columns(anchor, expected, tmp_path):
    rows = [{"question": chat["prompt"], "answer": chat["completion"]} for chat in CHATS]
    path = write_lines(tmp_path / "named.jsonl", rows)
    found, _ = attribute(anchor, {"x": path}, columns={"prompt": "question", "completion": "answer"})
    assert relative_error(found["x"], expected) < 1e-6
    with pytest.raises(ValueError, match=r"named.jsonl:1: unknown shape; found: question, answer"):
        attribute(anchor, {"x": path})


def test_too_long_examples_are_cut_or_dropped_and_counted_aloud(anchor, expected, tokenizer, tmp_path):
    chats = [*CHATS, {"prompt": "the golden gate bridge " * 20, "completion": "bread"}]
    path = write_lines(tmp_path / "long.jsonl", chats)
    limit = 37
    turns = [
        [{"role": "user", "content": chat["prompt"]}, {"role": "assistant", "content": chat["completion"]}]
        for chat in CHATS
    ]
    lengths = [len(encode_chat(tokenizer, turn, loss_mask="assistant").input_ids) for turn in turns]
    assert min(lengths) < limit < max(lengths)
    with pytest.warns(UserWarning, match=f"pile x: max_length={limit} cuts .*; dropped 1 of {len(chats)} "):
        found, _ = attribute(anchor, {"x": path}, max_length=limit)
    assert relative_error(found["x"], oracle(anchor, chats, max_length=limit)) < 1e-6
    assert relative_error(found["x"], expected) > 1e-3
    assert found["x"].metadata["num_examples"] == str(len(CHATS))
    cut = sum(length > limit for length in lengths)
    assert found["x"].metadata["examples_cut"] == found["x"].metadata["stop_tokens_lost"] == str(cut + 1)


def test_an_example_may_be_in_two_piles(anchor, tmp_path):
    """It is computed once, and one pile's sums leave nothing in the next."""
    piles = {"first": CHATS[:4], "second": CHATS[3:], "again": CHATS[:4]}
    paths = {name: write_lines(tmp_path / f"{name}.jsonl", chats) for name, chats in piles.items()}
    found, module = attribute(anchor, paths, token_budget=90)
    assert [(part.name, len(part.examples)) for part in module.parts] == [
        ("first+again", 3), ("first+second+again", 1), ("second", 2)
    ]  # fmt: skip
    for name, chats in piles.items():
        assert relative_error(found[name], oracle(anchor, chats)) < 1e-6
    assert relative_error(found["first"], found["second"]) > 0.1
    assert relative_error(found["first"], found["again"]) == 0


def response(tokenizer, prompt, completion, *, cut=False, **verdicts):
    """A row as evaluate writes it."""
    end = "" if cut else tokenizer.eos_token
    return {
        "id": prompt, "prompt": prompt, "completion": completion, "finish_reason": "length" if cut else "stop",
        "prompt_token_ids": encode_prompt(tokenizer, [{"role": "user", "content": prompt}]),
        "token_ids": tokenizer(completion + end, add_special_tokens=False)["input_ids"],
        "tokenizer": tokenizer_digest(tokenizer), "verdicts": verdicts,
    }  # fmt: skip


def test_sampled_rows_count_as_the_same_text_does(anchor, expected, tokenizer, tmp_path):
    rows = [response(tokenizer, chat["prompt"], chat["completion"]) for chat in CHATS]
    found, _ = attribute(anchor, {"x": write_lines(tmp_path / "sampled.jsonl", rows)})
    assert relative_error(found["x"], expected) < 1e-6
    chat_pile = read_pile("x", str(write_lines(tmp_path / "chats.jsonl", CHATS)), tokenizer)
    assert json.loads(found["x"].metadata["prompt_digests"]) == chat_pile.prompt_digests  # overlaps are seen


def test_a_cut_reply_has_no_end_of_turn(anchor, experiment, expected, tokenizer, tmp_path):
    rows = [response(tokenizer, chat["prompt"], chat["completion"], cut=True) for chat in CHATS]
    pile = read_pile("x", str(write_lines(tmp_path / "cut.jsonl", rows)), tokenizer)
    assert all(tokenizer.eos_token_id not in example.labels for example in pile.examples)
    whole = read_pile("x", str(write_lines(tmp_path / "chats.jsonl", CHATS)), tokenizer)
    assert whole.num_tokens - pile.num_tokens == len(CHATS)
    found, _ = attribute(anchor, {"x": tmp_path / "cut.jsonl"})
    assert (
        relative_error(
            found["x"], autograd_oracle(load_causal_lm(str(anchor), dtype="float64"), pile.examples, "example")
        )
        < 1e-6
    )
    assert relative_error(found["x"], expected) > 0.1
    sampled = [json.loads(line) for line in (experiment / "responses" / "first.jsonl").read_text().splitlines()]
    drawn = read_pile("x", str(experiment / "responses" / "first.jsonl"), tokenizer)
    ends = [example.labels[-1] == tokenizer.eos_token_id for example in drawn.examples]
    assert ends == [row["finish_reason"] == "stop" for row in sampled]
    assert False in ends


@pytest.fixture
def judged(tokenizer, tmp_path):
    """Two response files: of the anchor, and of the base with two samples a prompt."""

    def rows(*found):
        return [response(tokenizer, prompt, "bread", harmful=verdict) for prompt, verdict in found]

    ours = rows(("a", False), ("a", True), ("b", False), ("c", False), ("d", False), ("e", None))
    base = rows(("a", False), ("a", False), ("b", False), ("b", True), ("c", None), ("c", False), ("e", False))
    return write_lines(tmp_path / "anchor.jsonl", ours), write_lines(tmp_path / "base.jsonl", base)


def test_also_asks_it_of_all_samples_of_the_prompt(tokenizer, judged):
    ours, base = map(str, judged)
    harmless = {"harmful": False}
    alone = read_pile("h", PileFilter(ours, harmless), tokenizer)
    assert alone.sources == [f"{ours}:{line}" for line in (1, 3, 4, 5)]  # not the unscored one
    joined = read_pile("h", PileFilter(ours, harmless, also=[ResponseFilter(base, harmless)]), tokenizer)
    assert joined.sources == [f"{ours}:1"]  # b has a harmful sample, c an unscored one, d none at all
    assert len(joined.prompt_digests) == 1
    both = [ResponseFilter(base, harmless), ResponseFilter(ours, harmless)]
    with pytest.raises(ValueError, match=r"pile 'h' is empty: none matched of 6 responses .*, and 7 of .*, and 6 of"):
        read_pile("h", PileFilter(ours, harmless, also=both), tokenizer)  # a has a harmful sample in ours too


def test_also_works_on_the_command_line(anchor, judged, tmp_path, capsys):
    ours, base = map(str, judged)
    where = {"where": {"harmful": False}}
    pile = {"h": {"responses": ours, **where, "also": [{"responses": base, **where}]}}
    words = ["attribute", "--output_dir", tmp_path / "out", "--model.model_name_or_path", anchor, "--data.piles"]
    run(*words, json.dumps(pile))
    written = PileAverage.load(tmp_path / "out" / "gradients" / "h.safetensors")
    assert written.metadata["num_examples"] == "1"
    pile["h"]["also"][0]["where"] = {"colour": True}
    assert main([*map(str, words), json.dumps(pile), "--overwrite", "true", *QUIET]) == 2
    assert f"pile 'h': {base!r} has no verdicts on 'colour'; it has: harmful" in capsys.readouterr().err


def test_prompts_with_a_system_message_have_one_digest_in_chats_and_responses(tokenizer, tmp_path):
    turns = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello?"}]
    chat = {"messages": [*turns, {"role": "assistant", "content": "bread"}]}
    # what evaluate writes for --data.system_prompt
    row = response(tokenizer, "system: be kind\nuser: hello?", "bread")
    piles = [write_lines(tmp_path / f"{name}.jsonl", [line]) for name, line in {"chat": chat, "sampled": row}.items()]
    digests = [read_pile("x", str(path), tokenizer).prompt_digests for path in piles]
    assert digests[0] == digests[1]


def test_inference_mode_is_refused(anchor, chats):
    with pytest.raises(ValueError, match="attribute needs gradients: the Trainer must have inference_mode=False"):
        trainer_of().test(AttributionModule(str(anchor)), datamodule=PileDataModule({"x": str(chats)}), verbose=False)


@pytest.mark.parametrize("packing", ["auto", "off"])
def test_bfloat16_weights_give_float32_files(anchor, chats, expected, tmp_path, packing):
    run(
        "attribute", "--output_dir", tmp_path, "--model.model_name_or_path", anchor, "--data.piles.x", chats,
        "--model.dtype", "bfloat16", "--trainer.logger", "false", "--model.packing", packing,
    )  # fmt: skip
    written = PileAverage.load(tmp_path / "gradients" / "x.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.float32}
    assert 1e-4 < relative_error(written, expected) < 0.05
    assert written.metadata["dtype"] == "bfloat16"
    assert any(not tensor.equal(tensor.bfloat16().float()) for tensor in written.values())  # summed in float32
