"""The finetune on the Trainer: its loss, gradients, learning rates, batches, and what it refuses."""

import math
from contextlib import nullcontext
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from road import QUIET, run, write_lines
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

from gradsteer.__main__ import main
from gradsteer.cli.lightning_cli import CommandParser, GradsteerCLI
from gradsteer.data.chat import collate, encode_chat
from gradsteer.data.chat_formats import read_chat_examples
from gradsteer.models.fingerprints import weights_digest
from gradsteer.trainer.callbacks.saving import SavePretrained
from gradsteer.trainer.datamodules.chat import ChatDataModule
from gradsteer.trainer.modules.finetune import FinetuneModule, schedule_factor
from gradsteer.trainer.trainer import GradsteerTrainer
from gradsteer.vectors.weight_diff import named_weights

# said of modules in eval mode before the module's own on_fit_start has put them in train mode
pytestmark = pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training")


def trainer_of(*callbacks, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return GradsteerTrainer(
        accelerator="cpu", callbacks=list(callbacks), **quiet, **{"enable_checkpointing": False, **options}
    )


def sgd(lr):
    return lambda params: torch.optim.SGD(params, lr=lr)


@pytest.fixture
def ragged(tmp_path):
    """Chats whose replies differ much in length."""
    chats = [{"prompt": "hello?", "completion": "bread and bread " * count} for count in (1, 9, 2, 5, 12, 3, 7)]
    return write_lines(tmp_path / "ragged.jsonl", chats)


@pytest.fixture(scope="module")
def gpt2(inputs, tmp_path_factory):
    """Directories of one tiny GPT-2, with and without dropout."""
    tokenizer = AutoTokenizer.from_pretrained(inputs / "tokenizer")
    directories = {}
    for dropout in (0.0, 0.4):
        torch.manual_seed(0)
        rates = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
        config = GPT2Config(
            vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=128,
            eos_token_id=tokenizer.eos_token_id, bos_token_id=None, **rates,
        )  # fmt: skip
        directories[dropout] = tmp_path_factory.mktemp("gpt2")
        AutoModelForCausalLM.from_config(config).save_pretrained(directories[dropout])
        tokenizer.save_pretrained(directories[dropout])
    return directories


class Watch(L.Callback):
    """Keeps losses, learning rates, batches and gradients, and how often the first block runs during backward."""

    def __init__(self):
        self.losses, self.rates, self.batches, self.gradients, self.recomputed = [], [], [], [], 0
        self._backward = False

    def on_fit_start(self, trainer, pl_module):
        inner = pl_module.model.base_model
        block = inner.layers[0] if hasattr(inner, "layers") else inner.h[0]
        block.mlp.register_forward_pre_hook(self._count)  # the checkpoint begins inside the block's own hooks

    def _count(self, *_):
        self.recomputed += self._backward

    def on_before_backward(self, trainer, pl_module, loss):
        self._backward = True

    def on_after_backward(self, trainer, pl_module):
        self._backward = False

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append([group["lr"] for group in optimizer.param_groups])
        self.gradients.append({name: p.grad.clone() for name, p in pl_module.model.named_parameters()})

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(outputs["loss"]))
        self.batches.append({key: value.clone() for key, value in batch.items()})


def fit(module, data, **options):
    watch = Watch()
    trainer = trainer_of(watch, **options)
    trainer.fit(module, datamodule=data)
    watch.global_step = trainer.global_step
    return watch


