"""``gradsteer export``: the command line."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gradsteer.export.directory import REPORT, check_target
from gradsteer.provenance import provenance
from gradsteer.records import replacing_directory, write_json

if TYPE_CHECKING:
    from gradsteer.export.inputs import Request

# option -> the format that reads it, and its default there
_OF_FORMAT: dict[str, tuple[str, Any]] = {
    "dtype": ("model", "float32"),
    "rounding": ("model", "nearest"),
    "seed": ("model", 0),
    "rounded_anchor": ("model", False),
    "rank": ("adapter", 16),
    "ranks": ("adapter", [1, 2, 4, 8, 16]),
    "min_energy": ("adapter", 0.0),
    "responses": ("adapter", None),
    "behavior": ("adapter", None),
}
# of a step that its dtype keeps; below it the command warns
_WELL_KEPT = 0.9


@dataclass(kw_only=True)
class ExportOptions:
    """The options of the command line, with their help.

    Attributes:
        model: the anchor that the vector was made on, a directory or a hub id.
        vector: a vectors/NAME.safetensors file.
        alpha: positive reduces the behavior of the vector's PLUS pile, negative raises it; not 0.
        transforms: of the vector, in order, as for steer, such as '[diff_weighting, norm_matched]'; none by default.
        base: the model that the anchor was finetuned from, for transforms that need the weight diff; by default the
            one that fit recorded in the anchor's directory.
        format: what to write.
        to: the directory to write; new or empty.
        overwrite: replace an earlier export in --to; nothing else is replaced.
        dtype: model: of the weights; float32 by default. The steered weights are computed in float32 and rounded
            once: how much of the step is left is said and written in the model card.
        rounding: model: of bfloat16 and float16; nearest by default. stochastic rounds each weight up or down by
            chance, so that a step too small for the dtype arrives in expectation, at the price of noise.
        seed: model: of --rounding stochastic; 0 by default.
        rounded_anchor: model: in bfloat16 and float16, take the step from the anchor's rounded weights: the export then
            has the very weights that steer --model.dtype ran. False by default: one rounding, which loses less.
        rank: adapter: of B A for every matrix (its own full rank where that is smaller); 16 by default; full loses
            nothing of the matrices.
        ranks: adapter: further ranks in the table of what each would keep; [1, 2, 4, 8, 16] by default.
        min_energy: adapter: refuse one that keeps less than this share, 0 to 1, of the squared norm of the whole
            vector; 0 by default: only said.
        responses: adapter: a responses/NAME.jsonl of judged responses: adds to the table the share of the vector's
            effect on their log-probabilities, to first order. Costs two passes over them, and two more a rank.
        behavior: of the verdicts in --responses; by default the vector's PLUS pile's name where there are such
            verdicts.
        trust_remote_code: run code that comes with the model.
        gguf_file: a GGUF file in the model's directory or hub repository; its weights are dequantised.
        adapter_base: of a model that is an adapter: what it was trained on, where that is another than it says.
        adapter_reading: of a model that is an adapter: merged into its base (the default), or adapter: its own tensors
            are the parameters, as the vector's were. Then --format adapter writes the steered adapter itself, exact
            and of the same rank, on the adapter's base.
        allow_other_model: take a vector that was made on other weights.
    """

    model: str
    vector: str
    alpha: float
    transforms: list[Any] | None = None
    base: str | None = None
    format: Literal["model", "adapter"]
    to: str
    overwrite: bool = False
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    rounding: Literal["nearest", "stochastic"] | None = None
    seed: int | None = None
    rounded_anchor: bool | None = None
    rank: int | Literal["full"] | None = None
    ranks: list[int] | None = None
    min_energy: float | None = None
    responses: str | None = None
    behavior: str | None = None
    trust_remote_code: bool = False
    gguf_file: str | None = None
    adapter_base: str | None = None
    adapter_reading: Literal["merged", "adapter"] = "merged"
    allow_other_model: bool = False


def main(args: Sequence[str]) -> int:
    """Exports from the command line.

    Args:
        args: the options.

    Raises:
        ValueError: an option's value is not accepted, or the vector cannot be exported so.
        FileNotFoundError: there is no such file.
    """
    options = options_parser().parse_args(_joined(list(args)))
    for name in ("model", "vector", "base", "responses", "to"):
        options[name] = None if options[name] is None else os.path.expanduser(options[name])
    values = _of_format(options)
    _check_values(options, values)
    in_space = options.adapter_reading == "adapter"
    if in_space:
        _check_space(options)
    from gradsteer.cli.warning_filters import quieten
    from gradsteer.export.inputs import Request

    named = (
        *("model", "vector", "alpha", "base", "trust_remote_code", "gguf_file", "allow_other_model"),
        *("adapter_base", "adapter_reading"),
    )
    request = Request(transforms=options.transforms or (), **{name: options[name] for name in named})
    request.check()
    if options.format == "adapter" and not in_space and request.loading.adapter is not None:
        raise ValueError(
            f"--format is 'adapter', and --model {options.model!r} is an adapter read as merged: the step would be one "
            "from weights that no directory holds; accepted: --adapter_reading adapter with a vector of its space, or "
            "the merged model as a directory of its own (--format model --alpha 0) for --model"
        )
    read = {f"--{name}": options[name] for name in ("model", "vector", "base", "responses")}
    target = check_target(options.to, overwrite=options.overwrite, inputs=read)
    quieten()
    with replacing_directory(target) as directory:
        write = _model if options.format == "model" else _steered_adapter if in_space else _adapter
        report = write(request, values, directory)
        write_json(directory / REPORT, {**report, **provenance()})
    if report["generation_config"]:
        print(f"the model's generation_config is served with: {', '.join(report['generation_config'])}")
    print(f"wrote {options.to}")
    return 0


def _joined(words: list[str]) -> list[str]:
    """The words with ``--alpha X`` as ``--alpha=X``: argparse takes -1e-3 for an option, though not -0.001."""
    if "--alpha" in words[:-1]:
        place = words.index("--alpha")
        words[place : place + 2] = [f"--alpha={words[place + 1]}"]
    return words


def options_parser() -> Any:
    """The parser of all options."""
    from gradsteer.options import OptionsParser

    parser = OptionsParser(
        prog="gradsteer export",
        description="Writes theta + alpha V for use without gradsteer: the steered model as a Hugging Face directory "
        "(--format model), or V as a PEFT LoRA adapter whose scaling is alpha (--format adapter). See docs/export.md.",
    )
    parser.add_argument("--config", action="config", help="a config file (YAML) with these options.")
    parser.add_class_arguments(ExportOptions, as_group=False)
    return parser


def _of_format(options: Any) -> dict[str, Any]:
    """The options of the format asked for, with their defaults; the other format's are refused."""
    for name, (form, _) in _OF_FORMAT.items():
        if form != options.format and options[name] is not None:
            raise ValueError(f"--{name} is {options[name]!r}, which --format {options.format} does not read")
    return {name: default if options[name] is None else options[name] for name, (_, default) in _OF_FORMAT.items()}


