"""A judge that asks a language model behind an OpenAI-compatible server.

One request per exchange brings the verdicts of all behaviors. The server sees the rubrics, the prompt and the
response, and nothing else.
"""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import get_args

from gradsteer.judges.background import BackgroundLoop
from gradsteer.judges.base import Exchange, Verdicts
from gradsteer.judges.checks import OPENAI_URL, at_least, filled, is_openai, key_in, server_address, variable_name
from gradsteer.judges.completions import Completions, NoAnswer, Structured
from gradsteer.judges.costs import Cost
from gradsteer.judges.failures import JudgeStopped, MaxCostReached
from gradsteer.judges.prices import AS_OF, KNOWN, token_prices
from gradsteer.judges.questions import RULE_VERSION, instructions, question, verdict_schema
from gradsteer.judges.replies import READING_VERSION, Reading, read_choice, unscored
from gradsteer.judges.request_settings import USUAL_THOUGHT, Effort, RequestSettings, thinks
from gradsteer.judges.rubrics import read_rubrics
from gradsteer.judges.spending import CHARS_PER_TOKEN, Spending
from gradsteer.judges.stored import Answer, StoredJudge
from gradsteer.records import text_digest

GONE = 8  # exchanges in a row without an answer: the server is gone
REFUSED = 4 * GONE  # exchanges refused before any was answered: it will answer none


