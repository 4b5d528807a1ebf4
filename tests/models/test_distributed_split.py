"""Weights that are split over two processes (FSDP2): attribution and steering give what a whole model gives.

One pair of processes, started with the first test, runs through all of `CHECKS` in turn, as imports take longest.
"""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from processes import fork, two_places
from road import run, write_lines
from test_attribution_module import trainer_of
from test_distributed import check_same_files, finish_on_two, kill_both, start_on_two
from test_gradient_points import copies, same_bits
from test_steering import direction
from tiny_models import VOCABULARY, ragged_examples
from transformers import AutoModelForCausalLM, LlamaConfig

from gradsteer.data.chat import collate
from gradsteer.data.pile_filters import PileFilter
from gradsteer.models.base_record import record_base
from gradsteer.models.fingerprints import model_fingerprint, weights_digest
from gradsteer.models.loading import load_tokenizer
from gradsteer.models.parallel import (
    is_split,
    is_split_model,
    shard,
    shard_like,
    split_model,
    sum_over_shards,
    whole,
    whole_of_shards,
)
from gradsteer.steering.weight_steering import reweighted, steered
from gradsteer.trainer.callbacks.partial_sums import PartialSums
from gradsteer.trainer.callbacks.vectors import VectorWriter
from gradsteer.trainer.datamodules.piles import PileDataModule
from gradsteer.trainer.modules.attribution import AttributionModule

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(150)]

# of the module
OPTIONS = {
    "plain": {},
    "no packs": {"packing": "off", "reduction": "token"},
    "chunked head": {"reduction": "sum"},
    "divergence": {"loss": "kl", "gradient_checkpointing": True},
    "divergence, chunked head": {"loss": "kl", "kl_direction": "reverse", "gradient_checkpointing": True},
    "path": {"path_points": 3},
    "masks": {"mask_draws": 2},
    "rows, to zero": {"mask_draws": 2, "mask_components": "rows", "mask_origin": "zero"},
    "a layer": {"parameters": ["layer:1"]},
    "no embedding": {"parameters": ["!kind:embedding"], "reduction": "token"},
}
CHUNK = 5


class ChunkedHead(AttributionModule):
    """Takes the head in chunks, which larger vocabularies ask for."""

    def make_pile(self, *, squares):
        self.batch_layout = replace(self.batch_layout, head_chunk=CHUNK)
        return super().make_pile(squares=squares)


def measured(step):
    return step.retained_fraction, step.step_error, step.relative_norm


def odd_llama(*, tied, seed=0, dtype=torch.float32, vocabulary=VOCABULARY, intermediate=23):
    """No dimension of its weights is even but those of the heads, so that two processes hold unequal parts."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=15, intermediate_size=intermediate, num_hidden_layers=2,
        num_attention_heads=3, num_key_value_heads=1, head_dim=4, max_position_embeddings=256, tie_word_embeddings=tied,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


# --- attribution -----------------------------------------------------------------------------------------------------


def gradients_of(name, spec, out, *, split=False, mesh=(2, 1), **data):
    """Writes the gradients of a model's piles by one of `OPTIONS`, through the Python API; gives the module."""
    from lightning.pytorch.strategies import ModelParallelStrategy

    model, options = name.split(": ")
    module = (ChunkedHead if split and "chunked" in options else AttributionModule)(
        spec["models"][model], **OPTIONS[options]
    )
    strategy = {"devices": 2, "strategy": ModelParallelStrategy(*mesh)} if split else {}
    piles = {key: PileFilter(**source) if isinstance(source, dict) else source for key, source in spec["piles"].items()}
    callbacks = [VectorWriter(str(out), {"v": ["odd", "single"]}), PartialSums(str(out), every_minutes=0)]
    trainer_of(*callbacks, **strategy).attribute(module, PileDataModule(piles, token_budget=40, **data))
    assert is_split_model(module.model) == split
    assert module.batch_layout.packs == (OPTIONS[options].get("packing") != "off"), "packs are refused"
    return module


def attribution(name):
    def check(directory, spec):
        module = gradients_of(name, spec, directory / name, split=True)
        # the weights are the anchor's, in parts again, and have no gradients
        fresh = AutoModelForCausalLM.from_pretrained(module.model_name_or_path, dtype=torch.float32)
        for key, weight in fresh.named_parameters():
            parameter = module.model.get_parameter(key)
            assert is_split(parameter)
            assert parameter.grad is None
            assert torch.equal(shard(parameter.detach()), shard_like(weight.detach(), parameter))

    return check