def _check_values(options: Any, values: dict[str, Any]) -> None:
    if values["rounding"] == "stochastic" and values["dtype"] == "float32":
        raise ValueError("--rounding is 'stochastic', and --dtype float32; accepted: --dtype bfloat16 or float16")
    if values["rounded_anchor"] and values["dtype"] == "float32":
        raise ValueError("--rounded_anchor is true, and --dtype float32; accepted: --dtype bfloat16 or float16")
    if options.seed is not None and values["rounding"] != "stochastic":
        raise ValueError(f"--seed is {options.seed}, which only --rounding stochastic reads")
    if values["rank"] != "full" and values["rank"] < 1:
        raise ValueError(f"--rank is {values['rank']}; accepted: at least 1, or full")
    bad = [rank for rank in values["ranks"] if rank < 1]
    if bad:
        raise ValueError(f"--ranks holds {bad[0]}; accepted: numbers of at least 1")
    if not 0 <= values["min_energy"] <= 1:
        raise ValueError(f"--min_energy is {values['min_energy']}; accepted: from 0 to 1")
    if values["behavior"] is not None and values["responses"] is None:
        raise ValueError(f"--behavior is {values['behavior']!r}, which needs --responses FILE")


def _check_space(options: Any) -> None:
    """Refuses what is not asked of an adapter that is exact."""
    if options.format == "model":
        raise ValueError(
            "--format is 'model', and --adapter_reading adapter: the steered adapter is exact as --format adapter "
            "writes it, and peft's merge_and_unload makes a model of it and its base; accepted: --format adapter, or "
            "--adapter_reading merged with a vector of the merged weights"
        )
    for name, (form, _) in _OF_FORMAT.items():
        if form == "adapter" and options[name] is not None:
            raise ValueError(
                f"--{name} is {options[name]!r}, which has no effect with --adapter_reading adapter: the steered "
                "adapter has the rank that it had, and nothing is lost"
            )


