"""Rows of a padded vocabulary, for which the tokenizer has no text: never drawn, scored so, and read where they are."""

import json

import numpy as np
import pytest
import torch
from road import write_lines
from tiny_models import VOCABULARY, ragged_examples, tiny_llama
from tokenizers_zoo import chatml_tokenizer

from gradsteer.data.chat import EncodedExample, tokenizer_digest
from gradsteer.data.piles import read_pile
from gradsteer.forecast.judged_responses import read_judged_responses
from gradsteer.forecast.scoring import ResponseScorer
from gradsteer.generation.decoding import Draw, SamplingConfig, sample_batch
from gradsteer.generation.sampling import num_known_ids
from gradsteer.models.loading import load_tokenizer

PADDED = VOCABULARY + 19


@pytest.fixture(scope="module", params=[True, False])
def models(request):
    """A model, and the same with rows behind its vocabulary that training left plausible."""
    own, padded = tiny_llama(tied=request.param), tiny_llama(tied=request.param)
    padded.resize_token_embeddings(PADDED, mean_resizing=False)
    with torch.no_grad():
        for each in {padded.get_input_embeddings(), padded.get_output_embeddings()}:
            each.weight[VOCABULARY:] = each.weight[:19] * 1.5
    return own, padded.eval()


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.9), (0.0, 1.0)])
def test_replies_are_those_of_the_model_without_the_rows(models, temperature, top_p):
    config = SamplingConfig(max_new_tokens=12, temperature=temperature, top_p=top_p)
    draws = [Draw([3, 5, 9], sample, 0) for sample in range(16)]
    own, known, all_ids = (
        [each.token_ids for each in sample_batch(model, draws, config, stop_token_ids=[2], pad_token_id=0, **options)]
        for model, options in ((models[0], {}), (models[1], {"num_known": VOCABULARY}), (models[1], {}))
    )
    assert known == own
    assert temperature == 0 or max(max(ids) for ids in all_ids) >= VOCABULARY  # the rows are plausible


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("packs", [True, False])
def test_scores_are_of_what_is_drawn(models, top_p, packs, monkeypatch):
    if not packs:
        monkeypatch.setattr("gradsteer.models.batches.why_not_packs", lambda *_, **__: "not here")
    examples = ragged_examples(5)
    own, known, plain = (
        ResponseScorer(model, examples, temperature=0.8, top_p=top_p, **options).log_probs(sampled_here=True)
        for model, options in ((models[0], {}), (models[1], {"num_known": VOCABULARY}), (models[1], {}))
    )
    np.testing.assert_allclose(known, own, rtol=1e-12)
    assert (known > plain).all()


def test_responses_of_another_sampler_are_scored_under_all_rows(models):
    examples = [*ragged_examples(2), EncodedExample([3, 4, PADDED - 1], [-100, -100, PADDED - 1])]
    known, plain = (ResponseScorer(models[1], examples, num_known=n).log_probs() for n in (VOCABULARY, None))
    np.testing.assert_array_equal(known, plain)
    assert np.isfinite(plain).all()


def test_a_prompts_id_without_a_row_is_named(models):
    with pytest.raises(ValueError, match=f"draw 0 has the token id {PADDED}; accepted are 0 to {PADDED - 1}, the mod"):
        sample_batch(
            models[1], [Draw([3, PADDED], 0, 0)], SamplingConfig(max_new_tokens=2), stop_token_ids=[], pad_token_id=0
        )


def test_files_with_such_ids_are_read_up_to_the_models_rows(tmp_path):
    tokenizer = chatml_tokenizer()
    known = num_known_ids(tokenizer)
    assert known == len(tokenizer)
    row = {"prompt": "p", "prompt_token_ids": [1, 2], "token_ids": [3, known + 1], "finish_reason": "length"}
    row |= {"tokenizer": tokenizer_digest(tokenizer), "verdicts": {"a": True}, "completion": "x"}
    path = str(write_lines(tmp_path / "responses.jsonl", [row]))
    assert read_pile("x", path, tokenizer, num_ids=known + 2).examples[0].input_ids == [1, 2, 3, known + 1]
    assert len(read_judged_responses(path, tokenizer, num_ids=known + 2)) == 1
    for read in (
        lambda **rows: read_pile("x", path, tokenizer, **rows),
        lambda **r: read_judged_responses(path, tokenizer, **r),
    ):
        with pytest.raises(ValueError, match=f"not a list of token ids from 0 to {known}, at least one"):
            read(num_ids=known + 1)


def test_a_padding_token_without_a_row_is_not_used(tmp_path):
    tokenizer = chatml_tokenizer()
    rows = len(tokenizer)
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": rows}))
    assert tokenizer.pad_token_id == rows
    assert load_tokenizer(str(tmp_path)).pad_token == tokenizer.eos_token
