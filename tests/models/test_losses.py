from types import SimpleNamespace

import pytest
import torch
from tiny_models import ragged_examples, tiny_llama
from torch.nn import functional

from gradsteer.data.chat import EncodedExample, collate
from gradsteer.models.losses import example_losses


class Says(torch.nn.Module):
    """A model that gives the same logits whatever it reads."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def get_output_embeddings(self):
        return None

    def forward(self, **_):
        return SimpleNamespace(logits=self.logits)


def batch_of(labels):
    return {"input_ids": labels, "attention_mask": torch.ones_like(labels), "labels": labels}


def plain_losses(model, batch, **more):
    """(batch,) from the logits at all positions."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **more).logits[:, :-1]
    return functional.cross_entropy(logits.mT, batch["labels"][:, 1:], reduction="none").sum(1)


def test_losses_are_log_probabilities_of_the_shifted_targets():
    logits = torch.randn(2, 5, 7, dtype=torch.float64)
    labels = torch.tensor([[-100, -100, 3, 4, -100], [-100, 1, -100, 2, 6]])
    losses, counts = example_losses(Says(logits), batch_of(labels))
    log_probabilities = logits.log_softmax(-1)
    expected = torch.zeros(2, dtype=torch.float64)
    for row, position, target in [(0, 1, 3), (0, 2, 4), (1, 0, 1), (1, 2, 2), (1, 3, 6)]:
        expected[row] -= log_probabilities[row, position, target]
    torch.testing.assert_close(losses, expected)
    assert counts.tolist() == [2, 3]


def test_a_batch_without_labels_gives_zero_and_a_gradient():
    logits = torch.randn(1, 3, 5, requires_grad=True)
    losses, counts = example_losses(Says(logits), batch_of(torch.full((1, 3), -100)))
    assert losses.tolist() == counts.tolist() == [0]
    losses.sum().backward()
    assert logits.grad is not None


def test_half_precision_logits_are_scored_in_float32():
    labels = torch.ones(1, 3, dtype=torch.long)
    assert example_losses(Says(torch.randn(1, 3, 5).bfloat16()), batch_of(labels))[0].dtype == torch.float32


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_at_labelled_positions_changes_neither_losses_nor_gradients(tied):
    model, batch = tiny_llama(tied=tied), collate(ragged_examples(6), 0)
    sums, counts = example_losses(model, batch)
    plain = plain_losses(model, batch)
    torch.testing.assert_close(sums, plain, rtol=1e-12, atol=0)
    parameters = list(model.parameters())
    ours, theirs = (torch.autograd.grad(loss.sum() / counts.sum(), parameters) for loss in (sums, plain))
    for found, expected in zip(ours, theirs, strict=True):
        assert float((found - expected).norm()) <= 1e-12 * float(expected.norm())


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_loss(llama, side):
    examples = ragged_examples(5)
    batch = collate(examples, 0, side=side)
    if side == "left":  # a left-padded batch is only comparable with explicit positions
        sums = plain_losses(llama, batch, position_ids=(batch["attention_mask"].cumsum(1) - 1).clamp(min=0))
    else:
        sums, _ = example_losses(llama, batch)
    alone = torch.cat([example_losses(llama, collate([example], 0))[0] for example in examples])
    torch.testing.assert_close(sums, alone, rtol=1e-10, atol=1e-10)


def test_counts_leave_out_the_first_position():
    batch = collate([EncodedExample([5, 6, 7], [-100, 6, 7])], 0)
    assert example_losses(tiny_llama(), batch)[1].tolist() == [2]
