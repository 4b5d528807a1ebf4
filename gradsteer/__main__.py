"""``python -m gradsteer``: answers what it can without importing torch, hands the rest to the command."""

import importlib
import io
import os
import sys
from collections.abc import Sequence

from gradsteer.cli.commands import COMMANDS, Command, overview
from gradsteer.cli.termination import requeue, signals_as_interrupt
from gradsteer.nearest import did_you_mean
from gradsteer.version import __version__


def main(args: Sequence[str] | None = None, *, parse_only: bool = False) -> int:
    """Runs one command line.

    Args:
        args: the words after ``gradsteer``; those of the process by default.
        parse_only: only say whether its options are accepted.

    Returns:
        The exit status: 0; 2 for an error of the user's, which is said in one line; 130 where Ctrl-C ended it, 143
        where SIGTERM did, 138 where SIGUSR1 did.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character that the terminal lacks is no reason to end a run
            stream.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if args is None else args)
    if not words or words[0] in ("-h", "--help", "help"):
        sys.stdout.write(overview())
        return 0
    if words[0] in ("-V", "--version"):
        sys.stdout.write(f"gradsteer {__version__}\n")
        return 0
    command = COMMANDS.get(words[0])
    if command is None:
        hint = did_you_mean(words[0], COMMANDS)
        sys.stderr.write(f"gradsteer: unknown command {words[0]!r}{hint}; accepted: {', '.join(COMMANDS)}\n")
        return 2
    with signals_as_interrupt() as termination:
        try:
            return _serve(command, words, parse_only=parse_only)
        except (KeyboardInterrupt, SystemExit) as end:  # before, in or after the trainer's own care for it
            by_hand = isinstance(end, KeyboardInterrupt) or isinstance(end.__context__, KeyboardInterrupt)
            if termination.told is not None or by_hand:
                how = "interrupted" if termination.told is None else f"ended by {termination.name}"
                sys.stderr.write(f"gradsteer {words[0]}: {how}; the same command goes on with what was kept\n")
            if termination.told is not None:
                requeue(termination)
                return termination.status
            if isinstance(end, SystemExit):
                raise
            return 130


def _serve(command: Command, words: list[str], *, parse_only: bool) -> int:
    served = command.parser if parse_only else command.plain
    target = served or f"gradsteer.cli.lightning_cli:{'check' if parse_only else 'main'}"
    module, function = target.split(":")
    from gradsteer.cli.duplicates import refuse_duplicates
    from gradsteer.cli.failures import FAILURES, said

    try:
        refuse_duplicates(words[1:])
        serve = getattr(importlib.import_module(module), function)
        if parse_only and command.parser:
            serve().parse_args(words[1:])
            return 0
        status = serve(words[1:] if command.plain else words)
    except FAILURES as error:
        line = said(error)
        if line is None or os.environ.get("GRADSTEER_TRACEBACK"):
            raise
        sys.stderr.write(f"gradsteer {words[0]}: error: {line}\n(GRADSTEER_TRACEBACK=1 shows where)\n")
        return 2
    return int(status or 0)


if __name__ == "__main__":
    sys.exit(main())
