"""A judge made from the groups that discover found, so that steer measures realised rates of discovered behaviors."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from gradsteer.discovery.group_file import RECORD, GroupFile
from gradsteer.discovery.material import all_spans, loss_weights, span_texts
from gradsteer.discovery.sketches import Sketcher
from gradsteer.discovery.spans import token_log_probs, weighted
from gradsteer.judges.base import Exchange, Judge, Verdicts
from gradsteer.judges.keyword import KeywordJudge
from gradsteer.models.fingerprints import model_fingerprint
from gradsteer.records import text_digest

if TYPE_CHECKING:
    from gradsteer.data.chat import EncodedExample

By = Literal["nearest", "patterns"]
_VERSION = 1
_TOKENS = 1024  # at once


class GroupJudge(Judge):
    """Judges by the groups that discover found: a response shows the group that it belongs to.

    Args:
        directory: OUTPUT_DIR/discovery of a finished discover.
        by: "nearest" reads each response with the anchor and the base, as discover did, and takes the group whose
            centroid is nearest, or none where all are too far; "patterns" searches for the words that tell the groups,
            of which a response may have several.

    Raises:
        ValueError: there are no groups there, or none with patterns.
    """

    def __init__(self, directory: str, by: By = "nearest") -> None:
        if by not in get_args(By):
            raise ValueError(f"by is {by!r}; accepted: {', '.join(get_args(By))}")
        self.directory, self.by = Path(os.path.expanduser(directory)), by
        self._groups: GroupFile | None = None
        self._keywords: KeywordJudge | None = None
        self._reader: _Reader | None = None

    @property
    def groups(self) -> GroupFile:
        """What discover left; read when it is first asked for, as an earlier stage of a run may write it."""
        if self._groups is None:
            self._groups = GroupFile.read(self.directory)
            if not self._groups.names:
                raise ValueError(f"{self.directory / RECORD} holds no group: there is nothing to judge")
        return self._groups

    @property
    def behaviors(self) -> tuple[str, ...]:
        """The groups' names."""
        return self.groups.names

    def check(self) -> None:
        """Refuses a directory without groups, or models that are not there."""
        groups = self.groups
        if self.by == "patterns":
            if missing := [name for name in groups.names if not groups.patterns[name]]:
                raise ValueError(f"group {missing[0]!r} has no words that tell it; accepted: by nearest")
            return
        for what, path in (("anchor", groups.model), ("base", groups.base)):
            if path is not None and path.startswith((".", "/", "lightning_logs")) and not Path(path).is_dir():
                raise ValueError(f"the groups' {what} {path!r} is not there; accepted: by patterns, or put it back")

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdicts]:
        """Places each response; the empty one belongs to no group."""
        if not exchanges:
            return []
        if self.by == "patterns":
            if self._keywords is None:
                self.check()
                self._keywords = KeywordJudge(self.groups.patterns)
            return self._keywords.judge(exchanges)
        if self._reader is None:
            self._reader = _Reader(self.groups)
        texts = [place for place, exchange in enumerate(exchanges) if exchange.response.strip()]
        placed = np.full(len(exchanges), -1)
        if texts:
            placed[texts] = self._reader.place([exchanges[place] for place in texts])
        names = self.groups.names
        return [Verdicts({name: bool(label == n) for n, name in enumerate(names)}, {}) for label in placed]

    def fingerprint(self) -> str:
        """A digest of the groups and of how responses are placed."""
        groups = self.groups
        decides = [_VERSION, self.by, groups.digest, groups.reading, groups.features, sorted(groups.patterns.items())]
        return text_digest(repr([*decides, groups.dtype, groups.fingerprint]))

    def close(self) -> None:
        """Lets go of the models."""
        self._reader = None


class _Reader:
    """Reads exchanges with the models as discover did."""

    def __init__(self, groups: GroupFile) -> None:
        from gradsteer.models.loading import Loading, load_causal_lm, load_tokenizer

        loading = Loading(groups.model, groups.dtype)
        self.groups, self.tokenizer = groups, load_tokenizer(loading)
        self.anchor: Any = load_causal_lm(loading)
        if groups.fingerprint not in (None, found := model_fingerprint(self.anchor)):
            raise ValueError(
                f"the groups' anchor {groups.model!r} holds other weights (fingerprint {found}) than discover read "
                f"({groups.fingerprint}); accepted: by patterns, or discover again (--overwrite true)"
            )
        self.base: Any = None if groups.base is None else load_causal_lm(groups.base, dtype=groups.dtype)
        self.sketcher = (
            None
            if groups.features.features == "text"
            else Sketcher(self.anchor, size=groups.reading.size, seed=groups.reading.sketch_seed)
        )

    def place(self, exchanges: Sequence[Exchange]) -> np.ndarray:
        from gradsteer.models.batches import BatchLayout

        examples = [self._encoded(exchange) for exchange in exchanges]
        pad, reading = int(self.tokenizer.pad_token_id), self.groups.reading
        layout = BatchLayout.of(self.anchor, examples[:4], pad_token_id=pad)
        ratios = None
        if self.base is not None:
            other = BatchLayout.of(self.base, examples[:4], pad_token_id=pad)
            theirs = token_log_probs(self.base, examples, other, token_budget=_TOKENS)
            ours = token_log_probs(self.anchor, examples, layout, token_budget=_TOKENS)
            ratios = [own - their for own, their in zip(ours, theirs, strict=True)]
        spans = all_spans(examples, ratios, threshold=reading.threshold, reach=reading.reach)
        sketches = np.zeros((len(examples), 0 if self.sketcher is None else self.sketcher.size))
        if self.sketcher is not None:
            weights = loss_weights(reading.token_weights, ratios or [], spans)
            if weights is not None:
                examples = [weighted(each, weight) for each, weight in zip(examples, weights, strict=True)]
            for places in layout.plan([len(each.input_ids) for each in examples], _TOKENS):
                batch = layout.make([examples[place] for place in places])
                sketches[places] = self.sketcher.add(batch, head_chunk=layout.head_chunk).double().numpy()
        return self.groups.place(span_texts(self.tokenizer, examples, spans), sketches)

    def _encoded(self, exchange: Exchange) -> "EncodedExample":
        from gradsteer.data.chat_formats import ChatExample
        from gradsteer.data.encoding import encode_examples

        turns = [{"role": "user", "content": exchange.prompt}, {"role": "assistant", "content": exchange.response}]
        chat = ChatExample(turns, 1, "a response")
        (found,), _ = encode_examples(self.tokenizer, [chat], loss_mask="assistant", max_length=None)
        assert found is not None
        return found
