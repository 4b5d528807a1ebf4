"""Attribution where something is unusual: settings without effect, replaced results, runs that break off or are cut."""

from pathlib import Path

import lightning as L
import pytest
import torch
from road import run
from safetensors.torch import load_file, save_file
from test_attribution_module import trainer_of
from test_attribution_options import encoded, gradient, line, masked, models, piles, refused  # noqa: F401 (fixtures)
from test_pile_gradient import autograd_oracle, relative_error

from gradsteer.attribution.partial_sums import PartialSum
from gradsteer.models.base_record import recorded_base
from gradsteer.models.fingerprints import weights_digest
from gradsteer.models.loading import load_causal_lm, load_tokenizer
from gradsteer.steering.weight_steering import steered
from gradsteer.trainer.callbacks.vectors import VectorWriter
from gradsteer.trainer.datamodules.piles import PileDataModule
from gradsteer.trainer.modules.attribution import AttributionModule
from gradsteer.trainer.modules.gradient_options import PointOptions
from gradsteer.vectors.parameter_vectors import PileAverage, SteeringVector
from gradsteer.vectors.weight_diff import named_weights


@pytest.fixture
def plain_gradient(models, encoded):  # noqa: F811
    return autograd_oracle(models["anchor"], encoded["x"], "example")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model.mask_seed", "3"], "model.mask_seed is 3, which has no effect without model.mask_draws"),
        (["--model.kl_direction", "reverse"], "model.kl_direction is 'reverse', which has no effect without"),
        (["--writing.precondition_power", "1"], "have no effect without writing.precondition"),
        (["--trainer.limit_test_batches", "1"], "limit_test_batches would leave out a part of every pile"),
    ],
)
def test_settings_that_would_have_no_effect_are_refused(line, tmp_path, capsys, words, said):  # noqa: F811
    assert said in refused(capsys, *line(tmp_path, *words))
    assert not (tmp_path / "gradients").exists()


def test_other_settings_without_effect(experiment):
    with pytest.raises(ValueError, match=r"model.base is '.*base', which has no effect without model.path_points"):
        AttributionModule(str(experiment / "anchor"), base=str(experiment / "base"))
    for options in ({"precondition": "fisher"}, {"unit_contrast": True}):
        with pytest.raises(ValueError, match=r"writing.precondition and unit_contrast have no effect without vectors"):
            VectorWriter("out", {}, **options)
    for name, value in (("mask_keep_rate", 0.1), ("mask_components", "rows"), ("mask_origin", "zero")):
        options = {"mask_keep_rate": 0.5, "mask_components": "entries", "mask_origin": "base", "mask_seed": 0}
        with pytest.raises(ValueError, match=f"model.{name} is .*, which has no effect without model.mask_draws"):
            PointOptions(path_points=None, mask_draws=None, **{**options, name: value})


def test_one_draw_from_the_base(line, models, encoded, tmp_path):  # noqa: F811
    run(*line(tmp_path, "--model.mask_draws", 1))
    names = list(named_weights(models["anchor"]))
    expected = masked(models["anchor"], named_weights(models["base"]), encoded["x"], 1, 0.5, 0, "entries", names)
    assert relative_error(gradient(tmp_path), expected) < 1e-6