def refused(words, **options):
    def check(directory, spec):
        with pytest.raises(ValueError, match=words):
            gradients_of("tied: plain", spec, directory / "refused", split=True, **options)
        assert not (directory / "refused").exists()

    return check


# --- steering --------------------------------------------------------------------------------------------------------


def logits_of(model):
    """Without gradients: afterwards the weights outside of the blocks are whole on every process."""
    batch = collate(ragged_examples(3), 0)
    with torch.no_grad():
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


def assert_same_weights(model, split):
    ours = {name: whole(parameter.detach()).clone() for name, parameter in split.named_parameters()}
    assert same_bits(ours, copies(model))
    torch.testing.assert_close(logits_of(split), logits_of(model))
    assert not is_split_model(split.lm_head), "the forward pass should leave it whole: what the code has to cope with"


def bytes_held(split):
    return [shard(parameter.detach()).clone().view(torch.uint8) for parameter in split.parameters()]


def pair_of(rank, **options):
    """A whole model and the same in parts, which are unequal."""
    from torch.distributed.device_mesh import init_device_mesh

    model, split = odd_llama(**options), odd_llama(**options)
    split_model(split, init_device_mesh("cpu", (2,)))
    assert len(shard(split.model.embed_tokens.weight)) == 31 - rank
    return model, split


def steering(**options):
    def check(directory, spec):
        model, split = pair_of(spec["rank"], **options)
        held, fingerprint = bytes_held(split), model_fingerprint(model)
        first = direction(model, 1, model_fingerprint=fingerprint)
        second = direction(model, 2, scale=0.3)
        few = type(second)({name: second[name] for name in list(second)[1::3]})
        assert model_fingerprint(split) == fingerprint

        def assert_as_before():
            assert all(is_split(parameter) for parameter in split.parameters())
            assert all(torch.equal(now, then) for now, then in zip(bytes_held(split), held, strict=True))
            assert weights_digest(dict(split.named_parameters())) == model_fingerprint(split) == fingerprint

        logits_of(split)
        for outer, inner, alpha in ((first, second, 0.1), (few, first, -1e-3)):
            with steered(model, outer, alpha) as expected, steered(split, outer, alpha) as found:
                assert measured(found) == pytest.approx(measured(expected), rel=1e-9)
                assert_same_weights(model, split)
                with steered(model, inner, -0.2) as expected, steered(split, inner, -0.2) as found:
                    assert measured(found) == pytest.approx(measured(expected), rel=1e-9)
                    assert_same_weights(model, split)
                assert_same_weights(model, split)
                with steered(split, inner, 0.0) as found:
                    assert measured(found) == (None, None, 0.0)
            assert_as_before()

        def interrupted(body):
            with steered(split, first, 0.1), steered(split, second, 0.1):
                body(split)
                raise KeyboardInterrupt

        for body in (logits_of, bool):
            with pytest.raises(KeyboardInterrupt):
                interrupted(body)
            assert_as_before()

        others = copies(odd_llama(**options, seed=3))
        with reweighted(model, others), reweighted(split, others):
            assert_same_weights(model, split)
            with steered(model, first, 0.1), steered(split, first, 0.1):
                assert_same_weights(model, split)
            assert_same_weights(model, split)
        assert_as_before()

        foreign = type(first)(dict(first), {"model_fingerprint": "0" * 32})
        with pytest.raises(ValueError, match=f"fingerprint {'0' * 32}, the model at hand has {fingerprint}"):
            steered(split, foreign, 0.1).__enter__()
        assert_as_before()

    return check


