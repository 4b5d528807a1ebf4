"""Verdicts kept in one SQLite file, so that no response is judged twice and no verdict is lost.

Texts are not stored, only their SHA-256, so that a store may be handed on without the responses; whoever has a text can
tell whether it was judged.
"""

import errno
import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import RLock

from gradsteer.judges.base import Exchange, Verdicts

FORMAT_VERSION = 1  # `PRAGMA user_version`: raised when the table below changes
APPLICATION_ID = 0x67726A76  # "grjv": tells our files from those of other programs
_BUSY_SECONDS = 60.0  # a write takes milliseconds, also with many processes queueing

# A row is found by its key alone, so the key is the table: no second index to keep.
_TABLE = """
CREATE TABLE verdicts (
    judge TEXT NOT NULL, prompt BLOB NOT NULL, response BLOB NOT NULL, verdicts TEXT NOT NULL,
    PRIMARY KEY (judge, prompt, response)
) WITHOUT ROWID
"""
_READ = "SELECT verdicts FROM verdicts WHERE judge = ? AND prompt = ? AND response = ?"
_ANY = "SELECT 1 FROM verdicts WHERE judge = ? LIMIT 1"
_WRITE = "INSERT OR IGNORE INTO verdicts VALUES (?, ?, ?, ?)"

# A write-ahead log needs memory shared by all who have the file open, which other computers do not share.
_NETWORK = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "afs", "fuse.", "fuseblk", "9p", "glusterfs")