@pytest.mark.slow
def test_overwriting_replaces_sums_of_several_parts_and_leaves_no_halves(line, tmp_path):  # noqa: F811
    run(*line(tmp_path, "--data.halves", "true"))
    path = tmp_path / "gradients" / "x.safetensors"
    before, header = load_file(path), PileAverage.read_header(path)
    spoilt = {name: torch.full_like(tensor, 7.0) for name, tensor in before.items()}
    save_file(spoilt, path, metadata={**header, "format_version": "1", "kind": "gradient"})
    run(*line(tmp_path, "--data.halves", "true", "--overwrite", "true"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in load_file(path).items())
    run(*line(tmp_path, "--overwrite", "true"))
    assert list((tmp_path / "gradients" / "halves").iterdir()) == []


def test_another_token_budget_keeps_what_is_finished_and_sums_the_rest_anew(line, tmp_path):  # noqa: F811
    """It is the remedy for running out of memory: it must not cost what is there."""
    run(*line(tmp_path, "--data.halves", "true"))
    record = tmp_path / "stages" / "attribute.json"
    record.write_text(record.read_text().replace('"finished": true', '"finished": false'))
    kept = tmp_path / "gradients" / "x.safetensors"
    stamp = kept.stat().st_mtime_ns
    (tmp_path / "gradients" / "y.safetensors").unlink()
    header = PileAverage.read_header(kept)
    run(*line(tmp_path, "--data.halves", "true", "--data.token_budget", 60))
    assert kept.stat().st_mtime_ns == stamp
    assert PileAverage.read_header(kept) == header
    assert (tmp_path / "gradients" / "y.safetensors").is_file()


def test_partial_sums_of_other_batches_are_summed_anew(line, tmp_path, plain_gradient):  # noqa: F811
    with pytest.MonkeyPatch.context() as patch:
        save = PartialSum.save

        def then_break(self, path, *, work_digest):
            save(self, path, work_digest=work_digest)
            raise KeyboardInterrupt

        patch.setattr(PartialSum, "save", then_break)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            run(*line(tmp_path, "--partial_sums.every_minutes", 0))
    assert len(list((tmp_path / "gradients").glob(".*.partial"))) == 1
    run(*line(tmp_path, "--partial_sums.every_minutes", 0, "--data.token_budget", 50))
    assert relative_error(gradient(tmp_path), plain_gradient) < 1e-6
    assert list((tmp_path / "gradients").glob(".*")) == []


def test_a_vector_made_in_half_precision_belongs_to_the_same_model(experiment, line, tmp_path):  # noqa: F811
    run(*line(tmp_path, "--model.dtype", "bfloat16"))
    vector = SteeringVector.load(tmp_path / "vectors" / "v.safetensors")
    for dtype in ("float32", "bfloat16", "float64"):
        with steered(load_causal_lm(str(experiment / "anchor"), dtype=dtype), vector, 0.1):
            pass
    changed = load_causal_lm(str(experiment / "anchor"), dtype="bfloat16")
    with torch.no_grad():
        next(changed.parameters()).mul_(2)
    with pytest.raises(ValueError, match="was made on a model with fingerprint"), steered(changed, vector, 0.1):
        pass


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"base": null}'])
def test_a_record_of_the_base_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "gradsteer.json").write_text(text)
    with pytest.raises(ValueError, match="is not of the form"):
        recorded_base(str(tmp_path))


def test_a_recorded_path_is_meant_from_the_anchor(tmp_path, monkeypatch):
    (tmp_path / "here" / "anchor").mkdir(parents=True)
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # where ../base would be another directory
    (tmp_path / "here" / "anchor" / "gradsteer.json").write_text('{"base": "../base"}')
    assert recorded_base("anchor") == "base"
    assert not Path("base").exists()


class Break(L.Callback):
    """Raises between two batches."""

    def on_test_batch_end(self, *_):
        raise OSError("disk full")


def test_the_weights_are_the_models_own_after_an_error_between_batches(experiment, piles):  # noqa: F811
    module = AttributionModule(str(experiment / "anchor"), path_points=3)
    module.configure_model()
    before = weights_digest(named_weights(module.model))
    with pytest.raises(OSError, match="disk full"):
        trainer_of(Break()).attribute(module, PileDataModule({"x": str(piles["x"])}, token_budget=40))
    assert weights_digest(named_weights(module.model)) == before


def test_a_dry_run_writes_nothing(line, tmp_path):  # noqa: F811
    run(*line(tmp_path, "--model.path_points", 2, "--trainer.fast_dev_run", "true"))
    assert list(tmp_path.rglob("*.safetensors")) == []


def test_a_reference_close_to_the_model_still_runs_in_packs(experiment, piles, tmp_path):  # noqa: F811
    """Its divergence is near the rounding of the losses; that must not be taken for leaks between segments."""
    near = load_causal_lm(str(experiment / "anchor"))
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in near.parameters():
            weight.add_(1e-3 * weight.abs().mean() * torch.randn_like(weight))
    near.save_pretrained(tmp_path)
    load_tokenizer(str(experiment / "anchor")).save_pretrained(tmp_path)
    module = AttributionModule(str(experiment / "anchor"), loss="kl", kl_direction="reverse", reference=str(tmp_path))
    trainer_of().attribute(module, PileDataModule({"x": str(piles["x"])}))
    assert module.batch_layout.packs


def test_gradients_made_at_other_points_are_not_contrasted():
    tensors = {"w": torch.ones(2)}
    sides = [PileAverage(tensors, {"points": "masks", "mask_seed": seed}) for seed in ("0", "1")]
    with pytest.raises(ValueError, match=r"their mask_seed differ \('0' and '1'\)"):
        SteeringVector.contrast(*sides)
