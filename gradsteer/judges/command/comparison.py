"""Several judges' verdicts on the same responses: rates and agreement, by file and overall."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from gradsteer.data.response_rows import is_withheld
from gradsteer.evaluation.agreement import group_agreement, pair_agreement
from gradsteer.evaluation.bootstrap import PromptBootstrap
from gradsteer.evaluation.counting import reasons_text
from gradsteer.evaluation.judge_error import JudgeError, corrected_rate
from gradsteer.evaluation.statistics import rate_with_interval
from gradsteer.evaluation.withheld import Withheld, compared
from gradsteer.judges import Verdicts
from gradsteer.judges.command.inputs import ResponseFile

DRAWS = 1000
Row = dict[str, Any]
Judged = Mapping[str, Sequence[Sequence[Verdicts]]]  # judge's name -> (files, responses)


def rates(
    files: Sequence[ResponseFile],
    judged: Judged,
    behaviors: Mapping[str, Sequence[str]],
    errors: Mapping[str, Mapping[str, JudgeError]],
) -> list[Row]:
    """The rate of every file, judge and behavior, as it is and corrected.

    Degenerate responses are counted on their own: they are in no rate.

    Args:
        files: the responses.
        judged: the verdicts on them.
        behaviors: judge's name -> those that it judges.
        errors: judge's name -> behavior -> its error on a labelled set.

    Returns:
        Rows with ``file``, ``condition``, ``judge``, ``behavior``, the fields of a `Rate`, and ``corrected``: as
        `corrected_rate` gives it, None without an error. Where the judge withheld verdicts, ``withheld``: the fields of
        a `Withheld`, compared with the other files.
    """
    rows: list[Row] = []
    withheld: dict[tuple[str, str], dict[str, Withheld]] = {}
    for number, file in enumerate(files):
        clear = [index for index, degenerate in enumerate(file.degenerate) if not degenerate]
        clusters = [file.prompts[index] for index in clear]
        for judge, found in judged.items():
            for behavior in behaviors[judge]:
                verdicts = [found[number][index].values[behavior] for index in clear]
                rate = rate_with_interval(verdicts, clusters, num_degenerate=len(file) - len(clear))
                error, corrected = errors.get(judge, {}).get(behavior), None
                if error is not None:
                    corrected = corrected_rate(rate.num_scored, rate.num_positive, rate.effective_n or 0.0, error)
                kept = [is_withheld(found[number][index].unscored.get(behavior, "")) for index in clear]
                if (each := Withheld.count(verdicts, kept, clusters)) is not None:
                    withheld.setdefault((judge, behavior), {})[file.path] = each
                names = {"file": file.path, "condition": file.condition, "judge": judge, "behavior": behavior}
                rows.append({**names, **rate.to_dict(), "corrected": corrected})
    withheld = {key: compared(found) for key, found in withheld.items()}
    for row in rows:
        counted = withheld.get((row["judge"], row["behavior"]), {}).get(row["file"])
        row |= {"withheld": counted.to_dict()} if counted is not None and counted.num_withheld else {}
    return rows


def agreements(
    files: Sequence[ResponseFile], judged: Judged, behaviors: Mapping[str, Sequence[str]]
) -> tuple[list[Row], list[Row]]:
    """How far the judges agree, in all (``file`` is None) and in every file; degenerate responses take part.

    Args:
        files: the responses.
        judged: the verdicts on them.
        behaviors: judge's name -> those that it judges.

    Returns:
        Rows of every two judges and behavior that both judge: ``file``, ``condition``, ``first``, ``second``,
        ``behavior``, ``num_degenerate`` and the fields of a `PairAgreement`; and rows of every behavior that two or
        more judge, with ``judges`` and the fields of a `GroupAgreement`.
    """
    pairs: list[Row] = []
    groups: list[Row] = []
    every = range(len(files))
    scopes: list[tuple[str | None, str | None, Sequence[int]]] = [(None, None, every)]
    scopes += [(files[number].path, files[number].condition, [number]) for number in every]
    names = list(dict.fromkeys(behavior for of_judge in behaviors.values() for behavior in of_judge))
    for path, condition, numbers in scopes:
        prompts = [prompt for number in numbers for prompt in files[number].prompts]
        bootstrap = PromptBootstrap.draw(_numbered(prompts), draws=DRAWS, seed=0)
        where = {
            "file": path,
            "condition": condition,
            "num_degenerate": sum(sum(files[number].degenerate) for number in numbers),
        }
        for behavior in names:
            verdicts = {
                judge: [verdict.values[behavior] for number in numbers for verdict in found[number]]
                for judge, found in judged.items()
                if behavior in behaviors[judge]
            }
            for first, second in combinations(verdicts, 2):
                agreement = pair_agreement(verdicts[first], verdicts[second], bootstrap)
                pairs.append({**where, "first": first, "second": second, "behavior": behavior, **agreement.to_dict()})
            if len(verdicts) > 1:
                group = group_agreement(list(verdicts.values()), bootstrap)
                groups.append({**where, "judges": list(verdicts), "behavior": behavior, **group.to_dict()})
    return pairs, groups


def too_many_unscored(
    names: Sequence[str], verdicts: Sequence[Sequence[Verdicts]], behaviors: Sequence[str], limit: float
) -> str | None:
    """Says so where the share of verdicts that a judge did not give passes the limit; None where none does.

    Args:
        names: what each group of responses is called, such as a file's path.
        verdicts: (groups, responses) the judge's. Degenerate responses are left out, as of rates.
        behaviors: those that it judges.
        limit: the share, from 0 to 1.
    """
    for name, found in zip(names, verdicts, strict=True):
        for behavior in behaviors:
            reasons = [verdict.unscored.get(behavior, "") for verdict in found]
            reasons = [reason for reason in reasons if not is_withheld(reason)]  # which asking again would not bring
            total, missing = len(reasons), [reason for reason in reasons if reason]
            if len(missing) <= limit * total:
                continue
            return (
                f"{name}: {len(missing)} of {total} verdicts on {behavior!r} ({100 * len(missing) / total:.1f}%) are "
                f"unscored, more than --max_unscored {limit:g} allows. Reasons: {reasons_text(missing)}"
            )
    return None


def _numbered(prompts: Sequence[str]) -> np.ndarray:
    """(responses,) the number of each one's prompt, from 0."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(prompt, len(numbers)) for prompt in prompts])