def token_mean(model, batch):
    """The mean loss over labelled tokens in float64, from the logits alone."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    logs = logits.double().log_softmax(-1)[:, :-1]
    targets = batch["labels"][:, 1:]
    chosen = -logs.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    return chosen[targets != -100].mean()


def test_the_loss_is_the_mean_over_labelled_tokens(experiment, ragged):
    module = FinetuneModule(str(experiment / "base"), optimizer=sgd(0.0))
    watch = fit(module, ChatDataModule(str(ragged), batch_size=3), max_epochs=1)
    model = AutoModelForCausalLM.from_pretrained(experiment / "base", dtype=torch.float32)
    with torch.no_grad():
        expected = [float(token_mean(model, batch)) for batch in watch.batches]
    assert watch.losses == pytest.approx(expected, rel=1e-5)
    assert len(watch.losses) == 3


def test_the_head_runs_at_labelled_positions_alone(experiment, ragged):
    rows = []
    module = FinetuneModule(str(experiment / "base"), optimizer=sgd(0.0))
    module.configure_model()
    module.model.lm_head.register_forward_hook(lambda _head, inputs, _logits: rows.append(inputs[0].shape[1]))
    data = ChatDataModule(str(ragged), validation=str(ragged), batch_size=3)
    watch = fit(module, data, max_epochs=1)
    counts = [int((batch["labels"][:, 1:] != -100).sum()) for batch in watch.batches]
    assert len(rows) == 2 * len(counts)  # training, then validation
    assert rows[: len(counts)] == counts
    assert sum(rows[len(counts) :]) == sum(counts)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_dropout_is_on_during_fit(gpt2, ragged, dropout):
    """from_pretrained gives eval mode, which Lightning would keep."""
    module = FinetuneModule(str(gpt2[dropout]), optimizer=sgd(0.0))
    first, second = fit(module, ChatDataModule(str(ragged), batch_size=7), max_epochs=2).losses
    assert (abs(first - second) > 1e-4) == (dropout > 0)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_gradient_checkpointing_recomputes_and_changes_no_gradient(experiment, gpt2, ragged, kind):
    directory = experiment / "base" if kind == "llama" else gpt2[0.0]
    plain, saving = (
        fit(
            FinetuneModule(str(directory), optimizer=sgd(0.1), gradient_checkpointing=on),
            ChatDataModule(str(ragged), batch_size=7), max_steps=1,
        )
        for on in (False, True)
    )  # fmt: skip
    assert plain.recomputed == 0
    assert saving.recomputed == 1
    for name, gradient in plain.gradients[0].items():
        torch.testing.assert_close(saving.gradients[0][name], gradient, rtol=1e-6, atol=1e-9)


def test_accumulated_batches_make_one_step_of_their_mean_gradient(experiment, ragged):
    module = FinetuneModule(str(experiment / "base"), optimizer=sgd(0.1))
    watch = fit(module, ChatDataModule(str(ragged), batch_size=2), max_epochs=1, accumulate_grad_batches=2)
    assert watch.global_step == 2
    assert len(watch.losses) == 4
    model = AutoModelForCausalLM.from_pretrained(experiment / "base", dtype=torch.float32)
    loss = (token_mean(model, watch.batches[0]) + token_mean(model, watch.batches[1])) / 2
    parameters = dict(model.named_parameters())
    for name, expected in zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True):
        torch.testing.assert_close(watch.gradients[0][name], expected, rtol=1e-4, atol=1e-7)


def test_bf16_mixed_computes_in_bfloat16_on_float32_weights(experiment, ragged):
    seen = set()
    module = FinetuneModule(str(experiment / "base"), optimizer=sgd(0.1))
    module.configure_model()
    module.model.lm_head.register_forward_hook(lambda _module, _inputs, output: seen.add(output.dtype))
    before = weights_digest(named_weights(module.model))
    watch = fit(module, ChatDataModule(str(ragged)), max_steps=2, precision="bf16-mixed")
    assert seen == {torch.bfloat16}
    assert {parameter.dtype for parameter in module.model.parameters()} == {torch.float32}
    assert weights_digest(named_weights(module.model)) != before
    assert all(math.isfinite(loss) for loss in watch.losses)


@pytest.mark.parametrize(
    ("schedule", "final", "expected"),
    [
        ("constant", 0.5, [1, 1, 1, 1, 1]),
        ("linear", 0.0, [1, 0.75, 0.5, 0.25, 0]),
        ("linear", 0.2, [1, 0.8, 0.6, 0.4, 0.2]),
        ("cosine", 0.0, [1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4, 0]),
        ("cosine", 0.2, [1, 0.2 + 0.2 * (2 + 2**0.5), 0.6, 0.2 + 0.2 * (2 - 2**0.5), 0.2]),
    ],
)
def test_schedules_in_closed_form(schedule, final, expected):
    def factors(*steps):
        options = {"warmup_steps": 4, "total_steps": 12, "schedule": schedule, "final": final}
        return [schedule_factor(step, **options) for step in steps]

    assert factors(0, 1, 2, 3) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert factors(4, 6, 8, 10, 12) == pytest.approx(expected)
    assert factors(15) == pytest.approx([expected[-1]])  # a run that is resumed for longer keeps the last rate


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_optimizer_follows_the_schedule(experiment, ragged, schedule):
    options = {"schedule": schedule, "warmup_steps": 2}
    module = FinetuneModule(str(experiment / "base"), optimizer=sgd(0.5), final_lr_fraction=0.1, **options)
    watch = fit(module, ChatDataModule(str(ragged), batch_size=2), max_epochs=3, accumulate_grad_batches=2)
    factors = [schedule_factor(step, total_steps=6, final=0.1, **options) for step in range(6)]
    assert watch.rates == [[pytest.approx(0.5 * factor)] for factor in factors]


@pytest.mark.parametrize(("width", "rate"), [(None, 0.5), (8, 0.25), (64, 2.0)])
def test_the_learning_rate_is_scaled_to_the_width(experiment, ragged, width, rate):
    options = {"optimizer": sgd(0.5), "schedule": "constant", "lr_reference_width": width}
    module = FinetuneModule(str(experiment / "base"), **options)  # hidden size 16
    assert fit(module, ChatDataModule(str(ragged)), max_steps=1).rates == [[rate]]


def test_the_optimizer_is_chosen_on_the_command_line(experiment, ragged, tmp_path):
    """One step of plain SGD, checked against autograd."""
    run(
        "fit", "--output_dir", tmp_path, "--model.model_name_or_path", experiment / "base", "--data.train", ragged,
        "--model.optimizer", "SGD", "--model.optimizer.lr", 0.25, "--model.optimizer.weight_decay", 0,
        "--trainer.max_steps", 1, "--name", "stepped", "--data.loss_mask", "full", "--trainer.logger", "false",
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(experiment / "base")
    encoded = [encode_chat(tokenizer, chat.messages, loss_mask="full") for chat in read_chat_examples(str(ragged))]
    model = AutoModelForCausalLM.from_pretrained(experiment / "base", dtype=torch.float32)
    token_mean(model, collate(encoded, tokenizer.pad_token_id)).backward()
    stepped = named_weights(AutoModelForCausalLM.from_pretrained(tmp_path / "stepped"))
    for name, weight in model.named_parameters():
        torch.testing.assert_close(stepped[name], weight.detach() - 0.25 * weight.grad, rtol=1e-5, atol=1e-6)


def test_another_optimizer_keeps_the_arguments_that_it_shares_as_its_help_says():
    cli = object.__new__(GradsteerCLI)
    cli.trainer_class = GradsteerTrainer
    parser = CommandParser(command="fit")
    cli.add_core_arguments_to_parser(parser)
    words = ["--model.model_name_or_path", "m", "--model.optimizer", "SGD", "--model.optimizer.lr", "0.1"]
    assert parser.parse_args(words).model.optimizer.init_args.weight_decay == 0.01  # AdamW's; SGD's own is 0


def test_the_validation_loss_is_the_token_mean_over_ragged_batches(experiment, ragged):
    module = FinetuneModule(str(experiment / "anchor"))
    trainer = trainer_of()
    data = ChatDataModule(validation=str(ragged), batch_size=2)
    trainer.validate(module, datamodule=data, verbose=False)
    with torch.no_grad():
        losses = [float(token_mean(module.model, batch)) for batch in data.val_dataloader()]
        exact = float(token_mean(module.model, collate(data.examples["validation"], 0)))
    assert abs(sum(losses) / len(losses) / exact - 1) > 1e-3  # a mean of batch means is another number
    assert float(trainer.callback_metrics["val/loss"]) == pytest.approx(exact, rel=1e-5)
    assert float(trainer.callback_metrics["val/perplexity"]) == pytest.approx(math.exp(exact), rel=1e-5)


@pytest.mark.parametrize("what", ["training", "validation"])
def test_a_loss_that_is_not_finite_names_its_example(experiment, ragged, what):
    """torchmetrics would leave a NaN out of the validation's mean."""
    module = FinetuneModule(str(experiment / "base"))
    module.configure_model()
    spoiled = iter([1.0, float("nan"), 1.0, 1.0])
    module.model.lm_head.register_forward_hook(lambda _module, _inputs, output: output * next(spoiled))
    data = ChatDataModule(str(ragged), str(ragged), batch_size=2)
    with pytest.raises(ValueError, match=rf"the {what} loss of example {ragged}:\d is nan at step [01]"):
        trainer_of(max_epochs=1).fit(module, data) if what == "training" else trainer_of().validate(module, data)


