"""Which of the accepted shapes a row has, and the values in the columns that a mapping names."""

from collections.abc import Iterable, Iterator, Set
from typing import Any

from gradsteer.data.cells import Row, has_column, list_columns, lookup
from gradsteer.data.sources import Columns

# columns of well-known sets -> the mapping that reads them
_WELL_KNOWN = (
    (("instruction", "output"), "{prompt: [instruction, input], completion: output}"),
    (("conversations",), "{messages: conversations}"),
    (("prompt", "chosen"), "{completion: chosen}"),
    (("prompt", "response"), "{completion: response}"),
)


def columns_of(names: Iterable[str | list[str]]) -> Iterator[str]:
    """All columns that a mapping names."""
    for name in names:
        yield from [name] if isinstance(name, str) else name


def value_of(row: Row, name: str | list[str]) -> Any:
    """The value in a column; the texts of several, joined by a blank line."""
    if isinstance(name, str):
        return lookup(row, name)
    texts = [lookup(row, each) for each in name]
    return "\n\n".join(text for text in texts if isinstance(text, str) and text.strip())


def find_shape(row: Row, columns: Columns, shapes: tuple[tuple[str, ...], ...], where: str, accepted: str) -> Columns:
    """Return our names to the row's for the first of `shapes` that the row, or else `columns`, has."""
    # A mapped column takes precedence over whatever else the row contains.
    mapped = [shape for shape in shapes if any(name in columns for name in shape)]
    if len(mapped) > 1:
        raise ValueError(f"columns: {columns} name two shapes; expected {accepted}")
    for shape in mapped or shapes:
        names = {name: columns.get(name, name) for name in shape}
        if all(lookup(row, name) is not None for name in _leading(names)):
            return names
    missing = _leading({name: columns.get(name, name) for shape in mapped for name in shape})
    lacking = [name for name in missing if lookup(row, name) is None]
    problem = f"no value in {', '.join(lacking)}" if lacking else "unknown shape"
    hint = f"other names go in `columns`{_mapping_for(row, {name for shape in shapes for name in shape})}"
    raise ValueError(f"{where}: {problem}; found: {list_columns(row)}; expected {accepted} ({hint})")


def _mapping_for(row: Row, ours: Set[str]) -> str:
    """The mapping that reads a well-known set, or columns that are ours but for spaces and capitals."""
    known = next((mapping for names, mapping in _WELL_KNOWN if all(has_column(row, each) for each in names)), None)
    alike = [f"{name.strip().lower()}: {name!r}" for name in row if name not in ours and name.strip().lower() in ours]
    known = f"{{{', '.join(alike)}}}" if known is None and alike else known
    return "" if known is None else f", here {known}"


def _leading(names: Columns) -> list[str]:
    """Each one's column, of several the first: the others may be empty."""
    return [name if isinstance(name, str) else name[0] for name in names.values()]
