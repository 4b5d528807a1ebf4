"""Reads the verdicts out of a model judge's reply. What cannot be read is unscored, never false.

A judge may quote the text that it judges, and that text may hold verdicts of its own making. So nothing is taken that
could be either: not the first of several differing objects, nor one whose verdicts the judged texts hold too, in any of
the spellings that `_said` knows, unless it is the whole reply.
"""

import html
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradsteer.data.thoughts import answer_start
from gradsteer.judges.base import Exchange, Verdicts
from gradsteer.judges.objects import FoundObject, find_objects, nested_objects
from gradsteer.judges.withheld import named, said, withheld_choice

# Raised when a reply would be read otherwise than before, so that verdicts stored under other rules are not reused.
READING_VERSION = 5

_MAX_CHARS = 200_000
_TRUE = {"true", "yes", "1"}
_FALSE = {"false", "no", "0"}
_FENCE = "```"
# The first end of a thought: where the judged texts hold one, a later one, or one without a beginning, may be quoted.
_THOUGHT = re.compile(r"\s*<think>.*?</think>", re.DOTALL)
_UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control and format characters, halves of pairs, separators of lines
_JOINS = set(":=|>\u2192\u21d2i")  # the last of "is"
_THOUGHT_END = re.compile(  # in a text made plain
    r"/\W{0,8}(?:seed\W{0,8})?(?:think|thought)|end\W{0,8}_\W{0,8}thinking|channel\W{0,20}final"
)
_ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")


@dataclass(frozen=True)
class Reading:
    """What a reply says.

    Args:
        verdicts: A value for each behavior.
        readable: Whether the reply is one answer; if not, asking once more may give one.
        cut: Whether it ended before the answer did: asking at once would only pay for as much again.
    """

    verdicts: Verdicts
    readable: bool = True
    cut: bool = False

    @property
    def lasting(self) -> bool:
        """Whether the reply is the judge's last word on the exchange: an answer, or its refusal to give one."""
        return self.readable and not self.cut


def unscored(behaviors: Sequence[str], reason: str) -> Verdicts:
    """No verdict for any behavior, for one reason."""
    return Verdicts(dict.fromkeys(behaviors), dict.fromkeys(behaviors, reason))


def read_choice(
    choice: Mapping[str, Any], behaviors: Sequence[str], exchange: Exchange, max_chars: int | None = None
) -> Reading:
    """Reads one of a chat completion's `choices`: a cut, withheld or refused reply gives no verdict.

    Of a response that was sent without its middle, false is no verdict: what is shown may stand in what was left out.
    True is one.

    Args:
        choice: With `message` and `finish_reason`, as the chat completions API has them.
        behaviors: All that was asked about.
        exchange: What was judged, to tell a verdict from a quotation.
        max_chars: Of the response that were sent, as `question` has it; None for all.
    """
    if why := withheld_choice(choice):
        return Reading(unscored(behaviors, named(why)))
    if choice.get("finish_reason") == "length":
        return Reading(unscored(behaviors, "the judge's reply was cut off at max_tokens"), cut=True)
    message = choice.get("message")
    content = message.get("content") if isinstance(message, Mapping) else None
    reading = read_reply(_content(content), behaviors, exchange)
    if max_chars is None or len(exchange.response) <= max_chars:
        return reading
    return replace(reading, verdicts=_of_a_part(reading.verdicts, len(exchange.response), max_chars))


def read_reply(text: str, behaviors: Sequence[str], exchange: Exchange) -> Reading:
    """Reads a whole reply: a JSON object, alone, in a code fence or with text around it, behind the judge's thought.

    Accepted values: true and false in any case, with quotes or without, yes, no, 1 and 0. Other keys are ignored.
    """
    if len(text) > _MAX_CHARS:
        return Reading(unscored(behaviors, f"the judge's reply has {len(text)} characters"), readable=False)
    body = _behind_thought(text, exchange)
    if body is None:
        return Reading(unscored(behaviors, f"the judge's reply ended within its thought: {said(text)}"), readable=False)
    objects, broken = find_objects(body)
    claims = [
        (inner, claim) for outer in objects for inner in nested_objects(outer) if (claim := _claim(inner, behaviors))
    ]
    if not (objects or broken) and _is_refusal(body, behaviors):
        return Reading(unscored(behaviors, named(f"the judge refused: {said(text)}")))
    if not claims:
        return Reading(unscored(behaviors, f"the judge's reply holds no verdicts: {said(text)}"), readable=False)
    if any(_speaks_of(fragment, behaviors) for fragment in broken):
        return _ambiguous(behaviors, "an unfinished object beside its verdicts", text)
    first = claims[0][1]
    if any(claim != first for _, claim in claims) or any(len(set(values)) > 1 for values in first.values()):
        return _ambiguous(behaviors, "verdicts that differ", text)
    if _unfenced(body) not in {found.text for found, _ in claims}:
        verdicts = {(behavior, values[0]) for behavior, values in first.items() if isinstance(values[0], bool)}
        if verdicts and verdicts <= _said(exchange.prompt, behaviors) | _said(exchange.response, behaviors):
            return _ambiguous(behaviors, "verdicts that may be quoted from the judged text", text)
    return _reading({behavior: values[0] for behavior, values in first.items()}, behaviors)