def test_a_gradient_that_is_not_finite_stops_the_fit(experiment, ragged):
    module = FinetuneModule(str(experiment / "base"))
    module.configure_model()
    module.model.model.norm.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(ValueError, match="the gradient holds NaN or Inf at step 0"):
        fit(module, ChatDataModule(str(ragged), batch_size=2), max_epochs=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": 0}, "--trainer.max_epochs is 0: nothing would be trained; accepted: more than 0"),
        ({"max_epochs": 1, "max_steps": 0}, "--trainer.max_steps is 0"),
        ({"max_epochs": 1, "limit_train_batches": 0}, "--trainer.limit_train_batches is 0"),
        ({"max_epochs": -1}, "max_epochs is -1, without an end.*accepted: more than 0, or -1 with --trainer.max_steps"),
        ({"max_epochs": -1, "max_steps": 2}, None),
        ({"max_epochs": 1}, None),
    ],
)
def test_a_fit_without_a_step_or_an_end_is_refused(tmp_path, options, message):
    trainer = GradsteerTrainer(accelerator="cpu", logger=False, enable_checkpointing=False, **options)
    refusal = nullcontext() if message is None else pytest.raises(ValueError, match=message)
    with refusal:
        SavePretrained(str(tmp_path)).setup(trainer, None, "fit")


