"""The setup of a run in words and numbers, each from a record; what no record says is not said."""

import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from gradsteer.reports.cells import number_text
from gradsteer.reports.page.records import Records, Row
from gradsteer.steering.conditions import alpha_text
from gradsteer.vectors.metadata import num_prompts_text
from gradsteer.vectors.weight_diff import DELTA

Fact = tuple[str, str]  # a term and what is said of it


def setup_facts(records: Records) -> list[Fact]:
    """Models, finetunes, vectors, prompts, judge and doses, in the order of the method."""
    facts: list[Fact] = []
    for part in (_models, _finetunes, _vectors, _sampling, _judge, _doses, _code):
        facts += records.attempt("setup", partial(_listed, part, records)) or []
    return facts


def _listed(part: Callable[[Records], Iterator[Fact]], records: Records) -> list[Fact]:
    return list(part(records))


def _models(records: Records) -> Iterator[Fact]:
    said = records.first.get("evaluation") or {}
    base = next((found for each in reversed(records.configs) if (found := each.option("steering.base"))), None)
    if isinstance(base, str):
        yield "base model", base
    if isinstance(said.get("model"), str):
        yield (
            "anchor, the finetuned model",
            _joined(
                said["model"],
                f"weights in {said['dtype']}" if said.get("dtype") else "",
                f"fingerprint {said['model_fingerprint']}" if said.get("model_fingerprint") else "",
            ),
        )


def _finetunes(records: Records) -> Iterator[Fact]:
    for config in records.configs:
        if config.command != "fit":
            continue
        rate = config.option("model.optimizer.init_args.lr")
        epochs, steps = config.option("trainer.max_epochs"), config.option("trainer.max_steps")
        yield (
            f"training of {config.option('name') or 'anchor'}",
            _joined(
                f"on {_source(config.option('data.train'))}",
                f"from {config.option('model.model_name_or_path') or 'fresh weights'}",
                f"loss on {config.option('data.loss_mask')} tokens" if config.option("data.loss_mask") else "",
                f"{epochs} epochs" if isinstance(epochs, int) and epochs > 0 else "",
                f"at most {steps} steps" if isinstance(steps, int) and steps > 0 else "",
                f"batches of {config.option('data.batch_size')}" if config.option("data.batch_size") else "",
                f"learning rate {rate:g}" if isinstance(rate, float) else "",
                f"seed {config.option('seed_everything')}",
            ),
        )


def _source(value: Any) -> str:
    return str(value.get("path")) if isinstance(value, Mapping) else str(value)


def _vectors(records: Records) -> Iterator[Fact]:
    for name, said in records.vectors.items():
        if name == DELTA or not {"plus", "minus"} <= set(said):
            continue
        sides = [f"gradient({said[side]}{_pile(said, side)})" for side in ("plus", "minus")]
        credit = said.get("credit", "reply")
        yield (
            f"vector {name}",
            _joined(
                " - ".join(sides),
                f"{num_prompts_text(said)} prompts" if num_prompts_text(said) else "",
                f"loss {said['loss']} on {said.get('loss_mask', 'all')} tokens" if said.get("loss") else "",
                f"mean by {said['reduction']}" if said.get("reduction") else "",
                f"credit {credit}" if credit != "reply" else "",
                f"halves agree to a cosine of {float(said['split_half_cosine']):+.2f}"
                if "split_half_cosine" in said
                else "",
                _slope(said),
            ),
        )


def _pile(said: Mapping[str, str], side: str) -> str:
    where = json.loads(said.get(f"{side}_where") or "{}")
    asked = ", ".join(f"{behavior} {json.dumps(verdict)}" for behavior, verdict in where.items())
    number = said.get(f"{side}_num_examples")
    text = "; ".join(part for part in (asked, f"{number} responses" if number else "") if part)
    return f": {text}" if text else ""


def _slope(said: Mapping[str, str]) -> str:
    found = json.loads(said.get("calibration") or "{}")
    if "slope" not in found:
        return ""
    error = f" (standard error {found['standard_error']:.3g})" if found.get("standard_error") is not None else ""
    return f"log-odds fall by {found['slope']:.3g} nats per unit of alpha{error}"


def _sampling(records: Records) -> Iterator[Fact]:
    said = records.first.get("evaluation") or records.first.get("forecast") or {}
    if "num_prompts" not in said:
        return
    yield (
        "responses per condition",
        _joined(
            f"{said['num_prompts']} prompts" + (f" x {said['num_samples']} samples" if said.get("num_samples") else ""),
            f"temperature {said['temperature']:g}" if said.get("temperature") is not None else "",
            f"top_p {said['top_p']:g}" if said.get("top_p") is not None else "",
            f"at most {said['max_new_tokens']} tokens" if said.get("max_new_tokens") else "",
            f"seeds {', '.join(map(str, said['seeds']))}" if said.get("seeds") else "",
            f"prompts' digest {said['prompts_digest'][:16]}" if said.get("prompts_digest") else "",
        ),
    )


def _judge(records: Records) -> Iterator[Fact]:
    said = records.first.get("evaluation") or {}
    if not said.get("judge"):
        return
    settings = said.get("judge_settings")
    given = settings.get("init_args") if isinstance(settings, Mapping) else None
    given = given if isinstance(given, Mapping) else {}
    patterns = given.get("patterns")
    yield "judge", _joined(
        str(said["judge"]),
        f"patterns in {patterns}" if isinstance(patterns, str) else "",
        f"patterns for {', '.join(map(str, patterns))}" if isinstance(patterns, Mapping) else "",
        f"model {given['model']}" if isinstance(given.get("model"), str) else "",
        f"fingerprint {said['judge_fingerprint'][:16]}" if said.get("judge_fingerprint") else "",
        "its errors were not measured" if said.get("labelled") is None else
        f"its errors measured on {said['labelled']['num_responses']} labelled responses",
    )  # fmt: skip


def _doses(records: Records) -> Iterator[Fact]:
    doses: dict[str, dict[float, Row]] = {}
    for row in records.rows:
        if row["kind"] == "steered" and row["alpha"]:
            name = " | ".join([str(row["vector"]), *row["transforms"]]) + (" on base" if row["model"] == "base" else "")
            doses.setdefault(name, {})[row["alpha"]] = row
    for name, found in doses.items():
        norms = [abs(row["relative_norm"]) for row in found.values() if row["relative_norm"] is not None]
        largest = f"at most {number_text(max(norms), '.2g', 100)}% of the weights' norm" if norms else ""
        yield f"doses of {name}", _joined(f"alpha {', '.join(map(alpha_text, found))}", largest)


def _code(records: Records) -> Iterator[Fact]:
    made = dict.fromkeys(config.made for config in records.configs if config.made)
    if made:
        yield "code", "; ".join(made)


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
