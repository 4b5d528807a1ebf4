"""Asks a server for chat completions; returns its answer, or the reason why there is none."""

import asyncio
import json
import random
import warnings
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from typing import Any, Literal

from gradsteer.judges.answer_sizes import TooLongError, limit
from gradsteer.judges.checks import OPENAI_URL, is_here, is_openai
from gradsteer.judges.failures import Failure, JudgeStopped, MaxCostReached, shown, status_failure
from gradsteer.judges.request_settings import RequestSettings
from gradsteer.judges.scrubbing import Scrubber, scrubbed_logs
from gradsteer.judges.spending import CHARS_PER_TOKEN, Spending
from gradsteer.judges.withheld import answer_withheld

Structured = Literal["auto", "json_schema", "json_object", "text"]

_LEVELS: tuple[Structured, ...] = ("json_schema", "json_object", "text")
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 60.0  # seconds, without word from the server
# tokens that a server adds around the two messages, with a margin; a limit on dollars must not be passed
_FRAME_TOKENS = 64
_MOST_TOKENS = 1 << 40  # that a server can mean of one request
_PATIENCE = 1800.0  # seconds that one exchange waits at the server's word, over all its tries
_HEADERS = {
    "host", "accept", "accept-encoding", "connection", "content-type", "content-length", "user-agent",
    "idempotency-key",
}  # fmt: skip
_FLAGS = {"max_completion_tokens": "max_tokens"}  # settings of other names
# what the client raises where no connection was had, so that nothing was sent
_UNSENT = ("Connect", "Pool", "Proxy", "UnsupportedProtocol")

pause = asyncio.sleep  # tests put a clock of their own here


