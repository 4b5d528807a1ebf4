"""Vectors written as sums of others: ``bridge + recipe``, ``bridge - 0.5 * recipe``, ``-(a + b) / 2``.

The text is parsed, never evaluated.
"""

import ast
import math
from collections.abc import Iterable, Mapping

from gradsteer.vectors.metadata import merged_prompts
from gradsteer.vectors.parameter_vectors import SteeringVector

Coefficients = dict[str, float]
_OF_A_CONTRAST = ("plus", "minus", "calibration", "split_half", "derivation", "permutation", "graddiff")

# what reading a text raises: no Python, a null byte, or nested too deep
_UNREADABLE = (SyntaxError, ValueError, RecursionError, MemoryError)


def is_combination(text: str, names: Iterable[str]) -> bool:
    """Whether a text is a combination of such names rather than a path (``bridge.safetensors`` is a path)."""
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except _UNREADABLE:
        return False
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    return bool(used) and used <= set(names) and not any(isinstance(node, ast.Attribute) for node in nodes)


def names_in(name: str, sources: Mapping[str, str]) -> list[str]:
    """The vectors that decide a vector: itself, and those that it is a combination of.

    Args:
        name: of the vector.
        sources: name -> file, or text such as ``bridge + 0.5 * recipe``.
    """
    if not is_combination(sources[name], sources):
        return [name]
    files = [other for other, source in sources.items() if not is_combination(source, sources)]
    return [name, *(part for part, factor in parse_combination(sources[name], files).items() if factor)]


def parse_combination(text: str, names: Iterable[str]) -> Coefficients:
    """Reads a linear combination of names.

    Args:
        text: names and numbers with + - * / and parentheses.
        names: those that may occur.

    Returns:
        name -> its factor, in the order in which they occur.

    Raises:
        ValueError: it cannot be read, is not linear, or names something else.
    """
    accepted = f"accepted: names and numbers with + - * / and parentheses, names of {', '.join(names) or 'no vector'}"
    try:
        found = _read(ast.parse(text.strip(), mode="eval").body, set(names))
    except (*_UNREADABLE, TypeError, KeyError, ArithmeticError) as error:
        shown = text if len(text) <= 200 else f"{text[:200]}..."
        raise ValueError(f"{shown!r} is no combination of vectors; {accepted}") from error
    if isinstance(found, float) or not any(found.values()) or not all(map(math.isfinite, found.values())):
        raise ValueError(f"{text!r} names no vector with a finite factor other than 0; {accepted}")
    return found


def _read(node: ast.expr, names: set[str]) -> float | Coefficients:
    """A number, or factors by name; raises TypeError where it is not linear, KeyError at another name."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        return float(node.value)
    if isinstance(node, ast.Name):
        if node.id not in names:
            raise KeyError(node.id)
        return {node.id: 1.0}
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        return _scaled(_read(node.operand, names), -1.0 if isinstance(node.op, ast.USub) else 1.0)
    if isinstance(node, ast.BinOp):
        left, right = _read(node.left, names), _read(node.right, names)
        if isinstance(node.op, ast.Mult):
            number, other = (left, right) if isinstance(left, float) else (right, left)
            if isinstance(number, float):
                return _scaled(other, number)
        elif isinstance(node.op, ast.Div) and isinstance(right, float):
            return _scaled(left, 1 / right)
        elif isinstance(node.op, ast.Add | ast.Sub):
            right = _scaled(right, -1.0 if isinstance(node.op, ast.Sub) else 1.0)
            if isinstance(left, float) and isinstance(right, float):
                return left + right
            if isinstance(left, dict) and isinstance(right, dict):
                return {name: left.get(name, 0.0) + right.get(name, 0.0) for name in {**left, **right}}
    raise TypeError("not linear")


def _scaled(value: float | Coefficients, factor: float) -> float | Coefficients:
    return value * factor if isinstance(value, float) else {name: part * factor for name, part in value.items()}


def combine(coefficients: Coefficients, vectors: Mapping[str, SteeringVector]) -> SteeringVector:
    """The combination of vectors; names and shapes must be the same.

    Raises:
        ValueError: names or shapes differ.
    """
    used = {name: factor for name, factor in coefficients.items() if factor}
    first, *others = (vectors[name] * factor for name, factor in used.items())
    total = first
    for other in others:
        total = total + other
    # a sum is no contrast of two piles, and its slope is its own: it says what its parts agree on
    sources = [vectors[name].metadata for name in used]
    shared = {key: value for key, value in total.metadata.items() if all(s.get(key) == value for s in sources)}
    text = " + ".join(f"{factor:g} * {name}" for name, factor in used.items())
    kept = {key: value for key, value in shared.items() if not key.startswith(_OF_A_CONTRAST)}
    return SteeringVector(total, {**kept, "combination": text, **merged_prompts(*sources)})
