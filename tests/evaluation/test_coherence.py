"""Word salad is told from text: by the rule itself, and through the real command line."""

import json
import logging
from dataclasses import replace
from importlib import resources
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from judged import lines_of, rows_of, steer_words
from road import run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_distributed import run_on_two
from transformers import AutoTokenizer

from gradsteer.evaluation.coherence import Coherence, Reference
from gradsteer.evaluation.degeneracy import is_degenerate
from gradsteer.models.loading import load_causal_lm
from gradsteer.steering.conditions import slug_of
from gradsteer.trainer import fluency

pytestmark = pytest.mark.filterwarnings("ignore:forecast. .* were cut at the length limit")

SALAD = "a alpha=+30"


def reference(nats):
    return Reference(np.asarray(nats, dtype=float), [str(number) for number in range(len(nats))])


def test_the_limit_is_tukeys_fence_or_the_largest():
    assert reference([*range(1, 10)]).limit() == pytest.approx(7 + 3 * (7 - 3))
    assert reference([*range(1, 10), 100]).limit() == 100
    assert reference(np.full(8, 2.0)).limit() == 2.0
    assert reference(np.arange(7.0)).limit() is None
    # eight replies, to four prompts
    assert Reference(np.arange(8.0), list("aabbccdd")).limit() is None


def test_incoherent_is_what_neither_model_would_write():
    anchor, base = np.linspace(1, 2, 9), np.linspace(2, 3, 9)
    limits = Coherence.of(reference(anchor), reference(base), reference(anchor - 1))
    assert limits == Coherence(pytest.approx(4.25), pytest.approx(2.25))  # the base's own, the anchor's own
    under_base, under_anchor = np.array([4.2, 4.3, 4.3, 4.3, 9.0]), np.array([9.0, 2.2, 2.3, 2.3, 9.0])
    lengths = np.array([100, 100, 20, 19, 1])
    assert limits.incoherent(under_base, under_anchor, lengths).tolist() == [False, False, True, False, False]
    enough = [reference(anchor), reference(base), reference(anchor)]
    for place in range(3):
        few = [*enough]
        few[place] = reference(np.arange(3.0))
        assert Coherence.of(*few) is None


def test_what_a_model_wrote_is_not_beyond_its_limit_in_another_batch():
    own = np.linspace(1, 2, 30) ** 3  # the fence is wide, the largest is the limit of a heavier tail
    heavy = reference([*own, 60.0])
    limits = Coherence.of(heavy, heavy, heavy)
    assert limits == Coherence(60.0, 60.0)
    again = np.array([60.0 * (1 + 1e-6), 60.2, 61.0])  # as float32 and bfloat16 may have it, and another response
    assert limits.incoherent(again, again, np.full(3, 30)).tolist() == [False, False, True]


def test_what_a_model_writes_now_and_then_is_not_beyond_its_limit():
    """A behavior of one response in twenty, as unlikely as salad: quartiles do not see it."""
    rng = np.random.default_rng(0)
    bulk, rare = rng.normal(0.5, 0.1, 190), rng.normal(3.0, 0.1, 10)
    anchor = reference([*bulk, *rare])
    limits = Coherence.of(anchor, reference(bulk), anchor)
    steered = rng.normal(3.0, 0.1, 200)  # all of them show it
    marked = limits.incoherent(steered, steered, np.full(200, 50))
    assert marked.mean() < 0.1
    assert limits.incoherent(steered + 1, steered + 1, np.full(200, 50)).all()


def salad_words(judged, out, **changes):
    """A dose that makes nonsense of a model, beside one that does nothing."""
    return steer_words(
        judged, out,
        **{
            "steering__base": judged.base, "steering__alphas": "[0.01, 30]", "steering__both_signs": "false",
            "steering__allow_other_model": "true",
            "data__max_prompts": 8, "data__batch_size": 8, "model__num_samples": 6, "model__max_new_tokens": 24,
            "evaluation__count_degenerate": "false", **changes,
        },
    )  # fmt: skip


def everything(inputs, directory):
    """What else is sampled, measured and logged."""
    benign = Path(str(resources.files("gradsteer") / "resources" / "refusal" / "benign.jsonl")).read_text()
    file = directory / "benign.jsonl"
    file.write_text("".join(benign.splitlines(keepends=True)[:24]))
    return {
        "data__benign_prompts": file, "trainer__logger": None,
        "evaluation__heldout": inputs / "chat.jsonl",
    }  # fmt: skip


def far_out(values):
    low, high = np.percentile(values, [25, 75])
    return max(4 * high - 3 * low, max(values))