class VerdictStore:
    """Verdicts by judge, prompt and response; for any number of threads and processes at once.

    A verdict is there for good once `write` has returned, whatever becomes of the process. A power cut may lose the
    last ones written, which are then asked for again; it does not damage the file. Several computers may share a file
    only where their file system locks files properly.

    The file is made when it is first read or written, its directories too. Do not use one store on both sides of a
    fork: each process makes its own.

    Args:
        path: The file; None keeps verdicts in memory, for as long as the store lives.

    Raises:
        ValueError: If the path is empty.
    """

    def __init__(self, path: str | None) -> None:
        if path is not None and not path.strip():
            raise ValueError(f"the store is {path!r}; accepted: the path of a file, or None for memory")
        # a process that changes its directory later still means the same file
        self.path = None if path is None else Path(path).expanduser().absolute()
        self._connection: sqlite3.Connection | None = None
        self._lock = RLock()

    def read(self, fingerprint: str, exchanges: Sequence[Exchange]) -> dict[Exchange, Verdicts]:
        """Looks up what a judge found earlier.

        Args:
            fingerprint: The judge's.
            exchanges: Any number.

        Returns:
            Verdicts of those exchanges that are stored.

        Raises:
            ValueError: If the file is no store, or one of another version, or damaged.
            OSError: If it cannot be read, or others have it locked for a minute.
        """
        found = {}
        with self._opened() as connection, _snapshot(connection):
            for exchange in exchanges:
                row = connection.execute(_READ, (fingerprint, *_digests(exchange))).fetchone()
                if row is not None:
                    found[exchange] = self._decode(row[0])
        return found

    def knows(self, fingerprint: str) -> bool:
        """Whether anything is stored of a judge.

        Raises:
            ValueError: As `read`.
            OSError: As `read`.
        """
        with self._opened() as connection:
            return connection.execute(_ANY, (fingerprint,)).fetchone() is not None

    def write(self, fingerprint: str, exchange: Exchange, verdicts: Verdicts) -> Verdicts:
        """Stores what a judge found, for good; where another process was first, its verdicts stay.

        Returns:
            What is stored now, and counts.

        Raises:
            ValueError: If the file is no store, or one of another version, or damaged.
            OSError: If it cannot be written: no permission, no space, or others have it locked for a minute.
        """
        kept = json.dumps({"values": verdicts.values, "unscored": verdicts.unscored})
        with self._opened() as connection:
            key = (fingerprint, *_digests(exchange))
            if connection.execute(_WRITE, (*key, kept)).rowcount:
                return verdicts
            return self._decode(connection.execute(_READ, key).fetchone()[0])

    def close(self) -> None:
        """Closes the file, which opens again when it is needed. Verdicts in memory stay."""
        with self._lock:
            if self._connection is not None and self.path is not None:
                self._connection.close()
                self._connection = None

    def __len__(self) -> int:
        """The number of exchanges with stored verdicts, of all judges together."""
        with self._opened() as connection:
            return int(connection.execute("SELECT count(*) FROM verdicts").fetchone()[0])

    def __bool__(self) -> bool:
        return True  # an empty store is a store

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        """The connection, for one thread at a time; SQLite's errors are put in the user's terms."""
        with self._lock:
            try:
                if self._connection is None:
                    self._connection = self._open()
                yield self._connection
            except sqlite3.Error as error:
                raise _explain(error, self.path) from error

    def _open(self) -> sqlite3.Connection:
        if self.path is None:
            connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            connection.execute(_TABLE)
            return connection
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                error.errno,
                f"no directory for the store can be made ({error.strerror}); choose another",
                str(self.path),
            ) from error
        connection = sqlite3.connect(
            str(self.path), timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            _check(connection, self.path)
            _set_journal(connection, self.path)
            _make_table(connection, self.path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _decode(self, text: str) -> Verdicts:
        try:
            kept = json.loads(text)
            return Verdicts(kept["values"], kept["unscored"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(_DAMAGED.format(path=self.path, why=error)) from error


def _digests(exchange: Exchange) -> tuple[bytes, bytes]:
    # a text cut in the middle of a character may hold half of a surrogate pair
    texts = (exchange.prompt, exchange.response)
    prompt, response = (hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts)
    return prompt, response


@contextmanager
def _snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """All that is read inside is of one moment, and locks are taken once; inside a transaction, a part of it."""
    is_part = connection.in_transaction
    if not is_part:
        connection.execute("BEGIN")
    try:
        yield
    finally:
        if not is_part and connection.in_transaction:  # SQLite itself ends it on some errors
            connection.execute("ROLLBACK")


def _check(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether the file is a store already; False where it is empty.

    Raises:
        ValueError: If it is a database of something else, or a store of another version.
    """
    with _snapshot(connection):  # else another process could make the store between the first look and the last
        identity, version = (
            connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")
        )
        is_empty = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
    if identity == 0 and is_empty:
        return False
    if identity != APPLICATION_ID:
        raise ValueError(f"{str(path)!r} is a database of another program; name another file for the store")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{str(path)!r} is a store of format {version}, and this version of gradsteer reads format "
            f"{FORMAT_VERSION}; name another file, or move this one away to ask for its verdicts again"
        )
    return True


def _set_journal(connection: sqlite3.Connection, path: Path) -> None:
    """A write-ahead log where it works, else a rollback journal; either survives a killed process."""
    wanted = "DELETE" if _file_system(path).startswith(_NETWORK) else "WAL"
    try:
        (mode,) = _patiently(connection, f"PRAGMA journal_mode = {wanted}")
    except sqlite3.OperationalError as error:
        if _code(error) != sqlite3.SQLITE_IOERR:  # no shared memory on this file system
            raise
        (mode,) = _patiently(connection, "PRAGMA journal_mode = DELETE")
    # NORMAL waits for the disk at checkpoints only, which a log forgives after a power cut and a journal may not
    connection.execute(f"PRAGMA synchronous = {'NORMAL' if mode == 'wal' else 'FULL'}")


def _make_table(connection: sqlite3.Connection, path: Path) -> None:
    if _check(connection, path):
        return
    _patiently(connection, "BEGIN IMMEDIATE")
    try:
        if not _check(connection, path):  # another process may have been first
            connection.execute(_TABLE)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _patiently(connection: sqlite3.Connection, statement: str) -> tuple[str, ...]:
    """Runs what SQLite refuses at once, without its own waiting, while another process opens the file."""
    deadline = time.monotonic() + _BUSY_SECONDS
    while True:
        try:
            return connection.execute(statement).fetchone() or ()
        except sqlite3.OperationalError as error:
            if _code(error) not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED) or time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _file_system(path: Path) -> str:
    """The kind of file system that a file lies on, such as ``ext4``; empty where the system does not say."""
    mounts = Path("/proc/self/mounts")
    if not mounts.is_file():
        return ""
    found = {}
    for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
        _, place, kind, *_ = line.split(" ")
        found[place.replace("\\040", " ")] = kind  # a later mount hides an earlier one
    parents = path.parent.resolve()
    return next((found[str(place)] for place in (parents, *parents.parents) if str(place) in found), "")


_DAMAGED = "{path} is damaged ({why}); move it away to ask for its verdicts again, or repair it: sqlite3 FILE .recover"


def _code(error: sqlite3.Error) -> int | None:
    # Python's own errors, such as a closed connection, have none; the low byte is the kind
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _explain(error: sqlite3.Error, path: Path | None) -> Exception:
    where = str(path)
    match _code(error):
        case sqlite3.SQLITE_NOTADB:
            return ValueError(f"{where!r} is no SQLite database; name another file for the store, or move it away")
        case sqlite3.SQLITE_CORRUPT:
            return ValueError(_DAMAGED.format(path=repr(where), why=error))
        case sqlite3.SQLITE_FULL:
            return OSError(errno.ENOSPC, "no space left for the store; free some and start again", where)
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            why = f"the store and its directory must be writable ({error}); change that, or name another file"
            return OSError(errno.EACCES, why, where)
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            why = f"another process has kept the store locked for {_BUSY_SECONDS:.0f} seconds; end it and start again"
            return TimeoutError(errno.ETIMEDOUT, why, where)
        case _:
            return OSError(errno.EIO, f"the store cannot be used ({error}); name another file, or move it away", where)