def parts_and_wholes(directory, spec):
    """The functions of `gradsteer.models.parallel` on tensors of unequal and of empty parts."""
    model, split = pair_of(spec["rank"], tied=False, intermediate=1)
    pairs = list(zip(model.parameters(), split.parameters(), strict=True))
    empty = [shard(ours) for _, ours in pairs if len(ours) == 1 and spec["rank"] == 1]
    assert all(held.numel() == 0 for held in empty)
    assert len(empty) == (4 if spec["rank"] == 1 else 0)  # up and gate of two layers
    for theirs, ours in pairs:
        assert is_split(ours)
        assert torch.equal(whole(ours), theirs)
        assert torch.equal(shard_like(theirs, ours), shard(ours))
        assert torch.equal(shard_like(ours, ours), shard(ours))
        doubled = whole_of_shards(2 * shard(ours.detach()).double(), ours)
        assert torch.equal(doubled, 2 * theirs.detach().double())
        assert doubled.stride() == theirs.stride()
        value = shard(ours.detach()).double().square().sum()
        kept = value.clone()
        assert float(sum_over_shards(value, ours)) == pytest.approx(
            float(theirs.detach().double().square().sum()), rel=1e-12
        )
        assert torch.equal(value, kept), "the caller's number stays"


CHECKS = {
    **{
        f"{model}: {options}": attribution(f"{model}: {options}") for model in ("tied", "untied") for options in OPTIONS
    },
    "fisher": refused("data.fisher squares each example's own gradient", fisher="odd"),
    "mesh": refused("data_parallel_size=1, tensor_parallel_size=2; .*data_parallel_size 2 ", mesh=("auto", "auto")),
    "parts": parts_and_wholes,
    **{
        f"steering {'tied' if tied else 'untied'} {dtype} {intermediate}": steering(
            tied=tied, dtype=getattr(torch, dtype), intermediate=intermediate
        )
        for tied in (True, False)
        for dtype in ("float32", "bfloat16")
        for intermediate in ((23, 1) if tied else (23,))
    },
}


SLOW = {
    *(f"tied: {options}" for options in OPTIONS.keys() - {"divergence, chunked head", "masks"}),
    *(f"untied: {options}" for options in OPTIONS.keys() - {"no packs", "path"}),
    "steering tied float32 1", "steering tied bfloat16 23", "steering untied bfloat16 23",
}  # fmt: skip


def work(rank, directory):
    """On one of two processes: all checks in turn, each of which both processes say that it passed."""
    torch.set_num_threads(1)
    spec = json.loads((Path(directory) / "spec.json").read_text())
    for name in spec["checks"]:
        CHECKS[name](Path(directory), {**spec, "rank": int(rank)})
        print(f"passed: {name}.", flush=True)


@pytest.fixture(scope="module")
def spec(experiment, inputs, tmp_path_factory):
    """Two models by name, and piles."""
    directory = tmp_path_factory.mktemp("split_inputs")
    tokenizer = load_tokenizer(str(inputs / "tokenizer"))
    for seed, name in enumerate(("base", "untied")):
        odd_llama(tied=False, seed=seed, vocabulary=len(tokenizer)).save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)
    record_base(str(directory / "base"), directory / "untied")
    chats = [json.loads(line) for line in (inputs / "chat.jsonl").read_text().splitlines()]
    piles = {"odd": chats[:7], "single": chats[7:8]}
    return {
        "models": {"tied": str(experiment / "anchor"), "untied": str(directory / "untied")},
        "piles": {
            **{name: str(write_lines(directory / f"{name}.jsonl", rows)) for name, rows in piles.items()},
            "sampled": {"responses": str(experiment / "responses" / "first.jsonl"), "where": {"a": True}},
        },
    }


@pytest.fixture(scope="module")
def on_two(spec, request, tmp_path_factory):
    """Waits for a check on two processes to pass; gives the directory of what they write."""
    directory = tmp_path_factory.mktemp("split")
    selected = [item for item in request.session.items if "on_two" in item.fixturenames and item.path == request.path]
    checks = [item.callspec.params["name"] for item in selected]
    (directory / "spec.json").write_text(json.dumps({**spec, "checks": checks}))
    logs, started = [directory / f"log-{rank}" for rank in range(2)], []
    for rank, place in enumerate(two_places()):
        started.append(fork(work, rank, directory, log=logs[rank], environment=place))

    def wait(name):
        done = f"passed: {name}.\n"
        while not all(done in log.read_text() for log in logs):
            if not all(process.is_alive() for process in started):
                time.sleep(1)  # the other one's last words
                assert all(done in log.read_text() for log in logs), "\n".join(log.read_text() for log in logs)
            time.sleep(0.02)
        return directory

    yield wait
    for process in started:
        process.kill()
        process.join()


def named(attributes):
    """The names of the checks, those that tell little beyond the others marked as slow."""
    names = [name for name in CHECKS if (":" in name) == attributes]
    return [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in names]


