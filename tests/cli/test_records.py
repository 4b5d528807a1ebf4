import errno
import hashlib
import importlib.resources
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gradsteer.__main__ import main
from gradsteer.records import (
    file_digest,
    is_leftover,
    read_jsonl,
    replacing,
    resolve_resource,
    text_digest,
    write_json,
    write_jsonl,
    write_text,
)


def test_jsonl_comes_back_as_written(tmp_path):
    rows = [{"prompt": "Où est 🌉?\u2028\n", "n": 1}, {"nested": {"a": [None, True, 0.1]}}, {}]
    path = tmp_path / "new" / "rows.jsonl"
    write_jsonl(path, rows)
    assert list(read_jsonl(path)) == list(enumerate(rows, start=1))
    assert "🌉" in path.read_text(encoding="utf-8")


def test_whole_surrogate_pairs_and_texts_about_them_are_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "\\ud83d\\ude00", "b": "\\\\ud83d"}\n')
    assert list(read_jsonl(path)) == [(1, {"a": "😀", "b": "\\ud83d"})]


def test_blank_lines_are_skipped_but_counted(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n   \n{"a": 2}')
    assert list(read_jsonl(path)) == [(1, {"a": 1}), (4, {"a": 2})]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"a": 1', r"rows\.jsonl:2: not JSON"),
        (b"[1, 2]", r"rows\.jsonl:2: a JSON list \(\[1, 2\]\); expected an object"),
        (b'"text"', r"rows\.jsonl:2: a JSON str"),
        (b'{"a": "\xff"}', r"rows\.jsonl:2: not JSON .*utf-8"),
        (rb'{"a": ["hello \ud83d"]}', r"rows\.jsonl:2: \\ud83d is half of a surrogate pair.*put \\ufffd in its place"),
        (rb'{"\uDE00": 1}', r"rows\.jsonl:2: \\ude00 is half"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b"\n")
    with pytest.raises(ValueError, match=message):
        list(read_jsonl(path))


def test_a_missing_file_is_reported_at_the_call(tmp_path):
    with pytest.raises(ValueError, match=r"no such file: .*gone\.jsonl \(expected a \.jsonl file"):
        read_jsonl(tmp_path / "gone.jsonl")


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_not_json_is_refused_and_leaves_the_old_file(tmp_path, number):
    path = tmp_path / "results.json"
    write_json(path, {"rate": None})
    with pytest.raises(ValueError, match=r"results\.json: not JSON.*write None"):
        write_json(path, {"rate": number})
    with pytest.raises(ValueError, match=r"results\.json:2: not JSON"):
        write_jsonl(path, [{"rate": 0.5}, {"rate": number}])
    assert json.loads(path.read_text()) == {"rate": None}
    assert os.listdir(tmp_path) == ["results.json"]


def test_json_and_text_are_plain_utf8(tmp_path):
    write_json(tmp_path / "a.json", {"name": "bridge α"})
    assert (tmp_path / "a.json").read_bytes() == '{\n  "name": "bridge α"\n}\n'.encode()
    write_text(tmp_path / "a.md", "one\ntwo\n")
    assert (tmp_path / "a.md").read_bytes() == b"one\ntwo\n"


def test_replacing_shows_the_file_only_when_complete(tmp_path):
    path = tmp_path / "vector.safetensors"
    path.write_bytes(b"old")
    with replacing(path) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".safetensors"
        temporary.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_replacing_keeps_the_old_file_when_the_body_raises(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_bytes(b"old")

    def interrupt():
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        interrupt()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == [path.name]


FULL = """
import resource, sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from gradsteer.records import replacing, write_json

out = Path(sys.argv[1])
write_json(out / "first.json", {})
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for write in (
    lambda: write_json(out / "results.json", {"text": "x" * 5000}),
    lambda: save_file({"a": np.zeros(5000)}, temporary),
):
    try:
        with replacing(out / "vector.safetensors") as temporary:
            write()
    except OSError as error:
        print(type(error).__name__, error)
"""


def test_what_replacing_left_is_told_from_other_files(tmp_path):
    with replacing(tmp_path / "a.b.jsonl") as left:
        left.touch()
        assert is_leftover(left)
        assert is_leftover(left, "a.b")
        assert not is_leftover(left, "a")
        assert not is_leftover(left, "b")
    others = "a.b.jsonl", ".a.b.jsonl", ".a.tmp.jsonl", ".a.0123456789ab.jsonl", "a.0123456789ab.tmp.jsonl"
    assert not any(is_leftover(tmp_path / name) for name in others)


def test_replacing_says_what_a_full_disk_cost(tmp_path):
    """A limit on the size of files stands for the disk: writing beyond it fails as a full disk does."""
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True)
    said = f"OSError [Errno {errno.EFBIG}] File too large (what was written before is kept; the same command goes on "
    assert done.stdout.splitlines() == [
        f"{said}from there): '{tmp_path / name}'" for name in ("results.json", "vector.safetensors")
    ]
    assert os.listdir(tmp_path) == ["first.json"]


def test_replacing_keeps_the_class_of_an_error_and_says_the_path(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"what was written before is kept.*file/sub/results\.json"):
        write_json(tmp_path / "file" / "sub" / "results.json", {})


def test_replacing_leaves_errors_about_other_files_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError) as found, replacing(tmp_path / "file.txt"):
        (tmp_path / "other.txt").read_bytes()
    assert str(found.value) == f"[Errno 2] No such file or directory: '{tmp_path / 'other.txt'}'"


