"""An event loop in a thread of its own, so that plain code can wait for many requests at once.

A caller's own loop, as in a notebook, is not touched.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from queue import SimpleQueue
from threading import Lock, Thread
from typing import Any, TypeVar

Item = TypeVar("Item")


class BackgroundLoop:
    """Runs coroutines for threads that have no loop, until it is closed."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._lock, self._closed = Lock(), False
        self._thread = Thread(target=self._loop.run_forever, name="judging", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Item]) -> Item:
        """Runs one coroutine to its end.

        Raises:
            RuntimeError: If the loop is closed.
        """
        # what came after the loop's last work would be waited for without end
        with self._lock:
            if self._closed:
                work.close()
                raise RuntimeError("the loop is closed")
            started = asyncio.run_coroutine_threadsafe(work, self._loop)
        return started.result()

    def stream(self, work: Callable[[Callable[[Item], None]], Coroutine[Any, Any, None]]) -> Iterator[Item]:
        """Yields what the work hands over, as it comes; then raises what the work raised.

        When the caller stops early, or is interrupted, the work is cancelled and its end awaited.

        Args:
            work: Given a function that hands over one item (not None), returns the coroutine to run.

        Raises:
            RuntimeError: If the loop is closed meanwhile.
        """
        items: SimpleQueue[Item | None] = SimpleQueue()

        async def start() -> asyncio.Task[None]:
            task = asyncio.create_task(work(items.put))
            task.add_done_callback(lambda _: items.put(None))
            return task

        task = self.run(start())
        try:
            while (item := items.get()) is not None:
                yield item
        finally:
            if not task.done():
                self.run(_end(task))
            # looked at in any case, or the loop complains that nobody did
            error = None if task.cancelled() else task.exception()
        if task.cancelled():
            raise RuntimeError("closed while work was under way")
        if error is not None:
            raise error

    def close(self, last: Coroutine[Any, Any, None] | None = None) -> None:
        """Cancels what is under way, runs one last coroutine and ends the thread; once. Any thread may be waiting."""
        with self._lock:
            self._closed = True
        for work in (_end_all(), *(() if last is None else (last,))):
            asyncio.run_coroutine_threadsafe(work, self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _end(*tasks: "asyncio.Task[Any]") -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


async def _end_all() -> None:
    await _end(*(task for task in asyncio.all_tasks() if task is not asyncio.current_task()))