class NoAnswer(Exception):
    """One exchange goes without an answer.

    Args:
        reason: Why, without the key.
        lasting: Whether asking another day would find the same.
        unreachable: Whether the server failed time after time, rather than declined.
        general: Whether it has nothing to do with the texts: the server said nothing, or not in the form asked for.
    """

    def __init__(self, reason: str, lasting: bool, unreachable: bool, general: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.lasting, self.unreachable, self.general = reason, lasting, unreachable, general


class Completions:
    """One server, asked through the `openai` client; lives within one event loop.

    Args:
        settings: What each request says beside its messages and its form: model, temperature and so on.
        base_url: The server; None for OpenAI's.
        key: Its key; None sends none that means anything.
        key_from: Name of the environment variable, for messages.
        structured: The form of answer that is asked for.
        schema: The answer's JSON schema.
        concurrency: Requests under way at a time.
        timeout: Seconds that a request may take.
        max_retries: Further tries for an exchange.
        spending: Counts tokens and holds the limit.
        answered_before: Whether an earlier run has had answers.
    """

    def __init__(
        self, settings: RequestSettings, base_url: str | None, key: str | None, key_from: str, structured: Structured,
        schema: Mapping[str, Any], concurrency: int, timeout: float, max_retries: int, spending: Spending,
        answered_before: bool = False,
    ) -> None:  # fmt: skip
        import openai

        self._openai = openai
        # what OPENAI_BASE_URL says is not asked: verdicts are stored under the name of the server
        self.url = base_url or OPENAI_URL
        # the client's own retries do not honour long waits, nor the limits here
        self._client = openai.AsyncOpenAI(
            api_key=key or "none", base_url=self.url, max_retries=0, timeout=None,
            default_headers={"Accept-Encoding": "identity"},
            http_client=openai.DefaultAsyncHttpxClient(
                follow_redirects=False,  # the texts are for the server that was named
                # and a proxy that the environment names would have read what was to stay on this machine
                trust_env=self.url.startswith("https:") or not is_here(self.url),
                event_hooks={
                    "request": [] if is_openai(self.url) else [_only_ours(key or "none")], "response": [limit]
                },
            ),
        )  # fmt: skip
        self.settings, self._schema, self._key_from = settings, schema, key_from
        self._timeout, self._max_retries, self._spending = timeout, max_retries, spending
        self._levels = _LEVELS if structured == "auto" else (structured,)
        self._level = 0
        self._slots = asyncio.Semaphore(concurrency)
        self._settled = asyncio.Condition()
        self._quiet_until = 0.0
        self._answered, self._answered_before = False, answered_before
        self._scrub, self._has_key = Scrubber(key), bool(key)
        self._logs = ExitStack()
        self._logs.enter_context(scrubbed_logs(self._scrub))

    async def close(self) -> None:
        """Closes the connections."""
        await self._client.close()
        self._logs.close()

    def scrub(self, text: str) -> str:
        """The text without the key."""
        return self._scrub(text)

    async def complete(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        """Asks until there is an answer.

        Returns:
            The first of the answer's `choices`.

        Raises:
            NoAnswer: If this exchange cannot be judged, or the retries are used up.
            JudgeStopped: If none can: a wrong key, an unknown model, the limit on dollars.
        """
        level, tries, waited, form_refused = self._level, 0, 0.0, None
        without: set[str] = set()
        most: int | None = None  # tokens, where all that there is room for does not fit behind the texts
        while True:
            room = min(self.settings.max_tokens, most or self.settings.max_tokens)
            answer = await self._send(messages, self._levels[level], room)
            if not isinstance(answer, Failure):
                self._answered = True
                self._adopt(level, form_refused)
                return answer
            setting = _FLAGS.get(answer.setting, answer.setting)
            if answer.kind == "setting" and setting not in without and self.settings.do_without(answer):
                without.add(setting)
            elif answer.too_long and most is None and (most := self.settings.least_room()) is not None:
                continue
            elif answer.kind == "format" and level + 1 < len(self._levels):
                level, form_refused = level + 1, answer.reason
            elif answer.kind in ("exchange", "format"):
                only_form = answer.kind == "format" and len(self._levels) == 1 and self._levels != ("text",)
                raise NoAnswer(answer.reason, answer.lasting, unreachable=False, general=only_form)
            elif answer.kind == "forbidden" and (self._answered or self._answered_before):
                # another key may have been good in an earlier run: then several of these are a reason to stop
                raise NoAnswer(answer.reason, False, unreachable=not self._answered)
            elif answer.kind in ("stop", "forbidden", "setting"):
                raise JudgeStopped(self._explained(answer))
            elif answer.wait and answer.reason.startswith("HTTP 429") and waited < _PATIENCE:
                # a limit on the rate is no failure of the server: it passes, however many wait for it to
                waited += max(1.0, answer.wait)
                await self._wait(tries, answer)
            elif tries >= self._max_retries or waited >= _PATIENCE:
                over = f", {waited:.0f} s waited at its word" if waited else ""
                reason = f"no answer in {tries + 1} tries{over}; the last: {answer.reason}"
                raise NoAnswer(reason, False, unreachable=True, general=answer.silent)
            else:
                await self._wait(tries, answer)
                tries += 1

    async def _send(self, messages: list[dict[str, str]], form: Structured, room: int) -> dict[str, Any] | Failure:
        async with self._slots:
            await self._leave_alone()
            # a token is at least one byte
            num_bytes = sum(len(text.encode()) for text in (*(m["content"] for m in messages), str(self._schema)))
            worst = self._spending.dollars(num_bytes + _FRAME_TOKENS, room)
            await self._afford(worst)
            sent = received = 0
            answered, unsure = False, True  # so it stays where this is broken off
            try:
                answer = await self._try(messages, form, room)
                if isinstance(answer, Failure):
                    unsure = answer.unsure
                    sent = num_bytes // CHARS_PER_TOKEN if unsure else 0
                    return answer
                answered, unsure = True, False
                sent, received = _tokens(answer, num_bytes)
                return _choice(answer)
            finally:
                self._spending.settle(worst, sent, received, answered, unsure)
                async with self._settled:
                    self._settled.notify_all()

    async def _try(self, messages: list[dict[str, str]], form: Structured, room: int) -> dict[str, Any] | Failure:
        request = {**self.settings.options(room), **self._form(form), "messages": messages}
        try:
            async with asyncio.timeout(self._timeout):
                response = await self._client.chat.completions.with_raw_response.create(**request)
            # not the client's own reading, which takes whatever comes for an answer
            answer = json.loads(response.content)
        except self._openai.APIStatusError as error:
            return status_failure(error, self._scrub)
        except TimeoutError:
            return Failure("again", f"no answer within {self._timeout:g} s", silent=True, unsure=True)
        except self._openai.APIConnectionError as error:
            cause = error.__cause__ or error
            kind = type(cause).__name__
            unsure = not kind.startswith(_UNSENT)
            return Failure("again", shown(f"{kind}: {cause}", self._scrub), silent=True, unsure=unsure)
        except TooLongError as error:
            return Failure("again", str(error), unsure=True)
        except (ValueError, RecursionError):
            return Failure("again", "an answer that is not JSON", unsure=True)
        if isinstance(answer, dict) and _choice(answer):
            return answer
        if isinstance(answer, dict) and (said := answer.get("error")):  # of servers that call every answer a success
            said = said.get("message", said) if isinstance(said, dict) else said
            return Failure("again", shown(f"an error: {said}", self._scrub), unsure=True)
        return Failure("again", "an answer without choices", unsure=True)

    def _form(self, form: Structured) -> dict[str, Any]:
        if form == "json_schema":
            named = {"name": "verdicts", "strict": True, "schema": self._schema}
            return {"response_format": {"type": form, "json_schema": named}}
        return {"response_format": {"type": form}} if form == "json_object" else {}

    def _adopt(self, level: int, refused: str | None) -> None:
        # only what then worked is kept for the others: one odd exchange must not downgrade the run
        if level > self._level:
            self._level = level
            warnings.warn(
                f"{self.url} does not answer in the form {self._levels[level - 1]} ({refused}); "
                f"from here on it is asked for {self._levels[level]}",
                stacklevel=2,
            )

    async def _wait(self, tries: int, failure: Failure) -> None:
        if failure.wait:
            # meant for this client, not for one request: whatever is about to be sent waits, this one among it
            now = asyncio.get_running_loop().time()
            self._quiet_until = max(self._quiet_until, now + failure.wait)
        else:
            await pause(min(_LONGEST_WAIT, _FIRST_WAIT * 2**tries) * random.uniform(0.5, 1.0))

    async def _leave_alone(self) -> None:
        until = 0.0
        while until < self._quiet_until:  # another request may be told of a later time meanwhile
            until = self._quiet_until
            left = until - asyncio.get_running_loop().time()
            if left > 0:
                await pause(left * random.uniform(1.0, 1.1))

    async def _afford(self, dollars: float) -> None:
        async with self._settled:
            while not self._spending.reserve(dollars):
                if self._spending.reserved <= 1e-12:
                    raise MaxCostReached(
                        f"max_cost is ${self._spending.limit:g}, ${self._spending.spent:.6f} of it is spent, and the "
                        f"next request may take ${dollars:.6f}. Everything judged so far is stored: the same command "
                        "with a higher max_cost goes on from here"
                    )
                await self._settled.wait()

    def _explained(self, failure: Failure) -> str:
        if failure.reason.startswith(("HTTP 401", "HTTP 403")):
            what = f"{self.url} refuses the key in the environment variable {self._key_from}"
            if not self._has_key:
                what = f"{self.url} needs a key, and the environment variable {self._key_from} is not set"
        else:
            what = f"{self.url} cannot be asked for {self.settings.model!r}"
            if failure.setting:
                what += f" with this {_FLAGS.get(failure.setting, failure.setting)}"
        return f"{what} ({failure.reason}). Everything judged so far is stored: the same command goes on from here"


def _only_ours(key: str) -> Callable[[Any], Awaitable[None]]:
    async def strip(request: Any) -> None:
        # the client adds what the environment holds for OpenAI: an organization, a project, headers
        for name in list(request.headers):
            if name not in _HEADERS and not name.startswith("x-stainless-"):
                del request.headers[name]
        request.headers["authorization"] = f"Bearer {key}"

    return strip


def _choice(answer: Mapping[str, Any]) -> dict[str, Any]:
    choices = answer.get("choices")
    first = choices[0] if isinstance(choices, list) and choices else answer_withheld(answer)
    return first if isinstance(first, dict) else {}


def _tokens(answer: Mapping[str, Any], num_bytes: int) -> tuple[int, int]:
    usage = answer.get("usage")
    usage = usage if isinstance(usage, Mapping) else {}
    counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
    guesses = num_bytes // CHARS_PER_TOKEN, len(json.dumps(_choice(answer).get("message"))) // CHARS_PER_TOKEN
    sent, received = (
        count if isinstance(count, int) and 0 <= count < _MOST_TOKENS else guess
        for count, guess in zip(counts, guesses, strict=True)
    )
    return sent, received
