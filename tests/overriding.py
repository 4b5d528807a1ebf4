"""Command lines of tests: a common one and what differs in it, of which the last counts.

The product refuses a flag that is given twice; `gradsteer.__main__.main` as the tests import it drops the earlier one.
"""

from functools import wraps

import gradsteer.__main__ as program


def overridden(words):
    """The words without flags that are given again later, and without parts of a mapping that is."""
    words = [*map(str, words)]
    end = words.index("--") if "--" in words else len(words)
    starts = [place for place, word in enumerate(words[:end]) if word.startswith("--")]
    if not starts:
        return words
    kept = words[: starts[0]]
    groups = [words[start:stop] for start, stop in zip(starts, [*starts[1:], end], strict=True)]
    names = [group[0].partition("=")[0] for group in groups]
    for place, group in enumerate(groups):
        wholes = [
            later.partition("=")[0]
            for later, *value in groups[place + 1 :]
            if any(each.startswith("{") for each in [later.partition("=")[2], *value])
        ]
        again = names[place] in names[place + 1 :] or any(names[place].startswith(f"{whole}.") for whole in wholes)
        if not again or names[place] == "--config" or names[place].endswith("+"):
            kept += group
    return [*kept, *words[end:]]


if not hasattr(program.main, "__wrapped__"):

    @wraps(program.main)
    def main(args=None, **options):
        """The program, given what `overridden` leaves of the words."""
        return main.__wrapped__(None if args is None else overridden(args), **options)

    program.main = main