def _is_refusal(text: str, behaviors: Sequence[str]) -> bool:
    """Whether an answer is a refusal in words, and says nothing of any behavior."""
    from gradsteer.evaluation.refusals import looks_like_refusal  # numpy comes with it

    return not any(name.casefold() in text.casefold() for name in behaviors) and looks_like_refusal(text)


def _behind_thought(text: str, exchange: Exchange) -> str | None:
    """A judge's answer, behind its last thought; None where it ended within one.

    Where a judged text holds the end of a thought, a judge may quote it: then only a thought that opens the reply is
    one, up to its first end.
    """
    start = answer_start(text)
    if start == 0:
        return text
    if any(_THOUGHT_END.search(_legible(each)) for each in (exchange.prompt, exchange.response)):
        thought = _THOUGHT.match(text)
        return text[thought.end() :] if thought else text
    return None if start is None else text[start:]


def _unfenced(text: str) -> str:
    """What a text holds without blanks around it and, where it is in a code fence as a whole, without the fence."""
    text = text.strip()
    if len(text) < 2 * len(_FENCE) or not text.startswith(_FENCE) or not text.endswith(_FENCE):
        return text
    return re.sub(r"\A\w+", "", text[len(_FENCE) : -len(_FENCE)]).strip()


def _reading(said: Mapping[str, bool | str], behaviors: Sequence[str]) -> Reading:
    values: dict[str, bool | None] = {}
    reasons = {}
    for behavior in behaviors:
        value = said.get(behavior)
        values[behavior] = value if isinstance(value, bool) else None
        if value is None:
            reasons[behavior] = "the judge's reply says nothing of it"
        elif not isinstance(value, bool):
            reasons[behavior] = f"the judge's reply says {value}, neither true nor false"
    return Reading(Verdicts(values, reasons), readable=all(behavior in said for behavior in behaviors))


def _of_a_part(verdicts: Verdicts, num_chars: int, max_chars: int) -> Verdicts:
    """Those on a response of which the judge was sent its two ends."""
    reason = f"the response was too long to be judged whole: {num_chars} characters, {max_chars} of them sent"
    unseen = [behavior for behavior, value in verdicts.values.items() if value is False]
    return Verdicts(verdicts.values | dict.fromkeys(unseen), verdicts.unscored | dict.fromkeys(unseen, reason))


def _ambiguous(behaviors: Sequence[str], what: str, text: str) -> Reading:
    return Reading(unscored(behaviors, f"the judge's reply holds {what}: {said(text)}"), readable=False)


def _claim(found: FoundObject, behaviors: Sequence[str]) -> dict[str, tuple[bool | str, ...]]:
    names = {behavior.casefold(): behavior for behavior in behaviors}
    claim: dict[str, tuple[bool | str, ...]] = {}
    for key, value in found.pairs:
        if (behavior := names.get(key.strip().casefold())) is not None:
            claim[behavior] = (*claim.get(behavior, ()), _verdict(value))
    return claim


def _verdict(value: object) -> bool | str:
    # a verdict, or how the thing that is none is shown
    if value is None:
        return "null"
    if not isinstance(value, (bool, float, str)):
        return "a list or an object"
    word = str(int(value)) if value in (0.0, 1.0) else str(value).strip().casefold()
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    return said(value)


def _said(text: str, behaviors: Sequence[str]) -> set[tuple[str, bool]]:
    """The verdicts that a judged text holds, so that a judge may have them from there.

    In its objects, and wherever a behavior's name is followed by a colon, an equals sign, a bar, an arrow or "is" and a
    value, whatever quotes, backslashes or invisible characters are between: judges mend what they quote.
    """
    text = _sent(text)
    said = {
        (behavior, value)
        for outer in find_objects(text)[0]
        for inner in nested_objects(outer)
        for behavior, values in _claim(inner, behaviors).items()
        for value in values
        if isinstance(value, bool)
    }
    plain = _legible(text)
    for behavior in behaviors:
        form = rf"{re.escape(_plain(behavior))}([\W_]*+(?:is[\W_]++)?)({'|'.join(sorted(_TRUE | _FALSE))})(?![^\W_])"
        said |= {(behavior, word in _TRUE) for between, word in re.findall(form, plain) if _JOINS & set(between)}
    return said


def _sent(text: str) -> str:
    """What judges are sent of a text: of a very long one its ends."""
    return text if len(text) <= 2 * _MAX_CHARS else f"{text[:_MAX_CHARS]}\n{text[-_MAX_CHARS:]}"


def _legible(text: str) -> str:
    """What is sent of a text, with its escapes undone, made plain."""
    return _plain(html.unescape(_ESCAPE.sub(lambda found: chr(int(found[1], 16)), _sent(text))))


def _plain(text: str) -> str:
    """In small letters, without backslashes, invisible characters and what stands for such."""
    text = unicodedata.normalize("NFKC", text)
    return "".join(
        c for c in text if c in "\n\r\t" or unicodedata.category(c) not in _UNSEEN and c not in "\\\ufffd"
    ).casefold()


def _speaks_of(fragment: str, behaviors: Sequence[str]) -> bool:
    return any(re.search(rf"{re.escape(name)}[\"']?\s*:", fragment, re.IGNORECASE) for name in behaviors)


def _content(content: object) -> str:
    # some servers give a list of parts where the API has a string
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, Mapping)]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""
