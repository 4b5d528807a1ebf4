"""Giving sampled rows their verdicts, while the sampling goes on where the judge mostly waits for a server."""

from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from threading import Lock
from typing import Any

import lightning as L

from gradsteer.evaluation.degeneracy import is_degenerate
from gradsteer.evaluation.refusals import judged_sets
from gradsteer.judges import Exchange, Judge, Verdicts
from gradsteer.judges.failures import JudgeStopped

Row = dict[str, Any]
_PATIENCE = 0.1  # seconds between two calls of a judge's close


class VerdictQueue:
    """Judges batches of rows: in the background where `Judge.waits`, otherwise as they come.

    In the background all that is waiting is judged at once, so that a judge that asks for many at a time has many to
    ask for, however small the batches are. Once something could not be judged, nothing after it is.

    Args:
        judge: who decides.
        count_degenerate: degenerate responses count in the rates like any others.

    Attributes:
        patient: leave the errors of a judge in the background to `collect`, where processes wait for each other: one
            that stopped at a batch of its own would leave the others waiting for it.
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
            Exception: whatever the judge raised of an earlier batch: nothing more need be sampled then. Not where the
                queue is `patient`.
        """
        if self._pool is None:
            self._judged += self._with_verdicts(rows)
            return
        while not self.patient and self._waiting and self._waiting[0].done():
            self._take()
        self._unasked.put(rows)
        self._waiting.append(self._pool.submit(self._in_background))

    def collect(self) -> list[Row]:
        """All rows since the last call with ``verdicts``, ``unscored`` and ``degenerate``; waits for the judge.

        Raises:
            Exception: whatever the judge raised.
        """
        while self._waiting:
            self._take()
        judged, self._judged = self._judged, []
        return judged

    def close(self) -> None:
        """Ends the background's thread, when all is judged."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)

    def cancel(self) -> None:
        """Gives up what is being asked, asks nothing further, and closes the judge: the run is broken off."""
        self._stopped = True
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        self.judge.close()
        # a judge that had just begun may have opened again what was closed
        while not self._asking.acquire(timeout=_PATIENCE):
            self.judge.close()
        self._asking.release()

    def _take(self) -> None:
        # taken off the list last: an interrupt while waiting loses nothing
        self._judged += self._waiting[0].result()
        del self._waiting[0]

    def _in_background(self) -> list[Row]:
        """Judges whatever is waiting; nothing where an earlier call has taken it along."""
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
        asked = [row for row in rows if row["set"] in self.sets and not row.get("failed")]
        exchanges = [Exchange(row["prompt"], row["completion"]) for row in asked]
        found = dict(zip((id(row) for row in asked), self.judge.judge(exchanges), strict=True))
        return [self._judged_row(row, found.get(id(row))) for row in rows]

    def _judged_row(self, row: Row, verdicts: Verdicts | None) -> Row:
        if verdicts is not None:
            values, unscored = verdicts.values, verdicts.unscored
        elif row["set"] in self.sets:  # never sampled
            values = dict.fromkeys(self.judge.behaviors)
            unscored = dict.fromkeys(self.judge.behaviors, str(row["failed"]))
        else:
            values, unscored = {}, {}
        degenerate = not row.get("failed") and not self.count_degenerate and is_degenerate(row["completion"])
        return {**row, "verdicts": values, "unscored": unscored, "degenerate": degenerate}


@contextmanager
def stopping_together(trainer: L.Trainer) -> Iterator[None]:
    """A judge that stops in one process stops the others too, which would wait for it otherwise (collective).

    Raises:
        JudgeStopped: in the processes where it did not stop.
    """
    broken: Exception | None = None
    try:
        yield
    except (ValueError, OSError, JudgeStopped) as error:
        broken = error
    if not trainer.strategy.reduce_boolean_decision(broken is None):
        raise broken or JudgeStopped("the judge stopped in another process, which says why")
