"""Every credit's vectors of a model with given judged replies, made by `attribute`, and what `steer` found of them."""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rare.organism import gradsteer

from gradsteer.forecast.calibration import Calibration
from gradsteer.progress import progress
from gradsteer.records import write_json
from gradsteer.vectors.parameter_vectors import PileAverage, SteeringVector
from replies.gains import LAMBDAS

_SAMPLED = ["--model.reduction", "sum", "--model.temperature", "sampled", "--model.credit"]
EXAMPLE = "example"
CREDITS: dict[str, list[str]] = {
    EXAMPLE: ["--model.reduction", "example"],
    "sum": [*_SAMPLED, "reply"],
    "decided": [*_SAMPLED, "decided"],
    "baseline": [*_SAMPLED, "baseline"],
    **{f"advantage-{decay:g}": [*_SAMPLED, "advantage", "--model.advantage_lambda", f"{decay:g}"] for decay in LAMBDAS},
}


@dataclass
class Made:
    """A vector of one behavior and credit.

    Attributes:
        behavior: that it is of.
        credit: a name of `CREDITS`.
        file: where it is.
        cosine: of the vectors of two halves of the prompts.
        norm: of the vector.
        slope: ``<S, V>``, nats a unit of alpha, and its standard error.
        examples: replies with the behavior, and without it.
        brier: score of the predicted verdicts over the constant rate's; None where none are predicted.
    """

    behavior: str
    credit: str
    file: str
    cosine: float
    norm: float
    slope: tuple[float, float]
    examples: tuple[int, int]
    brier: float | None

    @property
    def name(self) -> str:
        """Of the vector in `steer`."""
        return f"{self.behavior}-{self.credit}"


def make_vectors(
    model: Path,
    responses: Path,
    behaviors: Sequence[str],
    directory: Path,
    credits: Sequence[str],
    arguments: Sequence[str],
) -> list[Made]:
    """Runs `attribute` for every credit; what is done stays, but for the gradients: vectors alone are read later.

    Args:
        model: a directory.
        responses: its judged replies.
        behaviors: of the judge.
        directory: of everything made: ``CREDIT/vectors/BEHAVIOR.safetensors``.
        credits: of `CREDITS`.
        arguments: more of `attribute`.
    """
    words = ["attribute", "--model.model_name_or_path", str(model), "--data.halves", "true"]
    words += ["--model.calibrate", "true", *arguments]
    for behavior in behaviors:
        for side, shows in (("with", "true"), ("without", "false")):
            words += [f"--data.piles.{side}-{behavior}", f"{{responses: {responses}, where: {{{behavior}: {shows}}}}}"]
        words += [f"--vectors.{behavior}", f"[with-{behavior}, without-{behavior}]"]
    made: dict[str, list[Made]] = {}
    with progress("vectors", len(credits), unit="credit") as tick:
        for credit in credits:
            place = directory / credit
            kept = place / "made.json"
            if not kept.is_file():
                where = ["--output_dir", str(place), "--experiment", f"credit-{credit}"]
                gradsteer([*words, *CREDITS[credit], *where], shown=True)
                write_json(kept, [asdict(_read(place, credit, behavior)) for behavior in behaviors])
            shutil.rmtree(place / "gradients", ignore_errors=True)  # of 135 M parameters: 6 GB with the halves
            made[credit] = [Made(**each) for each in json.loads(kept.read_text())]
            tick(1, credit)
    return [each for behavior in behaviors for own in made.values() for each in own if each.behavior == behavior]


