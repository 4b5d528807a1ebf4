"""Token log-ratios and spans."""

import numpy as np
import torch
from tiny_models import ragged_examples, tiny_llama

from gradsteer.discovery.spans import in_spans, labelled_ids, spans_of, token_log_probs, weighted
from gradsteer.models.batches import BatchLayout


def test_log_probs_are_the_models_whatever_the_batch():
    model, examples = tiny_llama(), ragged_examples(7)
    layouts = [BatchLayout.of(model, examples), BatchLayout.of(model, examples, packing=False)]
    found = [token_log_probs(model, examples, layout, token_budget=b) for layout in layouts for b in (1, 50, 10_000)]
    for index, example in enumerate(examples):
        ids = torch.tensor([example.input_ids])
        with torch.no_grad():
            logits = model(ids).logits[0, :-1].log_softmax(-1)
        places = [place for place in range(1, len(example.labels)) if example.labels[place] != -100]
        expected = [float(logits[place - 1, example.labels[place]]) for place in places]
        for each in found:
            np.testing.assert_allclose(each[index], expected, atol=1e-6)


def test_spans_start_above_the_threshold_reach_on_and_join():
    ratios = np.array([0, 3, 0, 0, 2, 0, 0, 0, 0, 0, 1.0, 1.1])
    assert spans_of(ratios, threshold=1, reach=1) == [(1, 3), (4, 6), (11, 12)]
    assert spans_of(ratios, threshold=1, reach=2) == [(1, 7), (11, 12)]
    assert spans_of(ratios, threshold=2.5, reach=100) == [(1, 12)]
    assert spans_of(ratios, threshold=5) == []
    assert in_spans([(1, 3)], 4).tolist() == [0, 1, 1, 0]


def test_weights_go_to_the_labelled_tokens():
    example = ragged_examples(1)[0]
    number = len(labelled_ids(example))
    made = weighted(example, np.arange(1.0, number + 1))
    given = [w for w, label in zip(made.weights, example.labels, strict=True) if label != -100]
    assert given == list(range(1, number + 1))
    assert sum(made.weights) == sum(given)
