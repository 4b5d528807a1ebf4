"""Judges whose verdicts are costly: each is asked for once, and stored as soon as it is there."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from gradsteer.judges.base import Exchange, Judge, Verdicts
from gradsteer.judges.store import VerdictStore


@dataclass(frozen=True)
class Answer:
    """What came of one question.

    Args:
        exchange: What was asked about.
        verdicts: What was found.
        lasting: Whether it is the last word on the exchange, so that it is stored. Verdicts are, and what was decided
            about the texts for good: too long, withheld by a filter, refused. A server that could not be reached is
            not, nor a reply that cannot be read: the next run asks again.
    """

    exchange: Exchange
    verdicts: Verdicts
    lasting: bool = True


class Missing(list[Exchange]):
    """Exchanges to ask about, taken one after the other until `enough` is set."""

    enough = False

    def __iter__(self) -> Iterator[Exchange]:
        for exchange in super().__iter__():
            if self.enough:
                return
            yield exchange


class StoredJudge(Judge):
    """Looks each exchange up before it asks; equal exchanges are asked about once, but for answers that do not last.

    Args:
        store: SQLite file of verdicts, made where it does not exist, shared by any number of processes; None keeps
            verdicts in memory, for as long as the judge lives.
    """

    def __init__(self, store: str | None = "lightning_logs/verdicts.sqlite") -> None:
        self.store = VerdictStore(store)
        self.num_stored = 0

    @abstractmethod
    def ask(self, exchanges: Sequence[Exchange]) -> Iterator[Answer]:
        """Asks about each of some different exchanges; yields each answer as it comes, in any order.

        What makes every verdict impossible raises; what was yielded before that is kept.
        """

    def judge(self, exchanges: Sequence[Exchange]) -> list[Verdicts]:
        """Verdicts from the store, the missing ones asked for and stored one by one where they last.

        What another process has stored meanwhile counts. Where something cannot be stored, no more is asked for; the
        answers to what was under way, paid for already, are stored as far as they can be.
        """
        fingerprint = self.fingerprint()
        wanted = list(dict.fromkeys(exchanges))
        found = self.store.read(fingerprint, wanted)
        self.num_stored += sum(exchange in found for exchange in exchanges)
        missing = Missing(exchange for exchange in wanted if exchange not in found)
        unsaved: list[Answer] = []
        broken: Exception | None = None
        try:
            for answer in self.ask(missing) if missing else ():
                found[answer.exchange] = answer.verdicts
                if not answer.lasting:
                    continue
                try:
                    if broken is None:
                        found[answer.exchange] = self.store.write(fingerprint, answer.exchange, answer.verdicts)
                    else:
                        unsaved.append(answer)
                except (OSError, ValueError) as error:
                    broken, missing.enough = error, True
                    unsaved.append(answer)
        finally:
            with suppress(OSError, ValueError):
                for answer in unsaved:
                    self.store.write(fingerprint, answer.exchange, answer.verdicts)
        if broken is not None:
            raise broken
        return [found[exchange] for exchange in exchanges]

    def unanswered(self, exchanges: Sequence[Exchange]) -> list[Exchange]:
        """Those that the store does not hold; a store that is not there yet is not made by asking what is in it."""
        path = self.store.path
        stored = self.store.read(self.fingerprint(), exchanges) if path is None or path.exists() else {}
        return [exchange for exchange in exchanges if exchange not in stored]

    def close(self) -> None:
        """Closes the store; opens again when it is needed."""
        self.store.close()
