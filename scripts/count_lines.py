"""Lines of gradsteer/ by kind: code, docstrings, comments, blank ones.

python scripts/count_lines.py [DIRECTORY ...]
"""

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path


def count(text: str) -> Counter[str]:
    """Lines of one file by kind; a line with code and a comment is code."""
    kinds = ["blank"] * len(text.splitlines())
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            kinds[token.start[0] - 1] = "comment"
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            kinds[token.start[0] - 1 : token.end[0]] = ["code"] * (token.end[0] - token.start[0] + 1)
    for node in ast.walk(ast.parse(text)):
        first = getattr(node, "body", None)
        if isinstance(first, list) and first and isinstance(first[0], ast.Expr):
            value = first[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                kinds[value.lineno - 1 : value.end_lineno] = ["docstring"] * (value.end_lineno - value.lineno + 1)
    return Counter(kinds)


def main(directories: list[str]) -> None:
    for directory in directories or ["gradsteer"]:
        files = sorted(Path(directory).rglob("*.py"))
        total = sum((count(path.read_text(encoding="utf-8")) for path in files), Counter())
        shown = ", ".join(f"{total[kind]:,} {kind}" for kind in ("code", "docstring", "comment", "blank"))
        print(f"{directory}: {total.total():,} lines in {len(files)} files: {shown}")


if __name__ == "__main__":
    main(sys.argv[1:])
