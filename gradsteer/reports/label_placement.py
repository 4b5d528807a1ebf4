"""Where a label beside a point hides nothing: plane geometry, in points of 1/72 inch."""

from collections.abc import Sequence

# to the right first: where several sides are as free, that is where a reader looks
_SIDES = ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1))
_ENOUGH = 7.0  # more room than this is no better
_STEPS = 24

Point = tuple[float, float]


def freest_side(
    at: Point,
    size: Point,
    marks: Sequence[Point],
    line: Sequence[Point],
    frame: Point,
    *,
    gap: float = 7.0,
) -> tuple[int, int]:
    """The side of a point on which a label keeps the largest distance from marks, from a line and from the frame.

    Args:
        at: the point that is labelled, measured from the frame's lower left corner.
        size: of the label, width and height.
        marks: what else is drawn; the point itself may be among them.
        line: corners of a line, which may lead through the point.
        frame: width and height of the frame; the label stays within it where it can.
        gap: between the point and the label.

    Returns:
        (1, 0) for right, (-1, 0) left, (0, 1) above, (0, -1) below, and the four corners likewise.
    """
    half = (size[0] / 2, size[1] / 2)
    obstacles = [mark for mark in marks if mark != at]
    for (x0, y0), (x1, y1) in zip(line, line[1:], strict=False):
        shares = [step / _STEPS for step in range(_STEPS + 1)]
        obstacles += [(x0 + share * (x1 - x0), y0 + share * (y1 - y0)) for share in shares]

    def room(side: tuple[int, int]) -> float:
        # towards a corner the gap is shared by both directions
        reach = gap if 0 in side else gap / 2
        x, y = at[0] + side[0] * (reach + half[0]), at[1] + side[1] * (reach + half[1])
        inside = min(x - half[0], frame[0] - x - half[0], y - half[1], frame[1] - y - half[1])
        distances = [_distance(abs(x - a) - half[0], abs(y - b) - half[1]) for a, b in obstacles]
        return min([_ENOUGH, inside, *distances])

    return max(_SIDES, key=room)


def _distance(x: float, y: float) -> float:
    """From a box to a point this far beyond its edges; less than 0 within."""
    if x < 0 and y < 0:
        return max(x, y)
    return float((max(x, 0.0) ** 2 + max(y, 0.0) ** 2) ** 0.5)
