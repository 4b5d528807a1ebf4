"""Judging sampled rows, in parallel with sampling if the judge mostly waits for a server."""

from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Lock
from typing import Any

import lightning as L

from gradsteer.data.response_rows import WITHOUT_ANSWER, answer_of, is_unanswered
from gradsteer.evaluation.degeneracy import is_degenerate
from gradsteer.evaluation.refusals import judged_sets
from gradsteer.judges import Exchange, Judge, Verdicts
from gradsteer.judges.failures import JudgeStopped

Row = dict[str, Any]
_PATIENCE = 0.1  # seconds between two calls of a judge's close


class VerdictQueue:
    """Judges batches of rows: in the background if `Judge.waits`, otherwise as they arrive.

    In the background all waiting rows are judged together, so that a concurrent judge has many requests to send even
    if the batches are small. After a failure nothing further is judged.

    Args:
        judge: the judge.
        count_degenerate: count degenerate responses in the rates like any others.

    Attributes:
        patient: raise a background judge's errors only in `collect`, where all processes synchronise. A process that
            stopped at one of its own batches would leave the others waiting.
    """

    def __init__(self, judge: Judge, *, count_degenerate: bool) -> None:
        self.judge, self.count_degenerate = judge, count_degenerate
        self.sets = judged_sets(judge.behaviors)
        self.patient = False
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="judge") if judge.waits else None
        self._waiting: list[Future[list[Row]]] = []
        self._unasked: SimpleQueue[Sequence[Row]] = SimpleQueue()
        self._judged: list[Row] = []
        self._asking, self._stopped = Lock(), False

    def submit(self, rows: Sequence[Row]) -> None:
        """Takes a batch of rows, each with ``set``, ``prompt``, ``completion`` and perhaps ``failed``.

        Raises:
            Exception: the judge's error on an earlier batch, so that sampling can stop; not if the queue is `patient`.
        """
        if self._pool is None:
            self._judged += self._with_verdicts(rows)
            return
        while not self.patient and self._waiting and self._waiting[0].done():
            self._take()
        self._unasked.put(rows)
        self._waiting.append(self._pool.submit(self._in_background))

    def collect(self) -> list[Row]:
        """All rows since the last call, with ``verdicts``, ``unscored`` and ``degenerate``; waits for the judge.

        Raises:
            Exception: the judge's error.
        """
        while self._waiting:
            self._take()
        judged, self._judged = self._judged, []
        return judged

    def close(self) -> None:
        """Ends the background thread once everything is judged."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def cancel(self) -> None:
        """Aborts: drops pending requests, sends no more, and closes the judge."""
        self._stopped = True
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self.judge.close()
        # a judge that was just starting may have reopened its connection
        while not self._asking.acquire(timeout=_PATIENCE):
            self.judge.close()
        self._asking.release()

    def _take(self) -> None:
        # removed from the list last, so that an interrupt while waiting loses nothing
        self._judged += self._waiting[0].result()
        del self._waiting[0]

    def _in_background(self) -> list[Row]:
        """Judges all waiting rows; none may be left if an earlier call took them."""
        with self._asking:
            if self._stopped:
                raise CancelledError
            rows: list[Row] = []
            while not self._unasked.empty():
                rows += self._unasked.get()
            try:
                return self._with_verdicts(rows) if rows else []
            except BaseException:
                self._stopped = True
                raise

    def _with_verdicts(self, rows: Sequence[Row]) -> list[Row]:
        answers = [(row, answer_of(row)) for row in rows if row["set"] in self.sets and not row.get("failed")]
        asked = [row for row, answer in answers if answer is not None]
        exchanges = [Exchange(row["prompt"], answer) for row, answer in answers if answer is not None]
        found = dict(zip((id(row) for row in asked), self.judge.judge(exchanges), strict=True))
        return [self._judged_row(row, found.get(id(row))) for row in rows]

    def _judged_row(self, row: Row, verdicts: Verdicts | None) -> Row:
        if verdicts is None and row["set"] in self.sets:  # never sampled, or without an answer
            reasons = dict.fromkeys(self.judge.behaviors, str(row.get("failed") or WITHOUT_ANSWER))
            verdicts = Verdicts(dict.fromkeys(self.judge.behaviors), reasons)
        answered = not row.get("failed") and not is_unanswered(row)
        degenerate = answered and not self.count_degenerate and is_degenerate(answer_of(row) or "")
        return {**row, **(verdicts or Verdicts({}, {})).columns(), "degenerate": degenerate}


@contextmanager
def stopping_together(trainer: L.Trainer) -> Iterator[None]:
    """If the judge stops in one process, stops all processes, which would otherwise wait for it (collective).

    Raises:
        JudgeStopped: in the processes whose own judge did not stop.
    """
    broken: Exception | None = None
    try:
        yield
    except (ValueError, OSError, JudgeStopped) as error:
        broken = error
    if not trainer.strategy.reduce_boolean_decision(broken is None):
        raise broken or JudgeStopped("the judge stopped in another process, which says why")
