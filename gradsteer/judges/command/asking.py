"""Asking judges about many exchanges: in chunks, each different exchange once, with a bar that says what it costs.

What a judge stores it keeps, whatever stops the asking: the same command goes on from there.
"""

from collections.abc import Mapping, Sequence

from gradsteer.judges import Exchange, Judge, Verdicts
from gradsteer.progress import progress

# large enough to keep a server's workers busy, small enough for a bar that moves
_CHUNK = 128


def ask_all(judges: Mapping[str, Judge], exchanges: Sequence[Exchange]) -> dict[str, dict[Exchange, Verdicts]]:
    """Asks each judge about each different exchange; prints what each took.

    Args:
        judges: by name.
        exchanges: any number, equal ones too.

    Returns:
        Judge's name -> exchange -> verdicts.
    """
    wanted = list(dict.fromkeys(exchanges))
    found: dict[str, dict[Exchange, Verdicts]] = {}
    for name, judge in judges.items():
        verdicts: dict[Exchange, Verdicts] = {}
        with progress(name, total=len(wanted), unit="exchange") as tick:
            for start in range(0, len(wanted), _CHUNK):
                chunk = wanted[start : start + _CHUNK]
                verdicts.update(zip(chunk, judge.judge(chunk), strict=True))
                tick(len(chunk), note=_cost(judge))
        found[name] = verdicts
        unscored = sum(bool(verdict.unscored) for verdict in verdicts.values())
        said = [f"{len(wanted):,} different exchanges"]
        said += [f"{unscored:,} without every verdict"] if unscored else []
        print(f"{name}: {', '.join(said)}{'; ' if _cost(judge) else ''}{_cost(judge)}", flush=True)
    return found


def check_all(judges: Mapping[str, Judge], exchanges: Sequence[Exchange]) -> None:
    """Refuses what would stop a judge, before any of them is asked; not where all its verdicts are stored.

    Args:
        judges: by name.
        exchanges: any number, equal ones too.

    Raises:
        ValueError: as `Judge.check`; names the judge.
    """
    wanted = list(dict.fromkeys(exchanges))
    for name, judge in judges.items():
        if judge.unanswered(wanted):
            try:
                judge.check()
            except ValueError as error:
                raise ValueError(f"the judge {name!r}: {error}") from error


def expect(name: str, judge: Judge, exchanges: Sequence[Exchange]) -> str:
    """What asking a judge about so many exchanges will take, in a line; asks nothing.

    Args:
        name: the judge's.
        judge: it.
        exchanges: any number, equal ones too.
    """
    wanted = list(dict.fromkeys(exchanges))
    new, said = judge.unanswered(wanted), f"{name} ({type(judge).__name__}): {len(wanted):,} different exchanges"
    if len(new) < len(wanted):
        said += f", {len(new):,} of them new to it"
    if not new:
        return f"{said}: nothing to ask"
    prompt_chars = sum(len(exchange.prompt) for exchange in new) / len(new)
    response_chars = sum(len(exchange.response) for exchange in new) / len(new)
    cost = judge.estimate(len(new), prompt_chars, response_chars)
    return f"{said}: " + ("costs nothing" if cost is None else f"about {cost}")


def _cost(judge: Judge) -> str:
    usage = judge.usage()
    return "" if usage is None else str(usage)