def first_samples(responses: Path, number: int, file: Path) -> Path:
    """Writes the rows of a prompt's first samples.

    Args:
        responses: of evaluate.
        number: of each prompt's.
        file: to write, if it is not there.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = responses.read_text(encoding="utf-8").splitlines(keepends=True)
    if not file.is_file():
        file.write_text("".join(row for row in rows if json.loads(row)["sample"] < number), encoding="utf-8")
    return file


def _read(place: Path, credit: str, behavior: str) -> Made:
    file = place / "vectors" / f"{behavior}.safetensors"
    vector = SteeringVector.load(file)
    slope = Calibration.read(vector.metadata)
    if slope is None:
        raise ValueError(f"{file} has no slope; accepted: replies that were sampled from the model as it is")
    header = PileAverage.read_header(place / "gradients" / f"with-{behavior}.safetensors")
    brier = float(header["brier_score"]) / float(header["brier_score_of_rate"]) if "brier_score" in header else None
    return Made(
        behavior, credit, str(file), float(vector.metadata["split_half_cosine"]), vector.norm(),
        (slope.slope, slope.standard_error), _counts(place, behavior), brier,
    )  # fmt: skip


def _counts(place: Path, behavior: str) -> tuple[int, int]:
    """Replies of the two piles; the slope may be of fewer."""
    headers = [
        PileAverage.read_header(place / "gradients" / f"{side}-{behavior}.safetensors") for side in ("with", "without")
    ]
    return int(headers[0]["num_examples"]), int(headers[1]["num_examples"])


def write_doses(made: Sequence[Made], file: Path, norm: float, budget: float) -> None:
    """A config file for `steer`: vectors at one norm of the step, and at one KL.

    Args:
        made: the vectors.
        file: to write.
        norm: ``alpha ||V||``, with alpha's sign.
        budget: nats a token, with alpha's sign.
    """
    steering = {
        "vectors": {each.name: each.file for each in made},
        "behaviors": {each.name: each.behavior for each in made},
        "alphas": {each.name: [float(f"{norm / each.norm:.6g}")] for each in made},
        "kl_budgets": [budget],
        "both_signs": False,
        # nothing else of the config that this one follows
        **dict.fromkeys(("random_controls", "permuted_controls", "anchor_resamples"), 0),
        **dict.fromkeys(("base", "transforms", "control_vectors", "delta_scales", "system_prompts", "forecast")),
    }
    file.write_text(yaml.safe_dump({"steering": steering}, sort_keys=False))


def table_of(made: Sequence[Made], conditions: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of markdown: the vectors, and what `steer` found, where there is something.

    Args:
        made: the vectors.
        conditions: of a results.json; none before it ran.
    """
    behaviors = list(dict.fromkeys(each.behavior for each in made))
    columns = [
        "behavior",
        "credit",
        "with, without",
        "Brier / rate's",
        "split-half cosine",
        "norm",
        "slope / norm +- error",
    ]
    found = (
        ["dose", "step's norm", *(f"{each} %" for each in behaviors), "nats", "of `example`'s"] if conditions else []
    )
    lines = ["| " + " | ".join([*columns, *found]) + " |", "| --- " * len([*columns, *found]) + "|"]
    for each in made:
        measured = any(condition["vector"] == each.name for condition in conditions)
        slope, error = (value / each.norm for value in each.slope)
        cells = [each.behavior, each.credit, f"{each.examples[0]}, {each.examples[1]}"]
        cells += ["" if each.brier is None else f"{each.brier:.2f}", f"{each.cosine:+.2f}", f"{each.norm:.3g}"]
        cells += [f"{slope:.1f} +- {error:.1f}"]
        for more in _found(each, made, conditions, behaviors) if measured else [[""] * len(found)]:
            lines.append("| " + " | ".join([*cells, *more]) + " |")
    return lines


def _found(
    each: Made, made: Sequence[Made], conditions: Sequence[dict[str, Any]], behaviors: Sequence[str]
) -> Iterator[list[str]]:
    seeds = next(other for other in made if (other.behavior, other.credit) == (each.behavior, EXAMPLE))
    for mine in (condition for condition in conditions if condition["vector"] == each.name):
        asked = mine["asked"]["kind"]
        theirs = next(c for c in conditions if c["vector"] == seeds.name and c["asked"]["kind"] == asked)
        dose = "norm" if asked == "alpha" else f"KL {abs(mine['asked']['value']):g}"
        shift = mine["realised"]
        nats = "-"
        if shift["log_odds_shift"] is not None:
            nats = "{log_odds_shift:+.2f} [{ci_low:+.2f}, {ci_high:+.2f}]".format(**shift)
        cells = [dose, f"{abs(mine['alpha']) * each.norm:.3g}", *(_rate(mine, behavior) for behavior in behaviors)]
        yield [*cells, nats, "" if each is seeds else _ratio(shift, theirs["realised"])]


def _rate(condition: dict[str, Any], behavior: str) -> str:
    rate = condition["behaviors"][behavior]
    if rate["rate"] is None:
        return "-"
    value, low, high = (100 * rate[key] for key in ("rate", "ci_low", "ci_high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}] of {rate['num_scored']}"


def _ratio(mine: dict[str, Any], theirs: dict[str, Any]) -> str:
    """A shift over another one, with a 95% interval by the delta method, as if the two shared no replies."""
    values = [each["log_odds_shift"] for each in (mine, theirs)]
    if None in values or values[1] == 0 or values[0] == 0:
        return "-"
    spread = [(each["ci_high"] - each["ci_low"]) / 2 for each in (mine, theirs)]
    ratio = values[0] / values[1]
    half = abs(ratio) * float(np.hypot(spread[0] / values[0], spread[1] / values[1]))
    return f"{ratio:.2f} [{ratio - half:.2f}, {ratio + half:.2f}]"


def measured_vectors(
    model: Path,
    responses: Path,
    behaviors: Sequence[str],
    directory: Path,
    credits: Sequence[str],
    doses: tuple[float, float],
    arguments: Sequence[str],
) -> None:
    """Makes the vectors, writes BEHAVIOR/steer.yaml and credit.json, and prints one table.

    Args:
        model: see `make_vectors`.
        responses: likewise.
        behaviors: likewise.
        directory: likewise; a BEHAVIOR/results.json of `steer` in it is read.
        credits: likewise.
        doses: see `write_doses`.
        arguments: see `make_vectors`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    made = make_vectors(model, responses, behaviors, directory, credits, arguments)
    conditions: list[dict[str, Any]] = []
    for behavior in behaviors:
        place = directory / behavior
        place.mkdir(exist_ok=True)
        write_doses([each for each in made if each.behavior == behavior], place / "steer.yaml", *doses)
        for results in sorted(
            directory.glob(f"{behavior}*/results.json")
        ):  # steer may run in parts: bridge, bridge-norm
            conditions += json.loads(results.read_text())["conditions"]
    print("\n".join(table_of(made, conditions)))
    for condition in conditions:
        if condition["kind"] == "anchor":
            print(f"{condition['name']}: " + ", ".join(f"{each} % {_rate(condition, each)}" for each in behaviors))
    write_json(directory / "credit.json", [{"name": each.name, **vars(each)} for each in made])
