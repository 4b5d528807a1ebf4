"""The effect by rank against the gradient that autograd gives."""

import json

import pytest
import torch
from anchors import anchor, export, held_names, truncated, write_responses
from conftest import rest_slow

from gradsteer.models.loading import load_causal_lm
from gradsteer.vectors.parameter_vectors import SteeringVector


def gradient(path, responses, behavior, temperature):
    """Of ``mean loss(with) - mean loss(without)``, one response at a time, in float64."""
    model = load_causal_lm(str(path), dtype="float64")
    rows = [json.loads(line) for line in responses.read_text().splitlines()]
    sides = {shown: [row for row in rows if row["verdicts"][behavior] is shown] for shown in (True, False)}
    for shown, chosen in sides.items():
        for row in chosen:
            ids = torch.tensor([row["prompt_token_ids"] + row["token_ids"]])
            first = len(row["prompt_token_ids"])
            logs = (model(input_ids=ids).logits[0] / temperature).log_softmax(-1)
            loss = -logs[first - 1 : -1].gather(1, ids[0, first:, None]).sum()
            ((1 if shown else -1) * loss / len(chosen)).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("behavior", "temperature"), rest_slow([("a", None), ("a", 0.5), ("other", None), ("a", 0)], 2)
)
def test_the_effect_is_the_share_of_the_directional_derivative(behavior, temperature, tmp_path):
    path, file = anchor(tmp_path)
    responses = write_responses(tmp_path / "r.jsonl", temperature=temperature)
    words = ("--responses", responses, "--behavior", behavior, "--ranks", "[1, 3]")
    report = export(tmp_path / "to", path, file, "adapter", *words)
    grads, vector = gradient(path, responses, behavior, temperature or 1.0), SteeringVector.load(file)

    def along(edit):
        return sum(float((grads[name] * tensor.double()).sum()) for name, tensor in edit.items())

    assert report["derivative"] == pytest.approx(along(vector), rel=1e-2)
    assert report["behavior"] == behavior
    for row in report["table"]:
        edit = {name: truncated(vector[name], row["rank"]) for name in held_names("llama tied", path)}
        assert row["effect"] == pytest.approx(along(edit) / along(vector), rel=2e-2, abs=2e-2), row


def test_the_vectors_own_pile_names_the_behavior(tmp_path, capsys):
    path, file = anchor(tmp_path)
    responses = write_responses(tmp_path / "r.jsonl")
    report = export(tmp_path / "to", path, file, "adapter", "--responses", responses)
    assert report["behavior"] == "a"
    assert "responses with and without 'a'" in capsys.readouterr().out
    assert "first-order effect" in (tmp_path / "to" / "README.md").read_text()
    named = export(tmp_path / "named", path, file, "adapter", "--responses", responses, "--behavior", "a")
    assert named["table"] == report["table"]


def test_without_responses_there_is_no_effect(tmp_path):
    path, file = anchor(tmp_path)
    report = export(tmp_path / "to", path, file, "adapter")
    assert report["derivative"] is None
    assert {row["effect"] for row in report["table"]} == {None}
