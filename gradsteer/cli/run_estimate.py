"""What a run will take, before anything of it is there: tokens, memory, hours and the judge's price, by stage.

On paper: from the stages' configs, the rows that they name, and the base model's config. Upper bounds, in that every
response is taken to be as long as it may be; not counted are loading, writing and waiting for a judge.
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradsteer.judges
from gradsteer.cli.lightning_cli import configuration
from gradsteer.cli.paper import CHARS_A_TOKEN, TURN_TOKENS, Paper, compute_dtype, count_tokens, data_source, silent
from gradsteer.cli.run_file import PlannedStage, Run
from gradsteer.data.chat_formats import read_chat_examples, read_prompts
from gradsteer.evaluation.refusals import judged_sets
from gradsteer.judges import Judge
from gradsteer.models.memory import size
from gradsteer.models.on_paper import A100, MFU
from gradsteer.steering.condition_plan import Baselines, Controls, plan_conditions
from gradsteer.steering.doses import DoseOptions

_CURVE_PASSES = 6  # forward passes over judged responses, for any number of doses of a vector


@dataclass(frozen=True)
class Estimate:
    """What a stage takes.

    Attributes:
        stage: its name.
        tokens: that the model reads or samples.
        flops: floating-point operations.
        hours: on the card, on paper.
        memory: bytes on the card.
        judging: what the judge says that it will take; empty where nothing is judged.
        dollars: of it; None where the price is not known.
    """

    stage: str
    tokens: float
    flops: float
    hours: float
    memory: float
    judging: str = ""
    dollars: float | None = 0.0


def estimates(run: Run) -> Iterator[Estimate]:
    """What each stage of a run takes, of those that train, sample or take gradients.

    Args:
        run: as `gradsteer.cli.run_file.read_run` plans it, with a base model.

    Raises:
        ValueError: the base model's config or a set of rows cannot be had; names it.
    """
    if run.base_model is None:
        raise ValueError("there is no estimate of a run without base_model: it goes on from another run's models")
    if run.base_model.startswith("{"):
        raise ValueError(
            "an estimate needs a base model whose config is there: --model.model_name_or_path DIR_OR_HUB_ID"
        )
    paper, known = Paper(run.base_model), dict[str, tuple[int, float]]()
    for stage in run.stages:
        if stage.unneeded or stage.command not in _OF:
            continue
        yield _OF[stage.command](paper, stage, _options(stage.words(False)), known)


def _options(words: list[str]) -> dict[str, Any]:
    """All options of a stage, read as if its command line were the process's own: LightningCLI warns of any other."""
    before = sys.argv
    sys.argv = [before[0], *words]
    try:
        return configuration(words)
    finally:
        sys.argv = before


def _fit(paper: Paper, stage: PlannedStage, config: Mapping[str, Any], known: dict[str, Any]) -> Estimate:
    tokens, flops, seconds, memory = paper.fit(config)
    return Estimate(stage.name, tokens, flops, seconds / 3600, memory)


def _evaluate(paper: Paper, stage: PlannedStage, config: Mapping[str, Any], known: dict[str, Any]) -> Estimate:
    return _sampled(paper, stage, config, 1, known, f"responses/{config['name']}.jsonl")


def _attribute(paper: Paper, stage: PlannedStage, config: Mapping[str, Any], known: dict[str, Any]) -> Estimate:
    """Gradients of every response that a pile may hold, once; slopes take two more passes; null vectors all again."""
    files = [name for name in known if name in repr(config["data"]["piles"])]
    tokens = sum(rows * length for rows, length in (known[name] for name in files))
    for pile in config["data"]["piles"].values():
        if isinstance(pile, str) or "path" in pile:
            chats = read_chat_examples(data_source(pile), columns=config["data"]["columns"], say=silent)
            tokens += sum(count_tokens([each["content"] for each in chat.messages]) for chat in chats)
    per_token = 6 * (1 + config["data"]["permutations"]) + 4
    return _of_passes(paper, stage, config, tokens, per_token)


def _forecast(paper: Paper, stage: PlannedStage, config: Mapping[str, Any], known: dict[str, Any]) -> Estimate:
    return _of_passes(paper, stage, config, _judged_tokens(config, known) * _num_passes(config), 2)


def _steer(paper: Paper, stage: PlannedStage, config: Mapping[str, Any], known: dict[str, Any]) -> Estimate:
    """Sampling, the forecast's passes, and with a base all responses once more under base and anchor."""
    found = _sampled(paper, stage, config, _num_conditions(config), known, None)
    read = _judged_tokens(config, known) * _num_passes(config)
    read += 2 * found.tokens if config["steering"]["base"] is not None else 0
    passes = paper.passes(read, 2, compute_dtype(config))
    return Estimate(
        stage.name, found.tokens + passes[0], found.flops + passes[1], found.hours + passes[2] / 3600, found.memory,
        found.judging, found.dollars,
    )  # fmt: skip


_OF = {"fit": _fit, "evaluate": _evaluate, "attribute": _attribute, "forecast": _forecast, "steer": _steer}


def _of_passes(
    paper: Paper, stage: PlannedStage, config: Mapping[str, Any], tokens: float, per_token: float
) -> Estimate:
    tokens, flops, seconds, memory = paper.passes(tokens, per_token, compute_dtype(config))
    return Estimate(stage.name, tokens, flops, seconds / 3600, memory)


