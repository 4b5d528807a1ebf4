"""What a run's directory holds for its page: each record read on its own, whatever the others are like."""

import json
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml
from safetensors import SafetensorError

from gradsteer.evaluation.condition_result import ConditionResult
from gradsteer.reports.comparison_table import comparison_table
from gradsteer.reports.discovery_tables import DISCOVERY_TABLES
from gradsteer.reports.nulls import nulls_by_vector
from gradsteer.reports.predictions import forecast_table, predictions_table
from gradsteer.reports.results import FORMAT_VERSION
from gradsteer.reports.results_table import results_table
from gradsteer.reports.specificity import headline, specificity_table
from gradsteer.reports.tradeoffs import tradeoff_table
from gradsteer.steering.conditions import Condition
from gradsteer.vectors.parameter_vectors import ParameterVector
from gradsteer.vectors.weight_diff import DELTA

Row = Mapping[str, Any]
Found = TypeVar("Found")

# what a record raises that holds something else than we wrote
UNSOUND = (
    ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError,
    SafetensorError, yaml.YAMLError,
)  # fmt: skip
COMMANDS = ("corpus", "fit", "evaluate", "attribute", "discover", "forecast", "steer")
MOST_CONDITIONS = 400
_LARGEST = 64 * 2**20  # bytes of a record
_LONGEST = 200  # characters of what is said of a broken record
_REPLAY = re.compile(r"# replay: (python -m gradsteer [a-z]+ --config \S+)")
_MADE = re.compile(r"# made by (gradsteer [\w.+-]+(?: [0-9a-f]{7,40})?)")


@dataclass(frozen=True)
class SavedConfig:
    """The config.yaml that a command left.

    Attributes:
        command: its name.
        replay: the command line that its first line gives; None where it gives none.
        made: the version that wrote it, likewise.
        options: what it holds.
    """

    command: str
    replay: str | None
    made: str | None
    options: Mapping[str, Any]

    def option(self, dotted: str) -> Any:
        """An option by its dotted name; None where the file does not have it."""
        value: Any = self.options
        for key in dotted.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        return value


@dataclass
class Records:
    """What a directory holds.

    Attributes:
        directory: it.
        results: results.json, its conditions sound; None where there is none.
        forecast: forecast.json, likewise.
        evaluations: name -> evaluations/NAME.json, likewise.
        discovery: discovery/discovery.json; None where there is none.
        configs: what the commands were run with, in the order of the stages.
        vectors: name -> metadata of vectors/NAME.safetensors.
        not_there: what a finished run has and this directory has not, or not in order.
    """

    directory: Path
    results: dict[str, Any] | None = None
    forecast: dict[str, Any] | None = None
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)
    discovery: dict[str, Any] | None = None
    configs: list[SavedConfig] = field(default_factory=list)
    vectors: dict[str, dict[str, str]] = field(default_factory=dict)
    not_there: list[str] = field(default_factory=list)

    @property
    def rows(self) -> list[Row]:
        """The conditions of results.json."""
        return [] if self.results is None else self.results["conditions"]

    @property
    def first(self) -> dict[str, Any]:
        """The report that says most of the run: of the results, or the forecast, or an evaluation."""
        known = (self.results, self.forecast, *self.evaluations.values(), self.discovery)
        return next((each for each in known if each), {})

    def attempt(self, what: str, build: Callable[[], Found]) -> Found | None:
        """What `build` gives; None where a record does not hold what it needs, which is then said."""
        try:
            return build()
        except (OSError, *UNSOUND) as error:
            self.not_there.append(f"{what}: {why(error)}")
            return None


def why(error: BaseException) -> str:
    """What was wrong with a record, in one line."""
    text = f"no {error} in its record" if isinstance(error, KeyError) else str(error) or type(error).__name__
    return " ".join(text.split())[:_LONGEST]


def read_records(directory: Path) -> Records:
    """Reads whatever a directory holds of a run.

    Raises:
        ValueError: there is no such directory, or it holds nothing of a run.
    """
    if not directory.is_dir():
        raise ValueError(f"no directory at {str(directory)!r}; accepted: the --output_dir of a run")
    records = Records(directory)
    records.results = _report(records, "results.json", "the rates under steering: steer has not finished here")
    records.forecast = _report(records, "forecast.json", "no forecast was made (gradsteer forecast)")
    for path in sorted((directory / "evaluations").glob("[!.]*.json")):
        if (found := _report(records, f"evaluations/{path.name}", "")) is not None:
            records.evaluations[path.stem] = found
    path = directory / "discovery" / "discovery.json"
    if path.is_file():
        records.discovery = records.attempt("discovery/discovery.json", partial(_discovery, path))
    records.configs = _configs(records)
    for path in vector_files(directory):
        header = records.attempt(f"vectors/{path.name}", partial(ParameterVector.read_header, path))
        if header is not None:
            records.vectors[path.stem] = header
    if not (records.vectors or records.configs or records.first):
        raise ValueError(
            f"{str(directory)!r} holds nothing of a run; accepted: the --output_dir of fit, evaluate, attribute, "
            "discover, forecast or steer, finished or not"
        )
    if not records.vectors:
        records.not_there.append("vectors/: no steering vectors here (gradsteer attribute)")
    return records


