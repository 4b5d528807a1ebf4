"""What a finished command leaves behind, so that the same command does nothing and another one refuses.

Every command leaves ``OUTPUT_DIR/stages/KEY.json``: a digest of its configuration, the digests of the files that it
read, and whether it finished. Imports nothing heavy.
"""

import glob
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gradsteer.cli.commands import Command
from gradsteer.cli.paths import is_read, one_spelling
from gradsteer.records import file_digest, read_json, resolve_resource, text_digest, write_json
from gradsteer.version import __version__

FORMAT_VERSION = 1
_VERSION = "the version of gradsteer"
# where and how loudly a command runs does not change what it makes
_NOT_PART = (
    "config",
    "ckpt_path",
    "output_dir",
    "input_dir",
    "overwrite",
    "dry_run",
    "trainer.logger",
    "trainer.enable_progress_bar",
    "trainer.default_root_dir",
)

# how a judge is asked, not what: its answers are the same. Only a judge's own arguments, or those of a judge in it: a
# behavior may have such a name, too
_HOW = ("concurrency", "timeout", "max_retries", "max_cost", "prices", "store", "api_key_env", "device", "batch_size")
_ASKING = re.compile(rf"^evaluation\.judge\.(.+\.)?init_args\.({'|'.join(_HOW)})(\.\d+)?$")


def judge_settings(judge: Any) -> Any:
    """What of a judge's configuration decides its verdicts, and of a judge in it, as a report shows it.

    Args:
        judge: ``class_path`` and ``init_args``, as a config holds them.
    """
    if not isinstance(judge, Mapping) or "init_args" not in judge:
        return judge
    arguments = {key: judge_settings(value) for key, value in dict(judge["init_args"]).items() if key not in _HOW}
    return {**judge, "init_args": arguments}


State = Literal["new", "unfinished", "done", "changed", "other"]


