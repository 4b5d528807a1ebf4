"""Answers of servers, read no further than an answer to a question for verdicts can be long."""

from collections.abc import AsyncIterator
from functools import cache
from typing import Any

MAX_BYTES = 1 << 20  # verdicts take a few hundred
_MAX_COMPRESSED = MAX_BYTES // 64  # of what is compressed, which may unfold a thousandfold


class TooLongError(ValueError):
    """An answer that is no answer to a question for verdicts."""


async def limit(response: Any) -> None:
    """Refuses an answer that says that it is too long, and has one that does not say so read up to the limit.

    Args:
        response: the HTTP client's, whose body has not been read; this is the client's hook for that.

    Raises:
        TooLongError: now, or as the body is read.
    """
    compressed = response.headers.get("content-encoding", "identity") != "identity"
    most = _MAX_COMPRESSED if compressed else MAX_BYTES
    length = response.headers.get("content-length", "")
    if length.isdecimal() and int(length) > most:
        raise _too_long(most)
    # the client wants streams of its own kind, and which client it is depends on the version of openai
    kind = next(kind for kind in type(response.stream).__mro__ if kind.__name__ == "AsyncByteStream")
    response.stream = _bounded(kind)(response.stream, most)


@cache
def _bounded(kind: type) -> type:
    class Bounded(kind):
        def __init__(self, stream: Any, most: int) -> None:
            self._stream, self._most = stream, most

        async def __aiter__(self) -> AsyncIterator[bytes]:
            read = 0
            async for part in self._stream:
                read += len(part)
                if read > self._most:
                    raise _too_long(self._most)
                yield part

        async def aclose(self) -> None:
            await self._stream.aclose()

    return Bounded


def _too_long(most: int) -> TooLongError:
    return TooLongError(f"an answer of more than {most} bytes")
