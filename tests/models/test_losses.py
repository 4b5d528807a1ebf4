import pytest
import torch
from conftest import ragged_examples, tiny_llama

from gradsteer.data.chat import EncodedExample, collate
from gradsteer.models.losses import example_losses, token_losses


def test_token_losses_equal_log_probabilities_of_the_shifted_targets():
    logits = torch.randn(2, 5, 7, dtype=torch.float64)
    labels = torch.tensor([[-100, -100, 3, 4, -100], [-100, 1, -100, 2, 6]])
    losses = token_losses(logits, labels)
    log_probabilities = logits.log_softmax(-1)
    expected = torch.zeros(2, 4, dtype=torch.float64)
    for row, position, target in [(0, 1, 3), (0, 2, 4), (1, 0, 1), (1, 2, 2), (1, 3, 6)]:
        expected[row, position] = -log_probabilities[row, position, target]
    torch.testing.assert_close(losses, expected)


def test_a_batch_without_labels_gives_zero_and_a_gradient():
    logits = torch.randn(1, 3, 5, requires_grad=True)
    losses = token_losses(logits, torch.full((1, 3), -100))
    assert losses.sum() == 0
    losses.sum().backward()
    assert logits.grad is not None


def test_half_precision_logits_are_scored_in_float32():
    assert token_losses(torch.randn(1, 3, 5).bfloat16(), torch.ones(1, 3, dtype=torch.long)).dtype == torch.float32


@pytest.mark.parametrize("tied", [True, False])
def test_a_head_at_labelled_positions_changes_neither_losses_nor_gradients(tied):
    model, batch = tiny_llama(tied=tied), collate(ragged_examples(6), 0)
    sums, counts = example_losses(model, batch)
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    plain = token_losses(logits, batch["labels"]).sum(1)
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
        batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        logits = llama(**{key: batch[key] for key in ("input_ids", "attention_mask", "position_ids")}).logits
        sums = token_losses(logits, batch["labels"]).sum(1)
    else:
        sums, _ = example_losses(llama, batch)
    alone = torch.cat([example_losses(llama, collate([example], 0))[0] for example in examples])
    torch.testing.assert_close(sums, alone, rtol=1e-10, atol=1e-10)


def test_counts_leave_out_the_first_position():
    batch = collate([EncodedExample([5, 6, 7], [-100, 6, 7])], 0)
    assert example_losses(tiny_llama(), batch)[1].tolist() == [2]
