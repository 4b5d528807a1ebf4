"""Files in and out: JSON lines, whole-file replacement, digests, and the files shipped with the package.

Every file is written under a temporary name beside its destination and renamed when complete, so that a
reader (or the next stage of a run) sees the old file or the new one and never half of one.
"""

import contextlib
import functools
import hashlib
import importlib.resources
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

RESOURCE_SCHEME = "gradsteer://"
# asked for once: the only way to ask is to set it, which other threads would see
_MASK = os.umask(0)
os.umask(_MASK)


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Read a file of JSON objects, one a line.

    Args:
        path: The file, UTF-8. Blank lines are skipped.

    Returns:
        An iterator over (line number counted from 1, object).

    Raises:
        ValueError: At the call, if `path` is no file; while iterating, as `file:line: ...`, for a line that
            is not one JSON object, or that holds half of a surrogate pair, which no file and no tokenizer takes.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no such file: {path} (expected a .jsonl file with one JSON object a line)")
    return _iterate_jsonl(path)


def _iterate_jsonl(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    # Read as bytes and decoded by the line, so that bytes that are not UTF-8 are reported with their line.
    with path.open("rb") as file:
        yield from parse_json_lines(file, path)


def parse_json_lines(lines: Iterable[bytes], path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a file's lines; see `read_jsonl`.

    Args:
        lines: in UTF-8.
        path: the file, for messages.
    """
    for number, line in enumerate(lines, start=1):
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        if not line.strip():
            continue
        try:
            row = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError) as error:  # bytes that are not UTF-8, too; a number of 5000 digits
            raise ValueError(f"{path}:{number}: not JSON ({error}); expected an object a line") from error
        if not isinstance(row, dict):
            raise ValueError(
                f"{path}:{number}: a JSON {type(row).__name__} ({line.decode('utf-8').strip()[:60]}); "
                'expected an object a line, such as {"prompt": "...", "completion": "..."}'
            )
        if b"\\ud" in line.lower():  # only so can a half be written in UTF-8
            _check_surrogates(row, f"{path}:{number}")
        yield number, row


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ValueError: it is something else; names the file.
    """
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} is not readable as JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{str(path)!r} holds a JSON {type(found).__name__}; accepted: an object")
    return found


def _check_surrogates(row: dict[str, Any], where: str) -> None:
    try:
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])[1:-1]
        raise ValueError(
            f"{where}: {half} is half of a surrogate pair, as in a text that was cut in the middle of a character; "
            "expected whole characters: remove it, or put \\ufffd in its place"
        ) from error


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write a file under a temporary name and rename it to `path` when the body succeeds.

    The temporary name lies in the same directory (made if missing) and ends as `path` ends, for writers that
    look at the suffix. When the body raises or is interrupted, the temporary file goes and whatever was at
    `path` stays.

    Args:
        path: Where the finished file shall be.

    Yields:
        The temporary path, where the body creates the file.

    Raises:
        FileNotFoundError: If the body created no file.
        OSError: If the file cannot be written, to a full disk say: with the number and class of the body's error, and
            in words the path and that what was written before is kept. An error about another file stays as it is.
    """
    path = Path(path)
    # Not tempfile: its files are readable by their owner alone, and would stay so after the rename.
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex[:12]}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("r+b") as file:  # Windows flushes what is open for writing only
            os.fsync(file.fileno())
        make_readable(temporary)
        os.replace(temporary, path)
    except OSError as error:
        ours = error.filename is None or str(error.filename) in map(str, (temporary, path, *path.parents))
        if error.errno is None or not ours:
            raise
        raise _not_written(path, error.errno) from error
    except SafetensorError as error:  # which has the system's number in its words alone
        if (found := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        raise _not_written(path, int(found[1])) from error
    finally:
        with contextlib.suppress(OSError):  # the one above says why
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_directory(directory: Path) -> Iterator[Path]:
    """Fill a hidden directory beside another one and rename it to that when the body succeeds.

    When the body raises or is interrupted, the hidden directory goes and whatever was there stays. Where only the
    renaming fails, both stay: what was made may have taken hours.

    Args:
        directory: Where the complete directory shall be.

    Yields:
        The hidden directory, empty.
    """
    mark = uuid.uuid4().hex[:12]
    temporary, old = (directory.with_name(f".{directory.name}.{mark}.{kind}") for kind in ("part", "old"))
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                make_readable(file)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    if directory.exists():
        directory.rename(old)
    try:
        temporary.rename(directory)
    except BaseException:
        if old.exists():
            old.rename(directory)
        raise
    shutil.rmtree(old, ignore_errors=True)


def check_writable(directory: str | os.PathLike[str], option: str) -> None:
    """Refuses, before any work, a directory that nothing can be written to.

    Args:
        directory: need not exist yet.
        option: that names it.

    Raises:
        ValueError: names the option and what is in the way.
    """
    path = Path(directory)
    if "\0" in str(path):
        raise ValueError(f"{option} is {str(path)!r}; accepted: a path without a zero byte")
    there = next((each for each in (path, *path.parents) if os.path.exists(each)), Path())
    if not there.is_dir():
        raise ValueError(f"{option} is {str(path)!r}, and {str(there)!r} is a file; accepted: a directory, new or not")
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        said = f"{str(there)!r} cannot be written to ({error.strerror})"
        raise ValueError(f"{option} is {str(path)!r}, and {said}; accepted: another directory") from error


def is_leftover(path: Path, stem: str | None = None) -> bool:
    """Whether a file is one that `replacing` was about to rename when its process was killed.

    Args:
        path: the file; nobody may be writing it now.
        stem: of the file that it was to become; None for any.
    """
    of = ".+" if stem is None else re.escape(stem)
    return re.fullmatch(rf"\.{of}\.[0-9a-f]{{12}}\.tmp(\.\w+)?", path.name) is not None


def _not_written(path: Path, number: int) -> OSError:
    kept = "what was written before is kept; the same command goes on from there"
    return OSError(number, f"{os.strerror(number)} ({kept})", str(path))


def make_readable(path: Path) -> None:
    """Gives a file the mode that an ordinary new file has: safetensors writes for the owner alone."""
    path.chmod(0o666 & ~_MASK)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write `text` to `path` as UTF-8, all or nothing."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write `obj` to `path` as indented JSON, all or nothing.

    Raises:
        ValueError: If `obj` holds NaN or an infinity, which are not JSON: what does not apply is None.
    """
    write_text(path, _dump(obj, str(path), indent=2) + "\n")


