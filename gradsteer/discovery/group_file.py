"""What discover leaves for judging later responses: discovery/groups.npz, and an entry in discovery.json."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from gradsteer.discovery.feature_map import FeatureMap, FeatureOptions
from gradsteer.discovery.finding import Findings
from gradsteer.discovery.groups import nearest
from gradsteer.discovery.material import TokenWeights
from gradsteer.records import file_digest, read_json, replacing

FORMAT_VERSION = 1
FOLDER, RECORD, ARRAYS = "discovery", "discovery.json", "groups.npz"


@dataclass(frozen=True)
class ReadingOptions:
    """How responses are read; see `gradsteer.discovery.material`.

    Attributes:
        threshold: of a span's first token, nats.
        reach: tokens of a span behind it.
        token_weights: of the losses whose gradients are sketched.
        size: of a sketch.
        sketch_seed: of its sign matrices.
    """

    threshold: float = 1.0
    reach: int = 16
    token_weights: TokenWeights = "spans"
    size: int = 4096
    sketch_seed: int = 0


@dataclass(frozen=True)
class GroupFile:
    """The groups of a discovery, and how a response is placed among them.

    Attributes:
        names: of the groups.
        patterns: of each.
        model: the anchor.
        base: the base model; None where there was none.
        dtype: of their weights.
        reading: how responses are read.
        features: what they are grouped by.
        feature_map: turns them into features.
        centroids: (groups, features).
        reach: (groups,); see `gradsteer.discovery.groups.Groups`.
        digest: of the arrays' file.
    """

    names: tuple[str, ...]
    patterns: dict[str, list[str]]
    model: str
    base: str | None
    dtype: str
    reading: ReadingOptions
    features: FeatureOptions
    feature_map: FeatureMap
    centroids: np.ndarray
    reach: np.ndarray
    digest: str = ""
    fingerprint: str | None = None  # of the anchor that discover read

    def place(self, spans: list[str], sketches: np.ndarray) -> np.ndarray:
        """(responses,) the group of each; -1 for none."""
        return nearest(self.feature_map.apply(spans, sketches), self.centroids, self.reach)

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Reads what discover wrote.

        Args:
            directory: OUTPUT_DIR/discovery.

        Raises:
            ValueError: there is nothing of the kind, or of another version.
        """
        path = directory / RECORD
        if not path.is_file() or not (directory / ARRAYS).is_file():
            raise ValueError(f"no groups at {str(directory)!r}; accepted: OUTPUT_DIR/discovery of a finished discover")
        said = read_json(path)
        if said.get("format") != FORMAT_VERSION or said.get("kind") != "discovery":
            raise ValueError(f"{path}: not a record of discover, format {FORMAT_VERSION}")
        judge: Mapping[str, Any] = said["judge"]
        with np.load(directory / ARRAYS, allow_pickle=False) as held:
            arrays = {name: held[name] for name in held.files}
        features = FeatureOptions(**judge["features"])
        return cls(
            tuple(group["name"] for group in said["groups"]),
            {group["name"]: group["patterns"] for group in said["groups"]},
            judge["model"],
            judge["base"],
            judge["dtype"],
            ReadingOptions(**judge["reading"]),
            features,
            FeatureMap.of_arrays(features, judge["words"], arrays),
            arrays["centroids"],
            arrays["reach"],
            file_digest(directory / ARRAYS),
            said.get("model_fingerprint"),
        )


def write_arrays(directory: Path, findings: Findings) -> None:
    """Writes the arrays that place a response."""
    directory.mkdir(parents=True, exist_ok=True)
    arrays = {**findings.feature_map.arrays(), "centroids": findings.groups.centroids, "reach": findings.groups.reach}
    with replacing(directory / ARRAYS) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def judge_entry(
    findings: Findings, *, model: str, base: str | None, dtype: str, reading: ReadingOptions, features: FeatureOptions
) -> dict[str, Any]:
    """What discovery.json says for judging."""
    words = findings.feature_map.words
    entry = {
        "model": model,
        "base": base,
        "dtype": dtype,
        "reading": asdict(reading),
        "features": asdict(features),
        "words": [] if words is None else list(words.words),
    }
    found: dict[str, Any] = json.loads(json.dumps(entry))
    return found
