"""What a failed request means: try again, do without the JSON schema, give up this exchange, or stop.

Knows the errors of the `openai` client and of the servers that it speaks to; sends nothing.
"""

import email.utils
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from gradsteer.judges.withheld import is_withheld, named

MAX_WAIT = 120.0  # seconds; a server that asks for more is not waited for
_SHOWN = 300  # characters of a server's words

_FORMAT = ("response_format", "json_schema", "json_object", "structured output", "guided", "grammar")
_SETTINGS = ("temperature", "seed", "max_completion_tokens", "max_tokens", "reasoning_effort")
# how servers say that they do not take a setting, or a value of it
_NOT_TAKEN = re.compile(
    r"support|unrecogni[sz]ed|unknown|unexpected|not (?:permitted|allowed|available|accept)|deprecat|extra_forbidden"
    r"|invalid (?:value|parameter|field|argument)|must be|should be",
    re.IGNORECASE,
)
_NO_MONEY = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"}
_TOO_LONG = {"context_length_exceeded", "string_above_max_length"}
_TEXTS = ("context length", "context window", "too long", "too many tokens")


class JudgeStopped(RuntimeError):
    """No further verdict can be had. Those had before are stored."""


class MaxCostReached(JudgeStopped):
    """The next request could pass the limit on dollars; what is under way may end."""


@dataclass(frozen=True)
class Failure:
    """What came of a failed request.

    Args:
        kind: `again`: trying again may help; `format`: the server does not know the form of answer asked for;
            `setting`: its model does not take a setting; `exchange`: this exchange cannot be judged; `forbidden`: this
            exchange, or nothing where the key was never good for any; `stop`: nothing can.
        reason: In words, without the key.
        wait: Seconds that the server asks to be left alone; None where it does not say.
        lasting: For `exchange`: whether the texts themselves are to blame, so that asking another day is no use.
        silent: Whether the server said nothing at all.
        unsure: Whether the server may have done the work, and charge for it.
        setting: For `setting`: its name in the request.
        too_long: Whether texts and answer together are too long for the server.
    """

    kind: Literal["again", "format", "setting", "exchange", "forbidden", "stop"]
    reason: str
    wait: float | None = None
    lasting: bool = False
    silent: bool = False
    unsure: bool = False
    setting: str = ""
    too_long: bool = False


def shown(text: str, scrub: Callable[[str], str]) -> str:
    """A server's words as they may be stored and printed: without the key, in printable ASCII, 300 characters at most.

    Args:
        text: The words.
        scrub: Takes the key out of a text.
    """
    # a part of a key at the end of what is scrubbed is far beyond what is shown
    return scrub(text[: 10 * _SHOWN]).encode("unicode_escape").decode("ascii")[:_SHOWN]


def status_failure(error: Any, scrub: Callable[[str], str]) -> Failure:
    """Reads an `openai.APIStatusError`: a server's answer of HTTP 3xx, 4xx or 5xx.

    Args:
        error: The error.
        scrub: Takes the key out of a text.
    """
    status = int(error.status_code)
    message, code, param = _details(error)
    reason = f"HTTP {status}: {shown(message, scrub)}"
    headers = error.response.headers
    if 300 <= status < 400:
        target = shown(headers.get("location", "nowhere").partition("?")[0], scrub)
        return Failure("stop", f"HTTP {status}: it sends on to {target}, where nothing is sent; is base_url right?")
    speaks_of_form = any(word in message.lower() for word in _FORMAT) or param == "response_format"
    if status in (401, 402) or code in _NO_MONEY:
        return Failure("stop", reason)
    if status in (400, 403, 422, 451) and is_withheld(code, message):
        return Failure("exchange", named(reason), lasting=True)
    if status == 403:
        # a page for people comes from a firewall that looks at texts, not from a server that looks at keys
        return Failure("exchange" if "html" in headers.get("content-type", "") else "forbidden", reason)
    if status in (408, 409, 425, 429) or status >= 500:
        wait = retry_after(headers)
        if wait is not None and wait > MAX_WAIT:
            return Failure("stop", f"{reason}; it asks to be left alone for {wait:.0f} s, more than {MAX_WAIT:.0f} s")
        # a gateway's time was up, the server's perhaps not
        return Failure("again", reason, wait=wait, unsure=status in (504, 524))
    if status in (400, 404, 422) and speaks_of_form:
        return Failure("format", reason)
    blames_text = code in _TOO_LONG or status == 413 or any(words in message.lower() for words in _TEXTS)
    if status in (400, 422) and not blames_text and (setting := _setting(message, param)):
        return Failure("setting", reason, setting=setting)
    if status in (400, 413, 422) and param != "model" and code != "model_not_found":
        return Failure("exchange", reason, lasting=blames_text, too_long=blames_text)
    return Failure("stop", reason)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to be left alone, at least 0; None where it does not say, or not readably.

    Read are `retry-after-ms`, and `retry-after` as seconds or as a date (RFC 9110, section 10.2.3).
    """
    for name, per_second in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / per_second
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(seconds, 0.0)
    try:
        date = email.utils.parsedate_to_datetime(headers.get("retry-after", "")).timestamp()
    except (ValueError, OverflowError):
        return None
    return max(date - time.time(), 0.0)


def _setting(message: str, param: str | None) -> str:
    """The setting that a refusal is about; empty where it is about none."""
    if param is not None:
        return param if param in _SETTINGS else ""
    named = [(found.start(), name) for name in _SETTINGS if (found := re.search(rf"\b{name}\b", message))]
    return min(named)[1] if named and _NOT_TAKEN.search(message) else ""


def _details(error: Any) -> tuple[str, str | None, str | None]:
    body = error.body
    if not isinstance(body, Mapping):
        return str(body or error.message), None, None
    if isinstance(body.get("error"), Mapping):
        body = body["error"]
    message = body.get("message") or body.get("detail") or body.get("error") or error.message
    code, kind, param = (
        value if isinstance(value := body.get(key), str) else None for key in ("code", "type", "param")
    )
    known = next((said for said in (code, kind) if said in _NO_MONEY | _TOO_LONG), None)
    return str(message), known or code or kind, param