def vector_files(directory: Path) -> list[Path]:
    """The files of steering vectors, that of the weight diff last."""
    paths = sorted((directory / "vectors").glob("[!.]*.safetensors"))
    return sorted(paths, key=lambda path: path.stem == DELTA)


def _report(records: Records, name: str, otherwise: str) -> dict[str, Any] | None:
    """A report with the conditions that are sound; None where there is none of them."""
    path = records.directory / name
    if not path.is_file():
        records.not_there.append(f"{name}: {otherwise}")
        return None
    found = records.attempt(name, lambda: json.loads(_text(path)))
    if found is None:
        return None
    if not isinstance(found, dict) or found.get("format") != FORMAT_VERSION:
        records.not_there.append(f"{name}: not a report of format {FORMAT_VERSION}")
        return None
    listed = found.get("conditions")
    rows = list(_sound(records, name, listed if isinstance(listed, list) else []))
    if not rows:
        records.not_there.append(f"{name}: no condition in it can be read")
        return None
    for key in ("evaluation", "forecast"):
        if not isinstance(found.get(key, {}), dict):
            del found[key]
    return {**found, "conditions": rows}


def _discovery(path: Path) -> dict[str, Any]:
    """What discover found; raises where its tables cannot be made of it."""
    found = json.loads(_text(path))
    if not isinstance(found, dict) or (found.get("format"), found.get("kind")) != (FORMAT_VERSION, "discovery"):
        raise ValueError(f"not a record of discover, format {FORMAT_VERSION}")
    for table in DISCOVERY_TABLES:
        table(found)
    return found


def _sound(records: Records, name: str, listed: Sequence[Any]) -> Iterator[Row]:
    """The conditions that every table can show, with the keys that earlier versions did not write."""
    if len(listed) > MOST_CONDITIONS:
        records.not_there.append(f"{name}: the first {MOST_CONDITIONS} of its {len(listed)} conditions are shown")
    for number, row in enumerate(listed[:MOST_CONDITIONS], start=1):
        what = f"{name}, condition {number}"
        complete = records.attempt(what, partial(_complete, row))
        if complete is not None and records.attempt(what, partial(_shows, complete)):
            yield complete


def _complete(row: Any) -> Row:
    name, kind = row["name"], row["kind"]
    if not isinstance(name, str) or not isinstance(kind, str) or not isinstance(row["behaviors"], dict):
        raise ValueError("not a condition with a name, a kind and behaviors")
    return {**ConditionResult(Condition(name, kind)).row(), **row}  # type: ignore[arg-type]


def _shows(row: Row) -> bool:
    """Whether the tables can be made of a condition; raises what they raise otherwise."""
    for text in (row["vector"], row["behavior"]):
        if not isinstance(text, str | None):
            raise ValueError(f"a vector or behavior is {text!r:.60}")
    if row["kind"] == "forecast":
        forecast_table([row], "")
    else:
        results_table([row], "")
        predictions_table([row], "")
    for table in (specificity_table, comparison_table, tradeoff_table, headline, nulls_by_vector):
        table([row])
    return True


def _text(path: Path) -> str:
    if path.stat().st_size > _LARGEST:
        raise ValueError(f"more than {_LARGEST // 2**20} MiB: no record of ours is so large")
    return path.read_text(encoding="utf-8")


def _configs(records: Records) -> list[SavedConfig]:
    """The commands' configs by command and version; those that repeat an earlier one are left out."""
    found: list[SavedConfig] = []
    for command in COMMANDS:
        top, seen = records.directory / command, set()
        paths = [*top.glob("config.yaml"), *sorted(top.glob("version_*/config.yaml"), key=_version)]
        for path in paths:
            name = path.relative_to(records.directory).as_posix()
            text = records.attempt(name, partial(_text, path))
            if text is None or (body := text.partition("\nseed_everything")[2]) in seen:
                continue
            seen.add(body)
            if (config := records.attempt(name, partial(_config, command, text))) is not None:
                found.append(config)
    return found


def _version(path: Path) -> tuple[int, str]:
    number = path.parent.name.removeprefix("version_")
    return (int(number) if number.isdecimal() else -1, number)


def _config(command: str, text: str) -> SavedConfig:
    options = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    if not isinstance(options, dict):
        raise ValueError("not a config of options")
    replay, made = _REPLAY.search(text), _MADE.search(text)
    return SavedConfig(command, None if replay is None else _plain(replay[1]), made and made[1], options)


def _plain(line: str) -> str:
    """A command line with every word quoted that a shell would read otherwise."""
    return shlex.join(line.split(" "))