def _sampled(
    paper: Paper,
    stage: PlannedStage,
    config: Mapping[str, Any],
    conditions: int,
    known: dict[str, Any],
    file: str | None,
) -> Estimate:
    """Responses to the prompts of all sets under every condition, and what judging them costs."""
    data, options = config["data"], config["model"]
    seeds = options["sampling_seed"]
    num_draws = options["num_samples"] * (len(seeds) if isinstance(seeds, list) else 1)
    judge = _judge(config["evaluation"]["judge"])
    rows = judged = 0
    chars = judged_chars = 0.0
    for name in ("evaluation", "benign", "harmful"):
        given = data["prompts"] if name == "evaluation" else data[f"{name}_prompts"]
        if given is None:
            continue
        source = data_source(given)
        columns = data["columns"] if name == "evaluation" else None
        prompts = read_prompts(source, split=data["split"], columns=columns, say=silent)
        prompts = prompts[: data["max_prompts" if name == "evaluation" else "max_refusal_prompts"]]
        draws = num_draws if name == "evaluation" else 1
        length = sum(len(message["content"]) for prompt in prompts for message in prompt.messages) * draws
        rows, chars = rows + len(prompts) * draws, chars + length
        if name in judged_sets(judge.behaviors):
            judged, judged_chars = judged + len(prompts) * draws, judged_chars + length
    new = options["max_new_tokens"]
    prompt = chars / rows / CHARS_A_TOKEN + TURN_TOKENS
    if file is not None:
        known[file] = rows, prompt + new
    tokens, flops, seconds, memory = paper.sampling(rows * conditions, prompt, new, compute_dtype(config))
    cost = judge.estimate(judged * conditions, judged_chars / judged, new * CHARS_A_TOKEN)
    said = "free" if cost is None else str(cost)
    if cost is not None and cost.dollars is not None and judge.max_cost is not None and cost.dollars > judge.max_cost:
        said += f", more than max_cost ${judge.max_cost:g}: the run would stop on the way"
    judging = f"{judged * conditions:,} responses: {said}"
    return Estimate(stage.name, tokens, flops, seconds / 3600, memory, judging, 0.0 if cost is None else cost.dollars)


def _num_conditions(config: Mapping[str, Any]) -> int:
    """How many conditions `steer` plans; vectors of controls and baselines, which are not there yet, count as well."""
    given = config["steering"]
    names = list(given["vectors"])
    kinds = ("alphas", "relative_norms", "log_odds_shifts", "kl_budgets", "target_rates", "both_signs", "curve_points")
    doses = DoseOptions(**{name: given[name] for name in kinds}).plan(names)
    pipelines = given["transforms"] or [[]]
    pipelines = pipelines if all(isinstance(each, list) for each in pipelines) else [pipelines]
    controls = Controls(
        random=given["random_controls"] + given["permuted_controls"], signs=given["sign_controls"],
        files=given["control_vectors"], both_signs=given["controls_both_signs"],
    )  # fmt: skip
    baselines = Baselines((), given["delta_scales"] or (), given["system_prompts"])
    plan = plan_conditions(
        given["vectors"], doses, pipelines, controls, has_base=given["base"] is not None, on_base=given["on_base"],
        baselines=baselines, anchor_resamples=given["anchor_resamples"],
    )  # fmt: skip
    return len(plan) + len(names) * len(given["graddiff_steps"] or ())


def _num_passes(config: Mapping[str, Any]) -> int:
    """Passes over judged responses: some for the curve of each vector and set of transforms, one for each other one."""
    given = config["steering"]
    pipelines = given["transforms"] or [[]]
    curves = len(given["vectors"]) * (len(pipelines) if all(isinstance(each, list) for each in pipelines) else 1)
    return _CURVE_PASSES * curves + _num_conditions(config)


def _judged_tokens(config: Mapping[str, Any], known: Mapping[str, tuple[int, float]]) -> float:
    responses = (config.get("forecasting") or {}).get("responses")
    files = [name for name in known if re.search(rf"{re.escape(name)}\b", repr(responses))]
    return sum(rows * length for rows, length in (known[name] for name in files))


def _judge(given: Mapping[str, Any]) -> Judge:
    """The judge that a config describes."""
    arguments = dict(given.get("init_args") or {})
    if isinstance(arguments.get("judge"), Mapping):
        arguments["judge"] = _judge(arguments["judge"])
    judge: Judge = getattr(gradsteer.judges, str(given["class_path"]).rpartition(".")[2])(**arguments)
    return judge


def uncounted(run: Run) -> list[str]:
    """Stages that `estimates` leaves out, though a model may run in them."""
    without = ("corpus", "export", "inspect", "report", "doctor", *_OF)
    return [stage.name for stage in run.stages if not stage.unneeded and stage.command not in without]


def lines(found: Sequence[Estimate]) -> list[str]:
    """The table, with its sums and what it rests on."""
    header = ["stage", "tokens", "PFLOP", "memory", "hours", "judge"]
    rows = [
        [
            each.stage,
            f"{each.tokens:,.0f}",
            f"{each.flops / 1e15:,.2f}",
            size(each.memory),
            f"{each.hours:.2f}",
            each.judging,
        ]
        for each in found
    ]
    dollars = [each.dollars for each in found if each.judging]
    paid = "price not known" if None in dollars else f"${sum(each or 0.0 for each in dollars):,.2f}"
    rows.append(
        [
            "together",
            f"{sum(each.tokens for each in found):,.0f}", f"{sum(each.flops for each in found) / 1e15:,.2f}",
            size(max(each.memory for each in found)), f"{sum(each.hours for each in found):.2f}", paid,
        ]
    )  # fmt: skip
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(5)]
    table = [
        "  ".join([*(cell.ljust(width) if not place else cell.rjust(width)
                     for place, (cell, width) in enumerate(zip(row, widths, strict=False))), row[-1]]).rstrip()
        for row in [header, *rows]
    ]  # fmt: skip
    return [
        f"on paper, one {A100.name}, {MFU:.0%} of its peak, responses of full length, {CHARS_A_TOKEN:g} characters a "
        "token:",
        *table,
    ]
