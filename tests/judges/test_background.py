"""The event loop in a thread: closed at any moment, it leaves nobody waiting."""

import asyncio
import threading
import time

import pytest

from gradsteer.judges.background import BackgroundLoop


async def endless(hand_over):
    number = 0
    while True:
        hand_over(number)
        number += 1
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("pause", [0.0, 0.001, 0.02])
def test_a_loop_that_is_closed_ends_those_who_wait_for_it(pause):
    for _ in range(20):
        loop, ends = BackgroundLoop(), []

        def read(loop=loop, ends=ends):
            try:
                for _ in loop.stream(endless):
                    pass
            except RuntimeError as error:
                ends.append(str(error))

        readers = [threading.Thread(target=read, daemon=True) for _ in range(4)]
        for reader in readers:
            reader.start()
        time.sleep(pause)
        loop.close()
        for reader in readers:
            reader.join(10)
        assert not any(reader.is_alive() for reader in readers)
        assert len(ends) == 4
        assert set(ends) <= {"closed while work was under way", "the loop is closed"}


def test_a_closed_loop_runs_nothing_more():
    loop = BackgroundLoop()
    last = []

    async def note():
        last.append(True)

    loop.close(note())
    assert last == [True]
    with pytest.raises(RuntimeError, match="closed"):
        loop.run(note())
    assert last == [True]