@pytest.mark.parametrize("name", named(attributes=True))
def test_attribution_on_two_processes_equals_one(spec, on_two, tmp_path, name):
    gradients_of(name, spec, tmp_path)
    files = [*(f"gradients/{pile}.safetensors" for pile in spec["piles"]), "vectors/v.safetensors"]
    check_same_files(on_two(name) / name, tmp_path, files)


@pytest.mark.parametrize("name", named(attributes=False))
def test_on_two_processes(on_two, name):
    on_two(name)


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def words(experiment, inputs, tmp_path):
    """A command line on piles so many times over, whose sums are saved after each batch."""

    def make(times):
        chats = [json.loads(line) for line in (inputs / "chat.jsonl").read_text().splitlines()]
        turned = [
            {"prompt": f"{chat['messages'][1]['content']}?", "completion": chat["messages"][0]["content"]}
            for chat in chats
        ]
        x, y = (write_lines(tmp_path / f"{name}.jsonl", times * rows) for name, rows in (("x", chats), ("y", turned)))
        return [
            "attribute", "--model.model_name_or_path", experiment / "anchor", "--data.piles.x", x, "--data.piles.y", y,
            "--vectors.v", "[x, y]", "--data.token_budget", 80, "--partial_sums.every_minutes", 0, "--trainer.logger",
            "false",
        ]  # fmt: skip

    return make


FILES = ["gradients/x.safetensors", "gradients/y.safetensors", "vectors/v.safetensors"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--model.loss", "kl", "--model.gradient_checkpointing", "true"],
        ["--model.path_points", 3],
        ["--model.mask_draws", 2],
        ["--model.parameters", '["layer:1"]'],
    ],
    ids=lambda options: options[0],
)
def test_options_of_the_command_line(words, tmp_path, options):
    line = [*words(2), *options]
    process = start_on_two(line, tmp_path, "fsdp")
    run(*line, "--output_dir", tmp_path / "one")
    finish_on_two(process, tmp_path)
    check_same_files(tmp_path / "two", tmp_path / "one", FILES)


def saved(directory):
    """The partial sums of pile y: of each process the files by the number of batches in them."""
    found = [(directory / "gradients").glob(f".y.1.rank{rank}.*.partial") for rank in range(2)]
    return [{int(path.name.split(".")[-2]): path for path in paths} for paths in found]


def kill_after(line, tmp_path, strategy, least):
    """Kills both processes once each has saved sums of so many batches of pile y; gives the files."""
    process = start_on_two(line, tmp_path, strategy)
    try:
        while min(max(files, default=0) for files in saved(tmp_path / "two")) < least:
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.002)
    finally:
        kill_both(process)
    return saved(tmp_path / "two")


@pytest.mark.slow
@pytest.mark.parametrize("uneven", [False, True], ids=["together", "one after the other"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_killed_run_goes_on_and_ends_with_the_same_gradients(words, tmp_path, strategy, uneven):
    line = words(20)
    run(*line, "--output_dir", tmp_path / "one")
    first = kill_after(line, tmp_path, strategy, 3)
    if uneven:  # as if the second process alone had saved once more when the run was cut off
        before = {path: path.read_bytes() for files in first for path in files.values()}
        ours, theirs = kill_after(line, tmp_path, strategy, max(*first[0], *first[1]) + 2)
        for path in ours.values():
            path.unlink()
        for path, content in before.items():
            path.write_bytes(content)
        assert theirs
    for cut in (tmp_path / "two" / "gradients").glob("*.tmp.*"):
        cut.unlink()  # what they were writing at that moment
    (tmp_path / "log").unlink()
    log = finish_on_two(start_on_two(line, tmp_path, strategy), tmp_path)
    assert "x: already finished, not computed again" in log
    assert "y: resumes after" in log
    check_same_files(tmp_path / "two", tmp_path / "one", FILES)


@pytest.mark.slow
def test_a_mesh_that_splits_within_layers_is_refused(words, tmp_path):
    mesh = ["--trainer.strategy.data_parallel_size", 1, "--trainer.strategy.tensor_parallel_size", 2]
    process = start_on_two(words(1), tmp_path, "fsdp", mesh)
    assert process.wait(timeout=110) == 2
    log = (tmp_path / "log").read_text()
    assert "accepted: weights split by FSDP2 alone, --trainer.strategy.data_parallel_size 2 (the number of" in log