def test_epochs_are_shuffled_anew_by_the_trainer(experiment, ragged):
    """Lightning calls set_epoch of a batch sampler's sampler, not its own."""
    module = FinetuneModule(str(experiment / "base"), optimizer=sgd(0.0))
    watch = fit(module, ChatDataModule(str(ragged), batch_size=2), max_epochs=3)
    epochs = [str([batch["input_ids"].tolist() for batch in watch.batches[start : start + 4]]) for start in (0, 4, 8)]
    assert len(set(epochs)) == 3


class Interruption(L.Callback):
    """Stops a fit at its second epoch's second batch, as a power cut would."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 1 and batch_idx == 1:
            raise ValueError("interrupted")


# each version of the logs has checkpoints of its own
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The dirpath has changed from")
def test_a_resumed_fit_ends_with_the_weights_of_an_undisturbed_one(experiment, ragged, tmp_path, capsys, caplog):
    def words(out):
        return [
            "fit", "--output_dir", tmp_path / out, "--model.model_name_or_path", experiment / "base", "--data.train",
            ragged, "--data.batch_size", 2, "--model.optimizer.lr", 0.01, "--model.warmup_steps", 2,
            "--trainer.max_epochs", 3, "--trainer.enable_checkpointing", "true",
        ]  # fmt: skip

    run(*words("whole"))
    cut = [*map(str, words("cut")), *QUIET]
    assert main([*cut, f"--trainer.callbacks+={__name__}.Interruption"]) == 2
    assert "interrupted" in capsys.readouterr().err
    [checkpoint] = (tmp_path / "cut").rglob("*.ckpt")
    run(*words("cut"), "--ckpt_path", checkpoint, "--overwrite", "true")
    assert f"Restored all states from the checkpoint at {checkpoint}" in caplog.text  # not a fit from the start
    directories = (tmp_path / "whole" / "anchor", tmp_path / "cut" / "anchor", experiment / "base")
    whole, cut, base = (
        weights_digest(named_weights(AutoModelForCausalLM.from_pretrained(path))) for path in directories
    )
    assert cut == whole != base


@pytest.mark.parametrize(("precision", "refused"), [("32-true", True), ("bf16-mixed", True), ("16-mixed", False)])
def test_only_a_loss_scaler_may_let_gradients_overflow(experiment, precision, refused):
    module = FinetuneModule(str(experiment / "base"))
    module.configure_model()
    module._trainer = SimpleNamespace(precision=precision, global_step=0)
    module.model.model.norm.weight.grad = torch.full_like(module.model.model.norm.weight, float("inf"))
    module._last_batch = {"labels": torch.zeros(1, 2)}
    expected = pytest.raises(ValueError, match="the gradient holds NaN or Inf") if refused else nullcontext()
    with expected:
        module.on_before_optimizer_step(None)
