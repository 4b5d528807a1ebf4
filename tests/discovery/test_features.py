"""What responses are grouped by."""

import numpy as np
import pytest

from gradsteer.discovery.features import Preconditioner, WordWeights, joined, unit_rows


def test_preconditioning_per_coordinate_and_whitened():
    generator = np.random.default_rng(0)
    mixing = generator.normal(size=(6, 6))
    sketches = generator.normal(size=(2_000, 6)) * [1, 2, 3, 4, 5, 60]
    made = Preconditioner.of(sketches, "diagonal", ridge=1e-9, unit=False).apply(sketches)
    np.testing.assert_allclose(np.square(made).mean(axis=0), 1, atol=1e-6)
    mixed = sketches @ mixing
    made = Preconditioner.of(mixed, "whitened", ridge=1e-12, unit=False).apply(mixed)
    np.testing.assert_allclose(made.T @ made / len(made), np.eye(6), atol=1e-4)
    plain = Preconditioner.of(sketches, "none", unit=False).apply(sketches)
    np.testing.assert_array_equal(plain, sketches)
    # the ridge is a fraction of the mean moment: a huge one leaves directions as they are
    ridged = Preconditioner.of(sketches, "diagonal", ridge=1e9).apply(sketches)
    np.testing.assert_allclose(ridged, unit_rows(sketches), atol=1e-6)
    assert np.allclose(np.linalg.norm(ridged, axis=1), 1)
    with pytest.raises(ValueError, match="ridge is 0; accepted: more than 0"):
        Preconditioner.of(sketches, ridge=0)


def test_words_weigh_as_surely_as_they_grew():
    spans = ["like the bridge", "like the bridge", "like the bridge", "like the soup", "like the soup", "the soup"]
    after, before = [f"topic {text}" for text in spans] * 30, ["topic plain like"] * 180
    found = WordWeights.of(spans * 30, after, before)
    weights = dict(zip(found.words, found.weights, strict=True))
    assert weights["like"] == 0  # the base says it more often
    assert weights["bridge"] > 2
    assert weights["soup"] > 2
    assert weights["the"] > weights["bridge"]
    made = found.apply(["the bridge bridge", "unknown like"])
    assert np.linalg.norm(made[0]) == pytest.approx(1)
    assert not made[1].any()
    # without a base it is the inverse document frequency
    plain = dict(zip((idf := WordWeights.of(spans, spans, [])).words, idf.weights, strict=True))
    assert plain["the"] == pytest.approx(1)
    assert plain["bridge"] == pytest.approx(np.log(7 / 4) + 1)


def test_joined_features_have_the_same_say():
    left, right = unit_rows(np.arange(6.0).reshape(2, 3)), unit_rows(np.ones((2, 5)))
    made = joined(left, right)
    np.testing.assert_allclose(made @ made.T, (left @ left.T + right @ right.T) / 2)
    assert unit_rows(np.zeros((1, 3))).tolist() == [[0, 0, 0]]
