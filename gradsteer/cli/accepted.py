"""What an option takes, said where a parser's own words do not say it plainly."""

import inspect
import re

import gradsteer.judges

# the end of an option -> what it takes
_ACCEPTED = {
    "patterns": 'a list of patterns for each behavior, such as {"bridge": ["golden gate"]}, or a JSON file of them',
    "select": "{rule: target_rate, rate: 0.1} or {rule: selectivity, max_kl: 0.05}, each with keep: N if wanted",
}


def accepted_by(message: str) -> str:
    """A line for the innermost option of a parser's error that is known here; nothing where none is."""
    for key in reversed(list(re.finditer(r'Parser key "([\w.]+)"', message))):
        name = key[1].rpartition(".")[2]
        said = _ACCEPTED.get(name)
        if name == "judge" and "given class_path" not in message[key.end() :]:  # then the class itself is not known
            judges = {judge: getattr(gradsteer.judges, judge) for judge in gradsteer.judges.__all__}
            own = [judge for judge, it in judges.items() if hasattr(it, "fingerprint") and not inspect.isabstract(it)]
            said = f"{', '.join(own)}, or a judge of your own by its import path, such as my_package.MyJudge"
        if said is not None:
            return "" if said in message else f"\n{key[1]} takes: {said}"
    return ""
