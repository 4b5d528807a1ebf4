"""Why no response is in a pile: which rows have the verdicts that it asks for and are not counted, and what to do."""

from collections.abc import Mapping

from gradsteer.data.response_rows import Row, is_unanswered, verdict_of

_NAMED = 3


def why_empty(rows: list[Row], where: Mapping[str, bool]) -> str:
    """The end of a message on an empty pile; nothing where the responses simply have other verdicts.

    Args:
        rows: of the response file, each with its ``file:line``.
        where: the verdicts that the pile asks for.
    """
    asked = [
        (place, row)
        for place, row in rows
        if all((row.get("verdicts") or {}).get(behavior) is wanted for behavior, wanted in where.items())
    ]
    cut = [place for place, row in asked if is_unanswered(row)]
    degenerate = [place for place, row in asked if row.get("degenerate") and place not in cut]
    unscored = [place for place, row in rows if any(verdict_of(row, behavior) is None for behavior in where)]
    said = []
    if degenerate:
        said.append(
            f"{_rows(degenerate)} match but are degenerate (empty, looping or incoherent): sample more prompts or "
            "samples, or give the file itself as the pile to take every row"
        )
    if cut:
        said.append(f"{_rows(cut)} match but end within their thought: sample with a larger --model.max_new_tokens")
    if not said and len(unscored) == len(rows):
        said.append(f"{_rows(unscored)} lack a verdict: judge them (gradsteer judge --write DIRECTORY)")
    return "".join(f"; {each}" for each in said)


def _rows(places: list[str]) -> str:
    named = ", ".join(places[:_NAMED])
    return f"{len(places)} ({named}{', ...' if len(places) > _NAMED else ''})"