def write_jsonl(path: str | os.PathLike[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line to `path`, all or nothing.

    Raises:
        ValueError: If a row holds NaN or an infinity, naming the row.
    """
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for number, row in enumerate(rows, start=1):
            file.write(_dump(dict(row), f"{path}:{number}") + "\n")


def _dump(obj: Any, where: str, indent: int | None = None) -> str:
    try:
        return json.dumps(obj, ensure_ascii=False, allow_nan=False, indent=indent)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}; write None for what has no value") from error


def text_digest(text: str) -> str:
    """Return the sha256 of the UTF-8 bytes of `text`, in hex."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def file_digest(path: str | os.PathLike[str]) -> str:
    """Return the sha256, in hex, of a file's bytes, or of a directory's relative file names and their bytes.

    A directory's digest depends on neither its own name nor the order in which the file system lists it.

    Raises:
        ValueError: If `path` does not exist.
    """
    path = Path(path)
    if path.is_dir():
        digest = hashlib.sha256()
        files = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
        for name in sorted(files):
            # A digest has a fixed length and a name no NUL, so no two directories give the same stream.
            digest.update(name.encode("utf-8") + b"\0" + file_digest(files[name]).encode("ascii"))
        return digest.hexdigest()
    if not path.is_file():
        raise ValueError(f"no such file or directory: {path} (expected one to take the digest of)")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def known_digest(path: str | os.PathLike[str]) -> str:
    """`file_digest` of a file, taken once for as long as its size and its time of change stay."""
    found = os.stat(path)
    return _digest_of(str(path), found.st_size, found.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _digest_of(path: str, size: int, changed: int) -> str:
    del size, changed  # they only tell one state of the file from another
    return file_digest(path)


def resolve_resource(path: str) -> str:
    """Turn `gradsteer://topics/finetune.jsonl` into the path of that file in the installed package.

    Args:
        path: A name under `gradsteer/resources/` behind `gradsteer://`, or anything else.

    Returns:
        The file's path; `path` itself where it does not begin with `gradsteer://`.

    Raises:
        ValueError: For a name that the package does not ship, listing those that it does.
    """
    if not path.startswith(RESOURCE_SCHEME):
        return path
    available = dict(_list_resources(importlib.resources.files("gradsteer") / "resources"))
    name = path.removeprefix(RESOURCE_SCHEME)
    if name not in available:
        listing = ", ".join(RESOURCE_SCHEME + known for known in sorted(available)) or "none"
        raise ValueError(f"no such resource: {path}; available: {listing}")
    return str(available[name])


def _list_resources(directory: "Traversable", prefix: str = "") -> "Iterator[tuple[str, Traversable]]":
    for entry in directory.iterdir():
        if entry.is_dir():
            yield from _list_resources(entry, f"{prefix}{entry.name}/")
        elif entry.is_file():
            yield prefix + entry.name, entry
