"""What an interrupted run goes on from: every key of the plan decides."""

import copy
from types import FunctionType, SimpleNamespace

import pytest
from tokenizers_zoo import chatml_tokenizer

from gradsteer.models.loading import Loading
from gradsteer.steering.conditions import Condition
from gradsteer.trainer import resume_sampling
from gradsteer.trainer.session import Session


def run_of(weights="of the vector"):
    """A Trainer and a module as the plan sees them, of one steered condition."""
    planned = {"batch_size": 3, "num_rows": 24, "num_batches": 8, "digest": "d"}
    steering = SimpleNamespace(identity=lambda condition, recipe: {"recipe": weights})
    session = Session(plan=[(Condition("a alpha=+0.1", "steered", alpha=0.1), None)], steering=steering)
    trainer = SimpleNamespace(
        session=session, precision="32-true",
        datamodule=SimpleNamespace(planned=planned, plan_of=lambda condition: dict(planned)), is_global_zero=True,
        strategy=SimpleNamespace(barrier=lambda: None),
    )  # fmt: skip
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=5))
    module = SimpleNamespace(
        sampling=SimpleNamespace(temperature=1.0, top_p=0.9, max_new_tokens=60), model=model, dtype_name="float32",
        tokenizer=chatml_tokenizer(),
        loading=Loading("m", attn_implementation="sdpa"), device=SimpleNamespace(type="cpu"),
    )  # fmt: skip
    return trainer, module


def planned(key):
    return lambda trainer, module: trainer.datamodule.planned.update({key: 99})


def sampling(key):
    return lambda trainer, module: setattr(module.sampling, key, 0.5)


def module(key, value):
    return lambda trainer, module: setattr(module, key, value)


def other_template(trainer, module):
    module.tokenizer = copy.deepcopy(module.tokenizer)
    module.tokenizer.chat_template += " "  # the ids of all tokens stay as they are


CHANGES = {
    **{key: planned(key) for key in ("batch_size", "num_rows", "num_batches", "digest")},
    **{key: sampling(key) for key in ("temperature", "top_p", "max_new_tokens")},
    "stop_token_ids": lambda trainer, module: setattr(module.model.generation_config, "eos_token_id", [5, 6]),
    "tokenizer": other_template,
    "model_fingerprint": None,  # given to `KeptSampling`
    "dtype": module("dtype_name", "bfloat16"),
    "attn_implementation": module("loading", Loading("m", attn_implementation="eager")),
    "device": module("device", SimpleNamespace(type="cuda")),
    "precision": lambda trainer, module: setattr(trainer, "precision", "bf16-mixed"),
    "version": resume_sampling,
    "torch": resume_sampling.torch,
    "transformers": resume_sampling.transformers,
    "weights": lambda trainer, module: setattr(trainer, "session", run_of("of another one")[0].session),
}


def keep(trainer, module, directory, anchor="f"):
    return resume_sampling.KeptSampling(trainer, module, directory, anchor, overwrite=False)


def test_the_keys_of_the_plan_are_those_that_are_changed_below(tmp_path):
    assert set(keep(*run_of(), tmp_path).begin(0).plan()) == set(CHANGES)


@pytest.mark.parametrize("key", CHANGES)
def test_a_plan_is_refused_by_each_of_its_keys(key, tmp_path, monkeypatch):
    keep(*run_of(), tmp_path).begin(0)
    assert keep(*run_of(), tmp_path).begin(0).plan() is not None  # the same again goes on
    (trainer, module), change = run_of(), CHANGES[key]
    if isinstance(change, FunctionType):
        change(trainer, module)
    elif change is not None:  # a module whose version it is
        monkeypatch.setattr(change, "__version__", "0.0.1")
    shown = "the prompts or their seeds" if key == "digest" else key
    with pytest.raises(ValueError, match=rf"it differs in {shown} \(now [^()]*\)\. Continue"):
        keep(trainer, module, tmp_path, "g" if change is None else "f")