def _steered_adapter(request: "Request", values: dict[str, Any], directory: Path) -> dict[str, Any]:
    del values
    from gradsteer.export.steered_adapter import write_steered_adapter

    steering = request.load()
    report = {**steering.described(), **write_steered_adapter(steering, request.loading, directory)}
    print(
        f"steered adapter of rank {report['rank']} on {report['base']}, exact; its weights differ from the first-order "
        f"step by {report['step_error']:.3g} of it"
    )
    for limit in report["vllm_limits"]:
        print(f"warning: vLLM: {limit}")
    return report


def _model(request: "Request", values: dict[str, Any], directory: Path) -> dict[str, Any]:
    from gradsteer.export.model import write_model

    steering = request.load()
    chosen = {name: values[name] for name in ("dtype", "rounding", "seed", "rounded_anchor")}
    report = {**steering.described(), **write_model(steering, directory, **chosen)}
    kept = report["retained_fraction"]
    print(
        f"step of norm {steering.step_norm:.4g} in {values['dtype']}: retained fraction {kept:.4f}, step error "
        f"{report['step_error']:.4f}, {100 * report['changed_fraction']:.1f} % of the weights changed"
    )
    if kept < _WELL_KEPT and values["rounding"] == "nearest":
        print(
            f"warning: {values['dtype']} keeps {100 * kept:.0f} % of this step; --format adapter keeps all of its "
            "matrices' part, as peft holds it in float32 beside a model in half precision"
            + ("" if values["dtype"] == "float32" else ", and --dtype float32 all of it")
        )
    return report


def _adapter(request: "Request", values: dict[str, Any], directory: Path) -> dict[str, Any]:
    from gradsteer.export.adapter import write_adapter, write_adapter_card
    from gradsteer.export.effect import choose_behavior, effects, read_judged
    from gradsteer.export.ranks import keep
    from gradsteer.export.tables import card_numbers, print_tables
    from gradsteer.models.loading import load_tokenizer
    from gradsteer.vectors.parameter_vectors import SteeringVector

    judged, responses = None, values["responses"]
    if responses is not None:  # read before the model is
        header = SteeringVector({}, SteeringVector.read_header(request.vector))
        behavior = choose_behavior(responses, values["behavior"], header)
        tokenizer = load_tokenizer(request.loading)
        judged = read_judged(responses, behavior, tokenizer, request.loading.num_ids)
    steering = request.load()
    kept, ranks = keep(
        steering,
        rank=values["rank"],
        ranks=values["ranks"],
        all_factors=judged is not None,
        min_energy=values["min_energy"],
    )
    table, derivative = kept.table(ranks), None
    if judged is not None:
        parts = (kept.at(rank) for rank in ranks)
        pad = int(steering.tokenizer.pad_token_id)
        derivative, shares = effects(
            steering.model, steering.vector, parts, judged, num_parts=len(ranks), pad_token_id=pad
        )
        for row, share in zip(table, shares, strict=True):
            row["effect"] = share
    report = {
        **steering.described(),
        "format": "adapter",
        "rank": kept.rank,
        "energy": kept.energy,
        "held_energy": kept.held_energy,
        "kept_share": kept.share(kept.rank),
        "behavior": None if judged is None else judged.behavior,
        "responses": responses,
        "derivative": derivative,
        "table": table,
        "not_held": kept.not_held,
        "matrices": kept.matrices(),
    }
    write_adapter(steering, kept.held, kept.factors, kept.rank, directory)
    write_adapter_card(steering, directory, card_numbers(report))
    print_tables(report)
    return report