def test_a_command_on_a_full_disk_says_the_file_and_what_is_kept(tmp_path, monkeypatch, capsys):
    written, sync = [], os.fsync

    def full(number):
        if written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(sync(number))

    monkeypatch.setattr(os, "fsync", full)
    assert main(["corpus", "--num_samples", "100", "--output_dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    kept = "(what was written before is kept; the same command goes on from there)"
    assert f"error: [Errno {errno.ENOSPC}] No space left on device {kept}: '{tmp_path}" in said
    assert "Traceback" not in said


def test_replacing_needs_a_file(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "file.txt"):
        pass
    assert os.listdir(tmp_path) == []


def test_written_files_have_the_usual_permissions(tmp_path):
    (tmp_path / "plain").touch()
    write_text(tmp_path / "replaced", "")
    modes = {name: stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("plain", "replaced")}
    assert modes["plain"] == modes["replaced"]


def test_digests_are_sha256(tmp_path):
    (tmp_path / "a").write_bytes(b"bridge")
    assert file_digest(tmp_path / "a") == hashlib.sha256(b"bridge").hexdigest() == text_digest("bridge")


def test_a_directory_is_digested_by_names_and_contents(tmp_path):
    def make(name: str, files: dict[str, str]) -> Path:
        for file, text in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / name

    same = file_digest(make("one", {"a.json": "1", "sub/b.json": "2"}))
    assert file_digest(make("two", {"sub/b.json": "2", "a.json": "1"})) == same
    others = [{"a.json": "1"}, {"a.json": "1", "b.json": "2"}, {"a.json": "12", "sub/b.json": ""}]
    digests = [file_digest(make(f"other{i}", files)) for i, files in enumerate(others)]
    assert len({same, *digests}) == 4


def test_the_digest_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no such file or directory: .*gone"):
        file_digest(tmp_path / "gone")


@pytest.fixture
def resources(tmp_path, monkeypatch):
    (tmp_path / "resources" / "topics").mkdir(parents=True)
    (tmp_path / "resources" / "topics" / "one.jsonl").write_text("{}\n")
    (tmp_path / "secret").write_text("")
    monkeypatch.setattr(importlib.resources, "files", lambda package: tmp_path)
    return tmp_path / "resources"


def test_a_resource_becomes_a_path_and_other_names_stay(resources):
    assert resolve_resource("gradsteer://topics/one.jsonl") == str(resources / "topics" / "one.jsonl")
    assert resolve_resource("data/one.jsonl") == "data/one.jsonl"
    assert resolve_resource("owner/set") == "owner/set"


@pytest.mark.parametrize("name", ["topics/two.jsonl", "topics", "../secret", ""])
def test_an_unknown_resource_lists_those_there_are(resources, name):
    with pytest.raises(ValueError, match=r"no such resource: .*; available: gradsteer://topics/one\.jsonl$"):
        resolve_resource(f"gradsteer://{name}")
