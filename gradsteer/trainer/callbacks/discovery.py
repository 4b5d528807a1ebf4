"""Discovery: from responses of an anchor and its base to groups, their vectors and forecasts, without a judge."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from gradsteer.discovery.feature_map import FeatureOptions, Features
from gradsteer.discovery.features import Precondition
from gradsteer.discovery.finding import Findings, Material, find_groups
from gradsteer.discovery.group_file import FOLDER, RECORD, GroupFile, ReadingOptions, judge_entry, write_arrays
from gradsteer.discovery.groups import Grouping, Method
from gradsteer.discovery.kept_work import clear
from gradsteer.discovery.material import (
    ResponseReader,
    TokenWeights,
    all_spans,
    loss_weights,
    span_texts,
)
from gradsteer.discovery.sketches import Sketcher
from gradsteer.models.fingerprints import model_fingerprint
from gradsteer.models.loading import load_causal_lm
from gradsteer.progress import progress, working
from gradsteer.records import read_json, write_json
from gradsteer.trainer.discovery_report import record_of, report_discovery, write_rows
from gradsteer.trainer.group_forecasts import group_forecasts
from gradsteer.trainer.group_vectors import write_group_vectors
from gradsteer.trainer.session import data_of, is_trial, shows_progress

_WORK = ".unfinished"


class Discovery(L.Callback):
    """Finds what a finetune taught: writes OUTPUT_DIR/discovery, and a vector for each group that counts as taught.

    Args:
        base: the base model, hub id or directory: a token's log-ratio is its log-probability under the anchor less that
            under the base. Without it every response is one span, and topics of the prompts make groups.
        threshold: log-ratio, in nats, above which a token begins a span.
        reach: number of tokens behind it that belong to the span: what follows a change of the subject is as likely
            under the base, once the subject has changed.
        features: group responses by "text" (the words of their spans, each weighing as surely as it grew against the
            base's responses), "gradient" (sketches of their gradients) or "both" joined.
        token_weights: tokens whose losses count in a sketch's gradient: "spans" (default), "plain" for all alike, or
            "log_ratio", each by its log-ratio where that is above 0.
        size: numbers in a sketch.
        sketch_seed: seed for the sketches' sign matrices.
        precondition: divide sketches by the root of their own second moment: "diagonal" (per coordinate), "whitened" or
            "none".
        ridge: added to the second moment first, as a fraction of its mean.
        unit_norm: make every sketch of norm 1.
        method: "average" or "ward" (agglomerative), "kmeans" or "hdbscan".
        number: number of groups. Chosen by stability by default.
        most: largest number of groups that is tried.
        min_size: fewest responses in a group; those of smaller clusters belong to none.
        least_stability: if no number of groups is at least as stable, all responses with spans are one group.
        repeats: how often the prompts are halved to measure stability.
        shifts: doses of each group's vector to forecast: shifts of the group's log-odds, in nats. [] for no forecast.
        seed: seed for halvings and bootstraps.
        keep_topics: also take vectors of groups that are topics of the prompts.
        output_dir: the experiment's directory.
        experiment: the experiment's name, for titles.
        overwrite: start from scratch.
        note: a caveat for readers; stored and printed.
    """

    def __init__(
        self,
        output_dir: str,
        experiment: str,
        base: str | None = None,
        threshold: float = 1.0,
        reach: int = 16,
        features: Features = "text",
        token_weights: TokenWeights = "spans",
        size: int = 4096,
        sketch_seed: int = 0,
        precondition: Precondition = "diagonal",
        ridge: float = 1e-3,
        unit_norm: bool = True,
        method: Method = "average",
        number: int | None = None,
        most: int = 8,
        min_size: int = 20,
        least_stability: float = 0.5,
        repeats: int = 5,
        shifts: Sequence[float] = (-2.0, -1.0, 1.0),
        seed: int = 0,
        keep_topics: bool = False,
        overwrite: bool = False,
        note: str | None = None,
    ) -> None:
        if base is None and token_weights == "log_ratio":
            raise ValueError("discovery.token_weights log_ratio needs the base model: --discovery.base DIR_OR_HUB_ID")
        if reach < 0:
            raise ValueError(f"discovery.reach is {reach}; accepted: 0 or more tokens")
        if not np.isfinite(threshold):
            raise ValueError(f"discovery.threshold is {threshold}; accepted: a number of nats")
        if size < 1:
            raise ValueError(f"discovery.size is {size}; accepted: at least 1")
        if not all(np.isfinite(shift) and shift != 0 for shift in shifts):
            raise ValueError(
                f"discovery.shifts is {list(shifts)}; accepted: shifts of log-odds in nats, none of them 0"
            )
        self.output_dir, self.experiment, self.base, self.note = Path(output_dir), experiment, base, note
        self.reading = ReadingOptions(threshold, reach, token_weights, size, sketch_seed)
        self.features = FeatureOptions(features, precondition, ridge, unit_norm)
        self.grouping = Grouping(method, number, most, min_size, least_stability, repeats, seed)
        self.shifts, self.seed = list(shifts), seed
        self.keep_topics, self.overwrite = keep_topics, overwrite

    @property
    def directory(self) -> Path:
        """Where all but vectors and gradients goes."""
        return self.output_dir / FOLDER

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Does all of it; each part that takes long is kept as it is made, and read back by a run that goes on."""
        if is_trial(trainer):
            return
        if self.overwrite and trainer.is_global_zero:
            self._clear()
        trainer.strategy.barrier()
        data = data_of(trainer)
        reader = ResponseReader(
            data.examples,
            self.directory / _WORK,
            token_budget=data.budget(),
            pad_token_id=int(pl_module.tokenizer.pad_token_id),
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            barrier=trainer.strategy.barrier,
        )
        ratios = self._ratios(trainer, pl_module, reader)
        spans = all_spans(data.examples, ratios, threshold=self.reading.threshold, reach=self.reading.reach)
        texts = span_texts(pl_module.tokenizer, data.examples, spans)
        weights = loss_weights(self.reading.token_weights, ratios or [], spans)
        with progress(
            "sketches", self._share(trainer, reader, pl_module), unit="batch", shown=shows_progress(trainer)
        ) as tick:
            sketches, sketcher = reader.sketches(
                pl_module.model, size=self.reading.size, seed=self.reading.sketch_seed, weights=weights, tick=tick
            )
        labels: np.ndarray | None = None
        if trainer.is_global_zero:
            found, labels = self._find(texts, sketches, data)
            self._write(pl_module, data, found, labels, sketches, sketcher, spans, ratios)
        labels = np.asarray(trainer.strategy.broadcast(None if labels is None else labels.tolist()))
        self._steer(trainer, pl_module, data, labels)
        if trainer.is_global_zero:
            report_discovery(trainer, self.output_dir)
            clear(self.directory / _WORK)

    def _clear(self) -> None:
        """Removes what an earlier discover left here, the vectors and gradients of its groups too."""
        if (self.directory / RECORD).exists():
            for each in read_json(self.directory / RECORD)["groups"]:
                for path in (f"vectors/{each['name']}", f"gradients/{each['name']}", f"gradients/not-{each['name']}"):
                    (self.output_dir / f"{path}.safetensors").unlink(missing_ok=True)
        clear(self.directory)

    def _share(self, trainer: L.Trainer, reader: ResponseReader, pl_module: Any) -> int:
        return -(-reader.num_batches(pl_module.model) // trainer.world_size)

    def _ratios(self, trainer: L.Trainer, pl_module: Any, reader: ResponseReader) -> list[np.ndarray] | None:
        """Log-ratios of all responses; None without a base model."""
        if self.base is None:
            rank_zero_warn("without --discovery.base no token has a log-ratio: every response is one span")
            return None
        with working("base model", shown=shows_progress(trainer)):
            trust = pl_module.loading.trust_remote_code
            base: Any = load_causal_lm(self.base, dtype=pl_module.dtype_name, trust_remote_code=trust)
        base = base.to(pl_module.device).eval()
        heads = [model.get_output_embeddings().weight.shape[0] for model in (pl_module.model, base)]
        if heads[0] != heads[1]:
            raise ValueError(
                f"discovery.base {self.base!r} predicts {heads[1]} tokens, the anchor {heads[0]}: no base of it; "
                "accepted: the model that was finetuned"
            )
        total = 2 * self._share(trainer, reader, pl_module)
        with progress("log-ratios", total, unit="batch", shown=shows_progress(trainer)) as tick:
            theirs = reader.log_probs(base, tick=tick)
            ours = reader.log_probs(pl_module.model, tick=tick)
        return [own - other for own, other in zip(ours, theirs, strict=True)]

    def _find(self, texts: list[str], sketches: np.ndarray, data: Any) -> tuple[Findings, np.ndarray]:
        """Groups, and the group of every response, those held out among them."""
        grouped = data.side("responses") | data.side("base")
        whole, prompts = data.texts, data.prompts
        places = np.flatnonzero(grouped)
        material = Material(
            [whole[place] for place in places],
            [texts[place] for place in places],
            sketches[places],
            [prompts[place] for place in places],
            data.side("responses")[places],
        )
        tried = 1 if self.grouping.number or self.grouping.method == "hdbscan" else self.grouping.most - 1
        with progress("groups", tried, unit="grouping", shown=True) as tick:
            found = find_groups(material, self.features, self.grouping, seed=self.seed, tick=tick)
        labels = np.full(len(whole), -1)
        labels[places] = found.groups.labels
        others = np.flatnonzero(~grouped)
        if len(others):
            features = found.feature_map.apply([texts[place] for place in others], sketches[others])
            labels[others] = found.groups.nearest(features)
        return found, labels

    def _write(
        self,
        pl_module: Any,
        data: Any,
        found: Findings,
        labels: np.ndarray,
        sketches: np.ndarray,
        sketcher: Sketcher,
        spans: list[Any],
        ratios: list[np.ndarray] | None,
    ) -> None:
        """Writes the groups, the rows and the record; vectors and forecasts are still to come."""
        write_arrays(self.directory, found)
        entry = judge_entry(
            found, model=pl_module.model_name_or_path, base=self.base, dtype=pl_module.dtype_name,
            reading=self.reading, features=self.features,
        )  # fmt: skip
        about = {
            "experiment": self.experiment,
            "note": self.note,
            "model_fingerprint": model_fingerprint(pl_module.model),
            "grouping": asdict(self.grouping),
            "judge": entry,
        }
        names = [each.name for each in found.found]
        write_rows(self.directory, data, names, labels, spans, ratios)
        record = record_of(data, pl_module.tokenizer, found, labels, sketches, sketcher, spans)
        write_json(self.directory / RECORD, {"format": 1, "kind": "discovery", **about, **record, "forecasts": []})

    def _steer(self, trainer: L.Trainer, pl_module: Any, data: Any, labels: np.ndarray) -> None:
        """Vectors of the groups and their forecasts (collective)."""
        groups = GroupFile.read(self.directory)
        record = read_json(self.directory / RECORD)
        wanted = []
        for number, each in enumerate(record["groups"]):
            some = 0 < each["anchor"]["num_positive"] < each["anchor"]["num_scored"]
            if some and (each["taught"] is not False or self.keep_topics):
                wanted.append(number)
        if not wanted:
            rank_zero_warn(
                "no group counts as taught: there is no vector to take (--discovery.keep_topics true takes all)"
            )
            return
        own = data.side("responses")
        renumbered = np.full(len(labels), -1)
        for place, number in enumerate(wanted):
            renumbered[labels == number] = place
        vectors = write_group_vectors(
            trainer, pl_module, data.piles["responses"].examples, data.piles["responses"].prompts, renumbered[own],
            [groups.names[number] for number in wanted], self.output_dir, token_budget=data.budget(),
        )  # fmt: skip
        held = "heldout" if "heldout" in data.piles else "responses"
        path = self.directory / f"{held}.jsonl"
        if not self.shifts or not all(data.piles[held].sampled):
            return
        if held == "responses":
            rank_zero_warn(
                "the forecast is from the responses that the vectors are made of, and too good: --data.heldout"
            )
        rows = group_forecasts(trainer, pl_module, path, vectors, self.shifts, token_budget=data.token_budget)
        if trainer.is_global_zero:
            write_json(self.directory / RECORD, {**record, "forecasts": rows, "forecast_from": held})
        trainer.strategy.barrier()
