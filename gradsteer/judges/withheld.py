"""Answers that a judge, its server or a filter withholds: the judged text is why, so nobody asks again.

Such replies are the ones that are measured, more often than not. They are unscored for good, under a name of their own
(`WITHHELD`), and counted apart: leaving them out is a selection.
"""

import re
from collections.abc import Mapping
from typing import Any

from gradsteer.data.response_rows import WITHHELD

# reasons to end an answer, of OpenAI, Azure, Gemini, Anthropic, Bedrock and gateways to them, in one spelling
_REASONS = {
    "content_filter", "content_filtered", "contentfilter", "safety", "image_safety", "recitation", "blocklist",
    "prohibited_content", "spii", "refusal", "sensitive", "blocked", "guardrail_intervened", "moderation",
}  # fmt: skip
_CODES = {
    "content_filter", "content_policy_violation", "responsibleaipolicyviolation", "invalid_prompt",
    "moderation_blocked", "data_inspection_failed", "datainspectionfailed", "prompt_blocked", "safety",
    "prohibited_content",
}  # fmt: skip
_WORDS = re.compile(
    r"content (?:policy|management|filter)|usage polic|flagged|safety (?:system|filter|polic|reason)"
    r"|content exists risk|inappropriate content|moderation|blocked by (?:content|safety)|sensitive (?:content|words)"
    r"|prompt (?:was|is|has been) blocked",
    re.IGNORECASE,
)
_LOOKED_AT = 300  # characters of an error: further on it may repeat the judged text


def withheld_choice(choice: Mapping[str, Any]) -> str | None:
    """Why one of a chat completion's `choices` is no answer, though it came; None for an answer.

    Args:
        choice: With `message` and `finish_reason`, as the chat completions API has them.
    """
    if WITHHELD in choice:
        return str(choice[WITHHELD])
    given = choice.get("message")
    message: Mapping[str, Any] = given if isinstance(given, Mapping) else {}
    if refusal := message.get("refusal"):
        return f"the judge refused: {said(refusal)}"
    for key in ("finish_reason", "native_finish_reason", "stop_reason"):
        words = re.findall(r"[a-z_]+", str(choice.get(key) or "").lower().replace("-", "_"))
        if found := next((word for word in words if word in _REASONS), None):
            return str(found)
    # one that was cut, broke off or ended within its thought is no answer for another reason
    broke_off = choice.get("error") or choice.get("finish_reason") in ("length", "error")
    other = broke_off or any(message.get(key) for key in ("reasoning_content", "reasoning", "tool_calls"))
    return "an answer of null" if message.get("content") is None and not other else None


def answer_withheld(answer: Mapping[str, Any]) -> dict[str, str] | None:
    """For an answer without a choice: what stands for one, for `withheld_choice` to read; None where it just failed."""
    why = _why_none(answer)
    return None if why is None else {WITHHELD: why}


def _why_none(answer: Mapping[str, Any]) -> str | None:
    error = answer.get("error")
    if isinstance(error, Mapping):
        code, message = error.get("code") or error.get("type"), str(error.get("message"))
        return f"an error: {said(message)}" if is_withheld(code if isinstance(code, str) else None, message) else None
    if error or "choices" not in answer or answer["choices"]:
        return None
    feedback = answer.get("promptFeedback") or answer.get("prompt_feedback")
    block = feedback.get("blockReason") or feedback.get("block_reason") if isinstance(feedback, Mapping) else None
    return "no choices" + (f" ({said(block)})" if block else "")


def is_withheld(code: str | None, message: str) -> bool:
    """Whether an error says that a filter took exception to the text.

    Args:
        code: The error's, or its type.
        message: The server's words.
    """
    return (code or "").lower() in _CODES or _WORDS.search(message[:_LOOKED_AT]) is not None


def said(value: object) -> str:
    """Words of a judge or its server, as they may be stored and shown: printable ASCII in quotes, 120 characters."""
    text = value if isinstance(value, str) else str(value)
    # ascii: a reason is stored and logged, so no control characters and no lone surrogates
    return ascii(text if len(text) <= 120 else f"{text[:117]}...")


def named(why: str) -> str:
    """The reason under which a withheld verdict is stored and counted."""
    return f"{WITHHELD}: {why}"