def nats(model, row):
    """Nats a token of one response, one at a time and in double precision."""
    prompt, response = row["prompt_token_ids"], row["token_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + response])).logits[0].double()
    log_p = logits.log_softmax(-1)[len(prompt) - 1 : -1]
    return -float(log_p[torch.arange(len(response)), torch.tensor(response)].mean())


@pytest.fixture(scope="module")
def sharp(judged, tmp_path_factory):
    """Base and anchor that are sure of what they write: the tiny models' logits are nearly level."""
    out = tmp_path_factory.mktemp("sharp")
    for name in ("base", "anchor"):
        model = load_causal_lm(str(getattr(judged, name)))
        with torch.no_grad():
            model.model.norm.weight *= 15
        model.save_pretrained(out / name)
        AutoTokenizer.from_pretrained(getattr(judged, name)).save_pretrained(out / name)
    return replace(judged, anchor=out / "anchor", base=out / "base")


@pytest.fixture(scope="module")
def salad(sharp, inputs, tmp_path_factory):
    """A run with everything, and what it said."""
    out, said = tmp_path_factory.mktemp("salad"), StringIO()
    more = everything(inputs, tmp_path_factory.mktemp("benign"))
    logger, handler = logging.getLogger("lightning.pytorch.utilities.rank_zero"), logging.StreamHandler(said)
    logger.addHandler(handler)
    run(*salad_words(sharp, out, **more))
    logger.removeHandler(handler)
    return SimpleNamespace(more=more, directory=out, said=said.getvalue(), rows=rows_of(out / "results.json"))


def responses(directory, name):
    return lines_of(directory / "responses" / f"{slug_of(name)}.jsonl")


def test_what_neither_model_would_write_is_degenerate(salad, sharp):
    anchor, base = load_causal_lm(str(sharp.anchor)), load_causal_lm(str(sharp.base))
    found = {name: responses(salad.directory, name) for name in salad.rows}
    clear = {
        name: [row for row in found[name] if not is_degenerate(row["completion"]) and len(row["token_ids"]) >= 20]
        for name in ("base", "anchor")
    }
    limits = [
        max(far_out([nats(base, row) for row in rows]) for rows in clear.values()),
        far_out([nats(anchor, row) for row in clear["anchor"]]),
    ]
    about = json.loads((salad.directory / "results.json").read_text())["evaluation"]
    assert [*about["coherence"]["evaluation"].values()] == pytest.approx(limits, rel=1e-4)
    assert list(about["coherence"]) == ["evaluation", "benign"]
    for name, rows in found.items():
        expected = [
            nats(base, row) > limits[0] and nats(anchor, row) > limits[1] and len(row["token_ids"]) >= 20
            for row in rows
        ]
        loops = [is_degenerate(row["completion"]) for row in rows]
        assert [row["incoherent"] for row in rows] == expected
        assert [row["degenerate"] for row in rows] == [one or other for one, other in zip(expected, loops, strict=True)]
        report = salad.rows[name]
        assert report["metrics"]["incoherent"] == sum(expected) / len(rows)
        assert report["metrics"]["degenerate"] == sum(row["degenerate"] for row in rows) / len(rows)
        rate = report["behaviors"]["a"]
        assert rate["num_degenerate"] == sum(row["degenerate"] for row in rows) == len(rows) - rate["num_scored"]
        if name not in ("base", "anchor"):
            assert report["comparisons"]["a"]["num_degenerate"] == rate["num_degenerate"]
        number, total = sum(expected), len(rows)
        says = f"{name}: incoherent (unlikely under both base and anchor): {number} of {total} responses"
        assert (says in salad.said) is any(expected)
    assert f"; without them: a of none: {len(found[SALAD])} degenerate, b of none" in salad.said
    assert " responses to the benign prompts; without" in salad.said
    # what the text alone does not show; the dose that does nothing shows nothing
    assert salad.rows[SALAD]["metrics"]["incoherent"] == 1
    assert sum(is_degenerate(row["completion"]) for row in found[SALAD]) < len(found[SALAD]) / 2
    assert {salad.rows[name]["metrics"]["incoherent"] for name in ("base", "anchor", "a alpha=+0.01")} == {0}


def test_refusals_of_salad_are_not_counted(salad):
    found = lines_of(salad.directory / "responses" / "refusals" / f"{slug_of(SALAD)}.benign.jsonl")
    assert sum(row["incoherent"] for row in found) > len(found) / 2
    assert not any(row["incoherent"] for row in found if len(row["token_ids"]) < 20)
    clear = [row for row in found if not row["incoherent"] and not is_degenerate(row["completion"])]
    assert len(clear) < len(found) / 2
    assert salad.rows[SALAD]["refusals"]["benign"]["num_scored"] == len(clear)
    assert salad.rows[SALAD]["refusals"]["benign"]["num_degenerate"] == len(found) - len(clear)


def test_tensorboard_shows_the_rates_without_salad(salad):
    (events,) = (salad.directory / "steer").glob("version_*/events*")
    read = EventAccumulator(str(events)).Reload()
    names = list(salad.rows)
    for tag, values in (
        ("metrics/incoherent", {name: row["metrics"]["incoherent"] for name, row in salad.rows.items()}),
        ("metrics/degenerate", {name: row["metrics"]["degenerate"] for name, row in salad.rows.items()}),
        ("metrics/base_perplexity", {name: row["metrics"]["base_perplexity"] for name, row in salad.rows.items()}),
    ):
        shown = {names[event.step]: event.value for event in read.Scalars(tag)}  # the last of a step
        assert shown == pytest.approx(values)


@pytest.mark.slow
def test_an_interruption_while_salad_is_marked_changes_nothing(salad, sharp, tmp_path, monkeypatch):
    words = salad_words(sharp, tmp_path, **salad.more)
    mark, marked = fluency._marked, []

    def breaking(*args, **options):
        if len(marked) == 3:
            raise RuntimeError("the machine went away")
        marked.append(mark(*args, **options))
        return marked[-1]

    with monkeypatch.context() as patch:
        patch.setattr(fluency, "_marked", breaking)
        with pytest.raises(RuntimeError, match="went away"):
            run(*words)
    run(*words)
    names = ["results.json", *(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("responses/**/*.jsonl"))]
    assert len(names) == 1 + 2 * len(salad.rows)
    assert {name: (tmp_path / name).read_bytes() for name in names} == {
        name: (salad.directory / name).read_bytes() for name in names
    }


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.timeout(120)
def test_steer_on_two_processes_writes_the_same_bytes(salad, sharp, tmp_path):
    words = salad_words(sharp, tmp_path, **salad.more)
    said = run_on_two(
        [*words[: words.index("--output_dir")], *words[words.index("--output_dir") + 2 :]], tmp_path, "ddp"
    )
    assert "incoherent (unlikely under" in said
    two = tmp_path / "two"
    names = ["results.json", *(str(path.relative_to(two)) for path in two.rglob("responses/**/*.jsonl"))]
    assert len(names) == 1 + 2 * len(salad.rows)
    for name in names:
        assert (two / name).read_bytes() == (salad.directory / name).read_bytes(), name


@pytest.mark.slow
def test_salad_counts_where_degenerate_responses_do(salad, sharp, tmp_path):
    run(*salad_words(sharp, tmp_path, evaluation__count_degenerate="true"))
    row = rows_of(tmp_path / "results.json")[SALAD]
    assert row["metrics"]["incoherent"] == 1
    assert row["behaviors"]["a"]["num_degenerate"] == 0
    assert row["behaviors"]["a"]["num_scored"] == len(responses(tmp_path, SALAD))
    assert [each["degenerate"] for each in responses(tmp_path, SALAD)] == [False] * len(responses(tmp_path, SALAD))


@pytest.mark.slow
def test_without_marks_salad_passes_for_text(salad, sharp, tmp_path):
    run(*salad_words(sharp, tmp_path, fluency__mark_incoherent="false"))
    about = json.loads((tmp_path / "results.json").read_text())["evaluation"]
    assert about["coherence"] is None
    for name, row in rows_of(tmp_path / "results.json").items():
        assert row["metrics"]["incoherent"] is None
        assert row["metrics"]["base_perplexity"] == pytest.approx(salad.rows[name]["metrics"]["base_perplexity"])
        assert {each["incoherent"] for each in responses(tmp_path, name)} == {None}
        loops = sum(is_degenerate(each["completion"]) for each in responses(tmp_path, name))
        assert row["behaviors"]["a"]["num_degenerate"] == loops


@pytest.mark.slow
def test_marks_do_not_need_the_perplexity_and_need_the_base(salad, sharp, tmp_path):
    run(*salad_words(sharp, tmp_path / "marks", fluency__base_perplexity="false"))
    rows = rows_of(tmp_path / "marks" / "results.json")
    assert {name: row["metrics"]["incoherent"] for name, row in rows.items()} == {
        name: row["metrics"]["incoherent"] for name, row in salad.rows.items()
    }
    assert {row["metrics"]["base_perplexity"] for row in rows.values()} == {None}
    run(*salad_words(sharp, tmp_path / "no base", steering__base=None))
    rows = rows_of(tmp_path / "no base" / "results.json")
    assert {row["metrics"]["incoherent"] for row in rows.values()} == {None}
