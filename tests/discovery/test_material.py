"""Log-ratios and sketches in parts that are kept, whatever the batches and the processes."""

import numpy as np
import pytest
from tiny_models import ragged_examples, tiny_llama

from gradsteer.discovery import kept_work, material
from gradsteer.discovery.material import ResponseReader, all_spans, loss_weights
from gradsteer.discovery.sketches import Sketcher


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(kept_work, "PART", 3)


def test_two_processes_and_other_batches_give_the_same(tmp_path, small_parts):
    model, examples = tiny_llama(), ragged_examples(8)
    alone = ResponseReader(examples, tmp_path / "one", token_budget=1000)
    log_probs, (sketches, sketcher) = alone.log_probs(model), alone.sketches(model, size=200, seed=0)
    assert sketches.shape == (8, sketcher.size)
    second = ResponseReader(examples, tmp_path / "two", token_budget=20, rank=1, world_size=2)
    for made in (lambda: second.log_probs(model), lambda: second.sketches(model, size=200, seed=0)):
        with pytest.raises(FileNotFoundError):  # what the first process has still to make
            made()
    first = ResponseReader(examples, tmp_path / "two", token_budget=20, rank=0, world_size=2)
    together = first.log_probs(model), first.sketches(model, size=200, seed=0)[0]
    np.testing.assert_allclose(together[1], sketches, atol=1e-4)
    for one, other in zip(together[0], log_probs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_what_is_kept_is_not_made_again_and_of_other_weights_not_read(tmp_path, small_parts, monkeypatch):
    model, examples = tiny_llama(), ragged_examples(8)
    calls = []
    real = material.token_log_probs

    def counted(model, chosen, *args, **options):
        calls.append(len(chosen))
        if len(calls) == 3:
            raise RuntimeError("cut off")
        return real(model, chosen, *args, **options)

    monkeypatch.setattr(material, "token_log_probs", counted)
    reader = ResponseReader(examples, tmp_path, token_budget=100)
    with pytest.raises(RuntimeError, match="cut off"):
        reader.log_probs(model)
    found = reader.log_probs(model)
    assert calls == [3, 3, 2, 2]  # two parts were there
    assert [len(each) for each in found] == [example.num_target_tokens for example in examples]
    reader.log_probs(tiny_llama(seed=1))
    assert len(calls) == 7
    kept_work.clear(tmp_path)
    assert not tmp_path.exists()


def test_a_gradient_that_is_not_finite_is_named(tmp_path, monkeypatch):
    def broken(self, batch, **options):
        return real(self, batch, **options) * np.nan

    real = Sketcher.add
    monkeypatch.setattr(Sketcher, "add", broken)
    with pytest.raises(ValueError, match="the gradient of response 1 of 2 holds NaN or Inf"):
        ResponseReader(ragged_examples(2), tmp_path, token_budget=100).sketches(tiny_llama(), size=100, seed=0)


def test_loss_weights():
    ratios, spans = [np.array([-1.0, 2.0, 0.5])], [[(1, 2)]]
    assert loss_weights("plain", ratios, spans) is None
    assert loss_weights("spans", ratios, spans)[0].tolist() == [0, 1, 0]
    assert loss_weights("log_ratio", ratios, spans)[0].tolist() == [0, 2, 0.5]
    with pytest.raises(ValueError, match="discovery.token_weights is 'other'; accepted: plain, spans, log_ratio"):
        loss_weights("other", ratios, spans)
    examples = ragged_examples(2)
    assert all_spans(examples, None, threshold=1, reach=1) == [[(0, each.num_target_tokens)] for each in examples]
