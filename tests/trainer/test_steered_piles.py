"""Piles of steered samples through attribute: weights, sizes, refusals, interruptions, two processes."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from judged import FRESH, lines_of
from road import QUIET, run, run_cut_off, write_lines
from test_attribution_module import Averages, trainer_of
from test_distributed import check_same_files, check_same_vectors, run_on_two
from test_pile_gradient import relative_error

from gradsteer.__main__ import main
from gradsteer.attribution.pile_gradient import PileGradient
from gradsteer.data.chat import collate
from gradsteer.data.pile_filters import PileFilter
from gradsteer.data.piles import read_pile
from gradsteer.evaluation.mixtures import mixture_log_density
from gradsteer.forecast.calibration import Calibration
from gradsteer.forecast.pooled_responses import read_pool
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.models.loading import load_causal_lm, load_tokenizer
from gradsteer.records import file_digest
from gradsteer.steering.weight_steering import steered
from gradsteer.trainer.datamodules.piles import PileDataModule
from gradsteer.trainer.modules.attribution import AttributionModule
from gradsteer.trainer.pile_weights import PileWeights
from gradsteer.vectors.parameter_vectors import PileAverage, SteeringVector


@pytest.fixture(scope="module")
def tokenizer(judged):
    return load_tokenizer(str(judged.anchor))


@pytest.fixture(scope="module")
def files(judged, steps):
    """The anchor's responses, and those of a step."""
    return [str(judged.responses), str(steps / "a_alpha=-0.4.jsonl")]


def words(judged, files, out, **more):
    piles = {name: {"responses": files, "where": {"a": shown}} for name, shown in (("with", True), ("without", False))}
    flags = {
        "--output_dir": out, "--model.model_name_or_path": judged.anchor, "--trainer.logger": "false",
        "--data.piles": json.dumps(piles), "--vectors.v": "[with, without]", "--data.sampled_along": judged.vector("a"),
        "--model.reduction": "sum", "--model.temperature": "sampled", "--data.permutations": 1,
    }  # fmt: skip
    return ["attribute", *[str(word) for flag in (flags | more).items() for word in flag]]


@cache
def weights_of(judged, tokenizer, files):
    """``file:line`` -> weight, and verdict, by a notebook's loop."""
    model, vector = load_causal_lm(str(judged.anchor)), SteeringVector.load(judged.vector("a"))
    pool = read_pool(files, tokenizer)
    scorer, scores = ResponseScorer(model, pool.examples), []
    for source in pool.sources:
        with steered(model, vector, source.alpha):
            scores.append(scorer.log_probs())
    # every prompt has as many replies in a file as every other
    counts = [source.num_responses for source in pool.sources]
    with steered(model, vector, 0.0):
        weights = np.exp(scorer.log_probs() - mixture_log_density(np.stack(scores, axis=1), counts))
    return dict(zip(pool.places, weights, strict=True)), model


@pytest.fixture(scope="module", autouse=True)
def _nothing_stays():
    yield
    weights_of.cache_clear()


