"""The page's sentences that depend on a run: what was asked, where it lies in the model, what limits it."""

from collections.abc import Iterator

from gradsteer.reports.page.pictures import Layers
from gradsteer.reports.page.records import Records
from gradsteer.reports.tradeoffs import tradeoffs
from gradsteer.vectors.weight_diff import DELTA


def question(records: Records) -> list[str]:
    """What was asked, from the conditions that were run or forecast."""
    rows = records.rows
    asked = tradeoffs(rows)
    if not asked:
        named = ", ".join(name for name in records.vectors if name != DELTA)
        return [
            "A finetune changed a language model. Where in its weights lies a behavior that it taught, and does a step "
            "along one direction turn that behavior, and only that, up or down?",
            *([f"Directions found so far: {named}."] if named else []),
        ]
    behaviors = list(dict.fromkeys(each.target for each in asked))
    several = len({name for row in rows for name in row["behaviors"]}) > 1
    said = [
        f"A finetune turned the base model into the anchor and taught it to show {_listed(behaviors)}. Does one "
        "direction V in weight space for each behavior, found from the model's own judged responses, turn that "
        f"behavior up or down{' and leave the others as they are' if several else ''}?",
        "V is the mean gradient of the loss on responses that show the behavior, less that on responses that do not. "
        "The steered model is the anchor plus alpha times V: positive alpha reduces the behavior, negative alpha "
        "raises it.",
    ]
    if any((row["predicted"] or {}).get("rates") for row in rows):
        said.append("The rates were forecast, by forward passes on the anchor's responses, before any was sampled.")
    return said


def _listed(names: list[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def layer_sentences(layers: Layers) -> Iterator[str]:
    """How the squared norm of each vector, and of the weight diff, is spread over the layers."""
    for name, values in layers.items():
        total = sum(values.values())
        if not total:
            continue
        largest = max(values, key=lambda layer: values[layer])
        shares = {layer: f"{100 * square / total:.1f}%" for layer, square in values.items()}
        first = f"; {shares['0']} in layer 0" if "0" in shares and largest != "0" else ""
        where = largest if not largest.isdigit() else f"layer {largest}"
        yield f"{name}: {shares[largest]} of its squared norm in {where}, the most of {len(values)}{first}"


def limits(records: Records) -> Iterator[str]:
    """What stands between these numbers and a claim, from the records."""
    rows = records.rows
    said = records.first.get("evaluation") or {}
    if said:
        labelled = "" if said.get("labelled") else "; its errors on labelled responses were not measured"
        yield f"A rate is what the judge ({said.get('judge')}) finds{labelled}."
        yield (
            f"{said.get('num_prompts')} prompts stand for all prompts, and one anchor for all finetunes of its kind. "
            "Intervals count replies to one prompt as alike; they say nothing of another training run."
        )
    if broken := [row["name"] for row in rows if row["damaged"]]:
        yield f"Broken models, of which no rate should be believed before its responses are read: {', '.join(broken)}."
    degenerate = sum(r["num_degenerate"] for row in rows for r in list(row["behaviors"].values())[:1])
    unscored = sum(rate["num_unscored"] for row in rows for rate in row["behaviors"].values())
    if degenerate or unscored:
        yield (
            f"Left out of the rates: {degenerate} degenerate responses and {unscored} missing verdicts, over all "
            "conditions. Marks say where a finding depends on them."
        )
    doubted = [row["name"] for row in rows if (row["predicted"] or {}).get("reliable") is False]
    if doubted:
        yield f"Forecasts with too few effective samples, by the linear form or as bounds: {', '.join(doubted)}."
    if rows and not any(row["kind"] == "control" and row["vector"] for row in rows):
        yield "No nulls were run: nothing here says what a random direction of the same size does."
    if rows and all(row["metrics"].get("perplexity") is None for row in rows):
        yield "Perplexity on held-out text was not measured."
    if rows and all(row["metrics"].get("refusal_benign") is None for row in rows):
        yield "Refusals of other prompts were not measured."
    yield "Gradients are first-order probes. A direction that moves a behavior need not be the mechanism that makes it."
