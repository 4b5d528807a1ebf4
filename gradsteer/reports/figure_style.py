"""What all figures share: size, colours, and plain text."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
Drawn = TypeVar("Drawn", bound="Figure | None")

DPI = 150
WIDTH = 10.6  # inches at most: 1,590 pixels
# Okabe and Ito's palette: distinguishable with any colour vision; without its yellow, which is no colour for text
PALETTE = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK, GREY, BAND = "#222222", "#8C8C8C", "#DEDEDE"


def colors_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The colour of every behavior, the same in all figures of a report, and of every vector: its behavior's.

    A vector of no known behavior has a colour of its own.

    Args:
        rows: conditions as results.json or forecast.json holds them.
    """
    behaviors = dict.fromkeys(name for row in rows for name in row["behaviors"])
    targets = {row["vector"]: row.get("behavior") for row in rows if row["vector"] is not None and row.get("behavior")}
    vectors = dict.fromkeys(row["vector"] for row in rows if row["vector"] is not None)
    own = [*behaviors, *(name for name in vectors if targets.get(name) not in behaviors and name not in behaviors)]
    colors = {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(own)}
    return {name: colors[targets[name]] for name in vectors if targets.get(name) in behaviors} | colors


def bare(axes: "Axes") -> None:
    """No frame at the top and at the right."""
    axes.spines[["top", "right"]].set_visible(False)


def plain(draw: Callable[P, Drawn]) -> Callable[P, Drawn]:
    """Decorates what draws a figure: names come from configs, and a dollar sign in one is no formula."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Drawn:
        from matplotlib import rc_context

        with rc_context({"text.parse_math": False}):  # each text keeps what it was made with
            return draw(*args, **kwargs)

    return drawn


def shortened(names: Iterable[str], length: int) -> list[str]:
    """Names of at most so many characters, the middle of longer ones left out: doses stand at the end."""
    keep = (length - 1) // 2
    return [name if len(name) <= length else f"{name[: length - 1 - keep]}…{name[-keep:]}" for name in names]


def legend_below(figure: "Figure", entries: Mapping[str, Any]) -> None:
    """A legend below the panels, in as many columns as the figure is wide.

    Args:
        figure: it.
        entries: label -> what is drawn.
    """
    if not entries:
        return
    inches = [0.5 + 0.065 * len(label) for label in entries]
    for columns in range(len(inches), 0, -1):  # matplotlib fills column by column
        lines = -(-len(inches) // columns)
        if sum(max(inches[at : at + lines]) for at in range(0, len(inches), lines)) <= figure.get_figwidth():
            break
    figure.legend(
        entries.values(), entries.keys(), loc="outside lower left", ncols=columns, frameon=False, fontsize=8,
        handletextpad=0.5, columnspacing=1.4,
    )  # fmt: skip


def paler(color: str) -> str:
    """The same colour half way to white."""
    from matplotlib.colors import to_hex, to_rgb

    red, green, blue = to_rgb(color)
    return to_hex((0.5 + 0.5 * red, 0.5 + 0.5 * green, 0.5 + 0.5 * blue))
