"""What an option takes, said where its type does not say it plainly."""

import inspect

import gradsteer.judges

# the end of an option -> what it takes
_ACCEPTED = {
    "patterns": 'a list of patterns for each behavior, such as {"bridge": ["golden gate"]}, or a JSON file of them',
    "select": "{rule: target_rate, rate: 0.1} or {rule: selectivity, max_kl: 0.05}, each with keep: N if wanted",
    "piles": 'names with files, or with filters: {"bridge": {"responses": FILE, "where": {"bridge": true}}}',
    "vectors": "names with files in steer and forecast, --steering.vectors.NAME FILE; in attribute, --vectors.NAME "
    '"[PLUS_PILE, MINUS_PILE]"',
    "alphas": '[0.1, 0.2] for every vector, or {"bridge": [0.1]} by vector',
}


def accepted(key: str) -> str | None:
    """What an option takes, by the end of its dotted name; None where its type says it."""
    name = key.rpartition(".")[2]
    if name == "judge":
        judges = {judge: getattr(gradsteer.judges, judge) for judge in gradsteer.judges.__all__}
        own = [judge for judge, it in judges.items() if hasattr(it, "fingerprint") and not inspect.isabstract(it)]
        own.append("GroupJudge")  # which steer and evaluate know, too, of a later package
        return f"{', '.join(own)}, or a judge of your own by its import path, such as my_package.MyJudge"
    return _ACCEPTED.get(name)