@pytest.fixture(scope="module")
def whole(judged, files, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    run(*words(judged, files, out))
    return out


def average_of(judged, tokenizer, files, shown, keep=lambda prompt: True, *, weighed=True):
    """The weighted average that the command should find, its weights, and the pile."""
    weights, model = weights_of(judged, tokenizer, tuple(files))
    pile = read_pile("x", PileFilter(files, {"a": shown}), tokenizer)
    chosen = [index for index, prompt in enumerate(pile.prompts) if keep(prompt)]
    mine = [weights[pile.sources[index]] if weighed else 1.0 for index in chosen]
    gradient = PileGradient(model, reduction="sum")
    gradient.add(collate([pile.examples[index] for index in chosen], tokenizer.pad_token_id), weights=mine)
    return gradient.average(), np.array(mine), pile


def test_every_reply_counts_by_its_densities(judged, files, whole, tokenizer, capsys):
    for name, shown in (("with", True), ("without", False)):
        written = PileAverage.load(whole / "gradients" / f"{name}.safetensors")
        expected, weights, pile = average_of(judged, tokenizer, files, shown)
        assert relative_error(written, expected) < 1e-4
        size = weights.sum() ** 2 / np.square(weights).sum()
        assert size < len(weights) - 0.5
        plain, _, _ = average_of(judged, tokenizer, files, shown, weighed=False)
        assert relative_error(plain, expected) > 0.01
        assert float(written.metadata["effective_sample_size"]) == pytest.approx(size, rel=1e-3)
        assert written.metadata["num_examples"] == str(len(weights))
        assert written.metadata["weights"] == "own density / mixture"
        sources = json.loads(written.metadata["sampled_at"])
        assert [(s["responses"], s["num_responses"]) for s in sources] == list(zip(files, (FRESH, 200), strict=True))
        assert sources[0]["step"] is None
        assert (sources[1]["step"]["alpha"], sources[1]["step"]["vector"]) == (-0.4, file_digest(judged.vector("a")))
    piles = [read_pile("x", PileFilter(files, {"a": shown}), tokenizer) for shown in (True, False)]
    ordered = sorted({digest for pile in piles for digest in pile.prompts})
    first = set(ordered[::2])
    half = PileAverage.load(whole / "gradients" / "halves" / "with-1.safetensors")
    expected, weights, _ = average_of(judged, tokenizer, files, True, first.__contains__)
    assert relative_error(half, expected) < 1e-4  # divided by its own sum of weights
    size = weights.sum() ** 2 / np.square(weights).sum()
    assert float(half.metadata["effective_sample_size"]) == pytest.approx(size, rel=1e-3)


def test_the_vector_says_its_weights_and_is_taken_like_any_other(judged, whole, capsys):
    vector = SteeringVector.load(whole / "vectors" / "v.safetensors")
    said = vector.metadata
    assert said["weights"] == "own density / mixture"
    assert "effective_sample_size" not in said
    assert 30 < float(said["plus_effective_sample_size"]) <= int(said["plus_num_examples"])
    assert Calibration.read(said).standard_error > 0
    assert Calibration.read(said).num_plus == int(said["plus_num_examples"])
    permuted = SteeringVector.load(whole / "vectors" / "permuted" / "v-0.safetensors")
    assert permuted.norm() < vector.norm()


def attributed(judged, tokenizer, source, **options):
    averages, module = Averages(), AttributionModule(str(judged.anchor), reduction="example")
    trainer_of(averages).attribute(module, PileDataModule({"x": source}, **options))
    return averages.found["x"]


def test_files_of_the_anchor_alone_are_a_plain_pile(judged, steps, tokenizer, tmp_path):
    files = [str(judged.responses), str(steps / "anchor.jsonl")]
    joined = write_lines(tmp_path / "joined.jsonl", [row for file in files for row in lines_of(Path(file))])
    found = attributed(judged, tokenizer, PileFilter(files, {"a": True}))
    plain = attributed(judged, tokenizer, PileFilter(str(joined), {"a": True}))
    assert "weights" not in found.metadata
    assert found.metadata["num_examples"] == plain.metadata["num_examples"]
    assert relative_error(found, plain) == 0


def test_one_file_of_a_step_will_do_and_is_weighed_only_when_asked(judged, files, tokenizer):
    along = str(judged.vector("a"))
    source = PileFilter(files[1], {"a": True})
    weighed, plain = (attributed(judged, tokenizer, source, sampled_along=each) for each in (along, None))
    expected, weights, _ = average_of(judged, tokenizer, files[1:], True)
    del expected
    assert float(weighed.metadata["effective_sample_size"]) == pytest.approx(
        weights.sum() ** 2 / np.square(weights).sum(), rel=1e-3
    )
    assert "weights" not in plain.metadata
    assert relative_error(weighed, plain) > 0.01


def test_a_pile_of_few_effective_replies_is_refused_with_their_number(judged, files, tokenizer, tmp_path):
    few = write_lines(tmp_path / "few.jsonl", lines_of(Path(files[1]))[:20])
    with pytest.raises(ValueError, match=r"pile x: 20 responses from one file count as much as \d+\.\d of the "):
        attributed(judged, tokenizer, PileFilter(str(few)), sampled_along=str(judged.vector("a")))


def test_what_cannot_be_weighed_is_refused_before_a_model_is_loaded(judged, steps, files, tokenizer, tmp_path):
    along, said = str(judged.vector("a")), []

    def read(source, vectors=(along,)):
        piles = [read_pile("x", source, tokenizer)]
        return PileWeights.read(piles, {"x": source}, vectors, tokenizer, num_ids=len(tokenizer), say=said.append)

    def rows(name, **changes):
        return str(write_lines(tmp_path / f"{name}.jsonl", [row | changes for row in lines_of(Path(files[1]))]))

    assert list(read(PileFilter(files)).pools) == ["x"]
    assert list(read(files[1]).pools) == ["x"]
    assert read(PileFilter(files[1]), ()) is None
    assert said == [
        "pile x: sampled at a step along a vector, and taken as it is; to weigh it to the model's own replies: "
        "--data.sampled_along FILE, the vector"
    ]
    with pytest.raises(FileNotFoundError, match=r"data.sampled_along: no vector at 'nowhere'"):
        read(PileFilter(files), ("nowhere",))
    other = str(judged.vector("b"))
    for vectors, given in (((), ""), ((other,), f"; given: {other}")):
        with pytest.raises(ValueError, match=rf"sampled at alpha -0.4 along the vector whose file .* FILE{given}$"):
            read(PileFilter(files), vectors)
    with pytest.raises(ValueError, match=r"no pile holds responses that were sampled along .*b.safetensors"):
        read(PileFilter(files), (along, other))
    with pytest.raises(ValueError, match=r"no pile holds responses that were sampled along"):
        read(PileFilter(files[0]))
    with pytest.raises(ValueError, match=r"pile 'x': length short asks for the median of the model's own replies"):
        read(PileFilter(files, length="short"))
    with pytest.raises(ValueError, match=r"top_k.jsonl' was sampled with top_k 5: its densities are not known"):
        read(rows("top_k", top_k=5))
    with pytest.raises(ValueError, match=r"cold.jsonl' does not say its temperature"):
        read(rows("cold", temperature=None))
    with pytest.raises(ValueError, match=r"narrow.jsonl' was sampled at a step with top_p 0.9"):
        read(rows("narrow", top_p=0.9))
    with pytest.raises(ValueError, match=r"pile 'x': responses names .* twice: its responses would count twice"):
        read(PileFilter([files[1], files[1]]))
    with pytest.raises(ValueError, match=r"pile 'x': responses is \[\]; accepted: a file, or a list of files"):
        read(PileFilter([]))
    texts = str(write_lines(tmp_path / "t.jsonl", [{"prompt": "a", "completion": "b", "verdicts": {"a": True}}]))
    with pytest.raises(ValueError, match=r"t.jsonl' holds texts; accepted in a list: files of sampled responses"):
        read(PileFilter([files[0], texts]))
    weights = read(PileFilter(files))
    weights.check_vectors({"v": ["x", "x"], "w": ["y", "z"]})
    with pytest.raises(ValueError, match=r"'v': pile 'x' is of steered samples and weighed, pile 'y' is not"):
        weights.check_vectors({"v": ["y", "x"]})


def test_another_model_is_refused(judged, files, tokenizer):
    module = AttributionModule(str(judged.base))
    data = PileDataModule({"x": PileFilter(files)}, sampled_along=str(judged.vector("a")))
    with pytest.raises(ValueError, match=r"was sampled at steps from weights with fingerprint .*, the model has"):
        trainer_of().attribute(module, data)


def test_graddiff_is_refused(judged, files, tmp_path, capsys):
    line = words(judged, files, tmp_path, **{"--graddiff.steps": "[2]", "--graddiff.alpha": 0.1})
    assert main([*line, *QUIET]) == 2
    assert "data.sampled_along weighs replies to the anchor itself" in capsys.readouterr().err


def test_a_weighed_and_a_plain_gradient_are_not_contrasted(whole, judged):
    weighed = PileAverage.load(whole / "gradients" / "with.safetensors")
    plain = PileAverage({**weighed}, {key: value for key, value in weighed.metadata.items() if key != "weights"})
    with pytest.raises(ValueError, match=r"their weights differ \('own density / mixture' and None"):
        SteeringVector.contrast(weighed, plain)


def test_an_interrupted_run_goes_on_with_the_same_weights(judged, files, whole, tmp_path, monkeypatch):
    line = words(judged, files, tmp_path, **{"--partial_sums.every_minutes": 0})
    run_cut_off(line, tmp_path, monkeypatch)
    assert not (tmp_path / "vectors").exists()
    run(*line)
    names = ("gradients/with", "gradients/halves/without-2", "vectors/v", "vectors/permuted/v-0")
    check_same_vectors(tmp_path, whole, names)


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(240)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_give_what_one_gives(judged, files, whole, tmp_path, strategy):
    run_on_two(words(judged, files, tmp_path, **{"--data.token_budget": 300}), tmp_path, strategy)
    written = [str(path.relative_to(whole)) for path in whole.rglob("*.safetensors")]
    check_same_files(tmp_path / "two", whole, written)