class OpenAIJudge(StoredJudge):
    """A language model judges, over an OpenAI-compatible API. Each exchange is asked about once and its verdict stored.

    An unreadable reply is retried once; after that the response is unscored, and the next run asks again. Permanent
    outcomes are stored: the text is too long for the server, blocked by its filter, or refused by the judge. The API
    key is read from the environment at the first request. A cost estimate needs no key.

    Args:
        rubrics: For each behavior, a description of what counts as showing it, `{"polite": "The reply thanks the
            user."}`. null uses the built-in rubric of that name (harmful, refusal, bridge, recipe). Or a JSON file
            that holds them.
        model: The model's name on the server.
        base_url: URL of an OpenAI-compatible server, such as http://localhost:8000/v1; null for OpenAI itself.
        api_key_env: Name of the environment variable that holds the API key. Your own server may not need one. A key
            is sent over plain http only to this machine.
        structured: How to request the answer's format: by JSON schema, as any JSON object, or by instructions in the
            prompt. auto starts with the schema and falls back to what the server supports. Verdicts are stored under
            the setting given here, not under what the server turned out to support.
        concurrency: Maximum number of concurrent requests.
        timeout: Timeout per request, in seconds.
        max_retries: Retries per response after server or network errors; then the response is unscored and the next
            run asks again. Waits requested by a rate-limiting server do not count, up to 30 minutes in total and 2
            minutes at a time.
        max_tokens: Maximum tokens in an answer, thoughts included; null for 200, and for 4200 with models that think
            (OpenAI's gpt-5 and o-series, and any once an answer was cut). A truncated answer gives no verdict, and the
            next run asks again.
        temperature: The judge's sampling temperature; 0 is greedy, null sends none. A model that takes none is asked
            without, with a warning.
        reasoning_effort: How long a model that thinks is to think: none, minimal, low, medium, high or xhigh, as far as
            the model knows them; null leaves it to the server.
        seed: The judge's sampling seed, for servers that support one; null sends none.
        max_chars: Maximum characters sent of the prompt, and of the response. Longer texts lose their middle, and a
            false on a shortened response is not a verdict.
        max_cost: Budget for this run in dollars: it stops before a request that could exceed it. An aborted request
            counts at its maximum cost; stored verdicts are free. null for no limit.
        prices: Dollars per million input and output tokens, such as [0.15, 0.6]. null uses OpenAI's list prices
            as of June 2026 by model name, whatever the server.
        store: SQLite file for verdicts, created if missing and shared by any number of processes; null keeps
            verdicts in memory only.

    Raises:
        ValueError: If an argument is out of range, a rubric is empty or unknown, or `max_cost` is given but prices
            are not known.
    """

    def __init__(
        self,
        rubrics: dict[str, str | None] | str,
        model: str = "gpt-4o-mini",
        base_url: str | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        structured: Structured = "auto",
        concurrency: int = 16,
        timeout: float = 60.0,
        max_retries: int = 6,
        max_tokens: int | None = None,
        temperature: float | None = 0.0,
        reasoning_effort: Effort | None = None,
        seed: int | None = None,
        max_chars: int = 20_000,
        max_cost: float | None = None,
        prices: list[float] | None = None,
        store: str | None = "lightning_logs/verdicts.sqlite",
    ) -> None:
        super().__init__(store)
        self.rubrics = read_rubrics(rubrics)
        self.model = filled("model", model)
        self.api_key_env = variable_name("api_key_env", api_key_env)
        self.base_url = None if base_url is None else server_address(base_url)
        if structured not in ("auto", "json_schema", "json_object", "text"):
            raise ValueError(f"structured is {structured!r}; accepted: auto, json_schema, json_object, text")
        self.structured: Structured = structured
        self.concurrency = int(at_least("concurrency", concurrency, 1))
        self.timeout = at_least("timeout", timeout, 0.001)
        self.max_retries = int(at_least("max_retries", max_retries, 0))
        self.max_tokens = None if max_tokens is None else int(at_least("max_tokens", max_tokens, 1))
        self.temperature = None if temperature is None else float(at_least("temperature", temperature, 0))
        if reasoning_effort is not None and reasoning_effort not in (efforts := get_args(Effort)):
            raise ValueError(f"reasoning_effort is {reasoning_effort!r}; accepted: {', '.join(efforts)}, or null")
        self.reasoning_effort = reasoning_effort
        self.seed = seed
        self.max_chars = int(at_least("max_chars", max_chars, 2))
        known = token_prices(model, prices)
        if max_cost is not None:
            at_least("max_cost", max_cost, 0)
            if known is None:
                raise ValueError(
                    f"max_cost is {max_cost}, but what {model!r} costs at {self.base_url or OPENAI_URL} is not known; "
                    f"give prices, such as [0.15, 0.6]. Known are OpenAI's, as of {AS_OF}: {', '.join(KNOWN)}"
                )
        self._spending = Spending(known, max_cost)
        self._instructions = instructions(self.rubrics)
        self._lock = threading.Lock()
        self._running: tuple[BackgroundLoop, Completions] | None = None
        self._ever_answered = self._texts_to_blame = False
        self._failed_in_row = 0
        self._last_failure = ""

    @property
    def behaviors(self) -> tuple[str, ...]:
        """The behaviors in the order of `rubrics`."""
        return tuple(self.rubrics)

    @property
    def waits(self) -> bool:
        """True: a server does the work."""
        return True

    def fingerprint(self) -> str:
        """A digest of the rules, the rubrics, the model, the server and all that shapes the request or its reading.

        The server's address is part of it, as another may serve another model under the same name. `structured` and
        the settings are what was asked for, also where the server or the model then took less. Left out are the key
        and what cannot change a verdict: `concurrency`, `timeout`, `max_retries`, `prices`, `max_cost`.
        """
        decides = {
            "judge": "openai",
            "rules": [RULE_VERSION, READING_VERSION],
            "instructions": self._instructions,
            "model": self.model,
            "server": self.base_url or OPENAI_URL,
            "structured": self.structured,
            "sampling": [self.temperature, self.seed, self.max_tokens, self.reasoning_effort],
            "max_chars": self.max_chars,
        }
        return text_digest(json.dumps(decides, sort_keys=True))

    def check(self) -> None:
        """Looks at the key, though not whether the server takes it.

        Raises:
            ValueError: If the key is needed and not set, or is none that can be sent.
        """
        key_in(self.api_key_env, self.base_url)

    def ask(self, exchanges: Sequence[Exchange]) -> Iterator[Answer]:
        """Asks about several at a time; yields answers as they come.

        Raises:
            ValueError: As `check`.
            JudgeStopped: If no verdict can be had: the key refused, the model unknown, `max_cost` reached, or the
                server without an answer to several exchanges in a row.
        """
        # what is stored was answered once, in this very form: what fails now is about single texts, or passes
        self._ever_answered = self._ever_answered or self.store.knows(self.fingerprint())
        loop, server = self._open()
        waiting = iter(exchanges)

        async def work(hand_over: Callable[[Answer], None]) -> None:
            workers = [
                asyncio.create_task(self._work(server, waiting, hand_over))
                for _ in range(min(self.concurrency, len(exchanges)))
            ]
            try:
                await asyncio.gather(*workers)
            except MaxCostReached:
                # what is under way is paid for: take no more, and let it end
                for _ in waiting:
                    pass
                await asyncio.gather(*workers, return_exceptions=True)
                raise
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
            if not self._ever_answered and (
                self._failed_in_row >= GONE or self._failed_in_row and not self._texts_to_blame
            ):
                raise _gone(server.url, self._failed_in_row, self._last_failure)

        yield from loop.stream(work)

    def usage(self) -> Cost:
        """Tokens as the server counted them, guessed from the lengths where it did not say."""
        return self._spending.cost(self.num_stored)

    def estimate(self, num_exchanges: int, prompt_chars: float, response_chars: float) -> Cost:
        """Guesses 4 characters a token, from the real length of the instructions; needs no key.

        A model that is known to think is taken to think for 500 tokens.
        """
        form = json.dumps(verdict_schema(self.behaviors)) if self.structured in ("auto", "json_schema") else ""
        frame = len(self._instructions) + len(question(Exchange("", ""), self.max_chars)) + len(form)
        texts = min(prompt_chars, self.max_chars) + min(response_chars, self.max_chars)
        sent = num_exchanges * (frame + texts) / CHARS_PER_TOKEN
        answer = len(json.dumps(dict.fromkeys(self.behaviors, False))) / CHARS_PER_TOKEN
        received = num_exchanges * (answer + USUAL_THOUGHT * thinks(self.model))
        dollars = None if self._spending.prices is None else self._spending.dollars(sent, received)
        return Cost(num_exchanges, 0, round(sent), round(received), dollars)

    @property
    def max_cost(self) -> float | None:
        """What is left of it for this process once the processes share it."""
        return self._spending.limit

    def share(self, num_processes: int) -> None:
        """Divides `concurrency`, at least 1 for each process, and `max_cost`."""
        self._stop()
        self.concurrency = max(1, self.concurrency // num_processes)
        if self._spending.limit is not None:
            self._spending.limit /= num_processes

    def close(self) -> None:
        """Closes the connections and the store; both open again when they are needed."""
        self._stop()
        super().close()

    async def _work(
        self, server: Completions, waiting: Iterator[Exchange], hand_over: Callable[[Answer], None]
    ) -> None:
        for exchange in waiting:
            try:
                reading = await self._read(server, exchange)
            except NoAnswer as failure:
                hand_over(Answer(exchange, unscored(self.behaviors, failure.reason), lasting=failure.lasting))
                if failure.lasting:
                    self._ever_answered, self._failed_in_row = True, 0
                elif failure.unreachable or not self._ever_answered:
                    self._failed_in_row += 1
                    self._last_failure = failure.reason
                    self._texts_to_blame = self._texts_to_blame or not failure.general
                if self._failed_in_row >= (GONE if failure.unreachable else REFUSED):
                    raise _gone(server.url, self._failed_in_row, failure.reason) from None
            else:
                self._ever_answered, self._failed_in_row = True, 0
                reasons = {name: server.scrub(reason) for name, reason in reading.verdicts.unscored.items()}
                hand_over(Answer(exchange, Verdicts(reading.verdicts.values, reasons), lasting=reading.lasting))

    async def _read(self, server: Completions, exchange: Exchange) -> Reading:
        messages = [
            {"role": "system", "content": self._instructions},
            {"role": "user", "content": question(exchange, self.max_chars)},
        ]
        room = server.settings.max_tokens
        reading = read_choice(await server.complete(messages), self.behaviors, exchange, self.max_chars)
        if reading.cut and server.settings.make_room(room):
            reading = read_choice(await server.complete(messages), self.behaviors, exchange, self.max_chars)
        if not reading.readable:
            second = read_choice(await server.complete(messages), self.behaviors, exchange, self.max_chars)
            if len(second.verdicts.unscored) < len(reading.verdicts.unscored):
                return second
        return reading

    def _open(self) -> tuple[BackgroundLoop, Completions]:
        key = key_in(self.api_key_env, self.base_url)
        settings = RequestSettings(
            self.model, self.temperature, self.seed, self.reasoning_effort, self.max_tokens,
            openai=is_openai(self.base_url or OPENAI_URL),
        )  # fmt: skip

        async def connect() -> Completions:
            return Completions(
                settings, self.base_url, key, self.api_key_env, self.structured, verdict_schema(self.behaviors),
                self.concurrency, self.timeout, self.max_retries, self._spending, self._ever_answered,
            )  # fmt: skip

        with self._lock:
            if self._running is None:
                loop = BackgroundLoop()
                try:
                    self._running = loop, loop.run(connect())
                except BaseException:
                    loop.close()
                    raise
            return self._running

    def _stop(self) -> None:
        with self._lock:
            running, self._running = self._running, None
        if running is not None:
            loop, server = running
            loop.close(server.close())


def _gone(url: str, num_failed: int, reason: str) -> JudgeStopped:
    return JudgeStopped(
        f"{url} gave no verdict for {num_failed} responses in a row, though asked several times ({reason}). Everything "
        "judged so far is stored: the same command goes on from here"
    )