@dataclass(frozen=True)
class Stage:
    """One command at one output directory.

    Attributes:
        directory: the experiment's output directory.
        key: the command, and the artifact's name where it has one, such as ``evaluate-base``.
        outputs: what the command leaves in the directory; a stage without them is not done.
    """

    directory: Path
    key: str
    outputs: tuple[str, ...] = ()

    @classmethod
    def of(cls, directory: Path, command: Command, name: str | None) -> "Stage":
        """The stage of a command whose artifact has the given name (where it has one)."""
        key = command.name if command.named is None else f"{command.name}-{name}"
        return cls(directory, key, tuple(output.format(name=name) for output in command.outputs))

    @property
    def missing(self) -> list[str]:
        """Outputs that are not there (any more)."""
        return [output for output in self.outputs if not (self.directory / output).exists()]

    @property
    def path(self) -> Path:
        """Where the stage's record lies."""
        return self.directory / "stages" / f"{self.key}.json"

    def read(self) -> dict[str, Any] | None:
        """The record, or None where there is none.

        Raises:
            ValueError: it is not one of ours.
        """
        return read_record(self.path)

    def resolve(self, value: str) -> str:
        """A value of a configuration with the placeholders of the output directory filled in."""
        return value.replace("{output_dir}", str(self.directory))

    def inputs(self, config: Mapping[str, Any]) -> dict[str, str]:
        """Digests of the files and directories that a configuration names, by their path as it is written there."""
        digests = {}
        for key, value in leaves(config):
            if not isinstance(value, str) or not is_read(key):
                continue
            digest = self.digest_of(value)
            if digest is not None:
                digests[value] = digest
            if key.startswith("steering.vectors."):  # controls that steer finds beside the vector
                for name in self._beside(value):
                    digests[name] = str(self.digest_of(name))
        return dict(sorted(digests.items()))

    def _beside(self, vector: str) -> Iterator[str]:
        """The permuted and GradDiff files of a vector, written as the vector's is."""
        path = Path(self.resolve(vector))
        directory = vector[: max(vector.rfind(separator) for separator in {"/", os.sep}) + 1]
        for folder in ("permuted", "graddiff"):
            for file in sorted(path.parent.glob(f"{folder}/{glob.escape(path.stem)}-*.safetensors")):
                if not file.stem.removeprefix(f"{path.stem}-").isdigit():  # of a vector whose name goes on
                    continue
                yield f"{directory}{folder}/{file.name}"

    def digest_of(self, value: str) -> str | None:
        """Digest of the file or directory that a value of a configuration names; None where there is none."""
        path = Path(resolve_resource(self.resolve(value)))
        return file_digest(path) if os.path.exists(path) else None  # which takes a text too long for a name

    def state(self, config: Mapping[str, Any]) -> State:
        """How the record compares with a command that is about to run.

        Args:
            config: the configuration with ``{output_dir}`` not filled in, so that a directory may be moved.

        Returns:
            ``new`` (no record, or one of another configuration that never finished), ``done``, ``unfinished`` (the
            same configuration and inputs, but it was cut off), ``changed`` (the same configuration, but an input file
            is another one) or ``other`` (another configuration).
        """
        record = self.read()
        if record is None:
            return "new"
        if not self._is_of(record, config):
            return "other" if record["finished"] else "new"
        if not self._has_read(record, self.inputs(config)):
            return "changed" if record["finished"] else "new"
        return "done" if record["finished"] and not self.missing else "unfinished"

    def _is_of(self, record: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
        """Whether a record is of a configuration: as it is written, or with every path in its one spelling.

        Either will do: a project may be moved with the relative paths in its configs, and a path spelled otherwise.
        """
        written = record.get("config_digest") == config_digest(config)
        return written or record.get("paths_digest") == config_digest(self._respelled(config))

    def _has_read(self, record: Mapping[str, Any], inputs: Mapping[str, str]) -> bool:
        then, spelled = record["inputs"], record.get("spelled", {})
        if then == inputs:
            return True
        found = {one_spelling(path, self.directory): digest for path, digest in inputs.items()}
        return found == {spelled.get(path, path): digest for path, digest in then.items()}

    def _respelled(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """A configuration, flat, with every path that it reads in its one spelling."""
        return {
            key: one_spelling(value, self.directory) if isinstance(value, str) and is_read(key) else value
            for key, value in leaves(config)
        }

    def difference(self, config: Mapping[str, Any], *, num_named: int = 3) -> str:
        """What differs from the record, to be read: options or input files with the new value and the old one.

        Args:
            config: as for `state`.
            num_named: so many at most are named.

        Returns:
            An empty string where it cannot be told: records of earlier versions do not hold their options.
        """
        record = self.read() or {}
        if self._is_of(record, config):
            now, then = _shown_inputs(self.inputs(config)), _shown_inputs(record["inputs"])
        else:
            now, then = {_VERSION: __version__}, {_VERSION: str(record.get("version"))}
            if "options" in record:
                now, then = now | _shown_options(config), then | record["options"]
        differs = [key for key in {**now, **then} if now.get(key) != then.get(key)]
        named = [f"{key} (now {now.get(key, 'absent')}, then {then.get(key, 'absent')})" for key in differs[:num_named]]
        more = [f"{len(differs) - num_named} more"] if len(differs) > num_named else []
        return ", ".join([*named, *more])

    def write(self, config: Mapping[str, Any], *, finished: bool, inputs: Mapping[str, str] | None = None) -> None:
        """Writes the record.

        Args:
            config: as for `state`.
            finished: whether the command has finished.
            inputs: the digests of what was read, as `inputs` gave them at the start; taken now by default.
        """
        read = dict(self.inputs(config) if inputs is None else inputs)
        record = {
            "command": self.key,
            "config_digest": config_digest(config),
            "paths_digest": config_digest(self._respelled(config)),
            "options": _shown_options(config),
            "inputs": read,
            "spelled": {path: one_spelling(path, self.directory) for path in read},
            "finished": finished,
        }
        write_record(self.path, record)


def read_record(path: Path) -> dict[str, Any] | None:
    """A record that `write_record` wrote, or None where there is no such file.

    Raises:
        ValueError: it is not one of ours.
    """
    if not path.is_file():
        return None
    try:
        record = read_json(path)
    except ValueError as error:
        raise ValueError(f"{error}; delete it to start afresh") from error
    if record.get("format") != FORMAT_VERSION:
        raise ValueError(f"{str(path)!r} has format {record.get('format')!r}; accepted: {FORMAT_VERSION}")
    return record


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Writes a record with the format's version, under a temporary name that is renamed."""
    write_json(path, {"format": FORMAT_VERSION, "version": __version__, **record})


def config_digest(config: Mapping[str, Any]) -> str:
    """Digest of everything in a configuration that decides what the command makes."""
    kept = {key: value for key, value in sorted(leaves(config)) if not _is_not_part(key)}
    return text_digest(json.dumps([__version__, kept], sort_keys=True, default=str))


def _shown_inputs(inputs: Mapping[str, str]) -> dict[str, str]:
    return {f"the file {path!r}": f"digest {digest[:12]}" for path, digest in inputs.items()}


def _shown_options(config: Mapping[str, Any]) -> dict[str, str]:
    """Each option that decides what the command makes, as a message may show it: a long value as its digest.

    So are texts of a judge and addresses, which nobody has checked for a secret yet.
    """
    shown = {}
    for key, value in sorted(leaves(config)):
        if _is_not_part(key):
            continue
        text = json.dumps(value, default=str)
        hidden = isinstance(value, str) and (key.startswith("evaluation.judge.") or "://" in value)
        hidden = hidden and not key.endswith(".class_path") and not value.startswith("gradsteer://")
        shown[key] = f"digest {text_digest(text)[:12]}" if hidden or len(text) > 60 else text
    return shown


def _is_not_part(key: str) -> bool:
    named = any(key == name or key.startswith(f"{name}.") for name in _NOT_PART)
    return named or key.endswith(".output_dir") or _ASKING.search(key) is not None


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value of a configuration by its dotted key; what lists hold, by its place."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from leaves(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list | tuple):
        if not value:
            yield prefix, []
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{prefix}.{index}")
    else:
        yield prefix, value
