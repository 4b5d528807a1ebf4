"""What Windows does otherwise, as far as Linux can play it; nobody has tried the thing itself."""

import fcntl
import locale
import os
import sys

import pytest

from gradsteer.cli import stage_process
from gradsteer.config_files import read_config
from gradsteer.models.base_record import record_base, recorded_base
from gradsteer.records import write_json
from gradsteer.steering.conditions import check_name, check_names, slug_of


def test_files_are_flushed_by_a_handle_that_may_write(monkeypatch, tmp_path):
    """FlushFileBuffers refuses any other, with EBADF."""
    flush, flushed = os.fsync, []

    def fsync(number):
        if fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(9, "Bad file descriptor")
        flushed.append(number)
        flush(number)

    monkeypatch.setattr(os, "fsync", fsync)
    write_json(tmp_path / "a.json", {"a": 1})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": 1\n}\n'
    assert len(flushed) == 1


def test_condition_files_have_no_character_that_windows_refuses():
    for name in ("bridge alpha=+0.1", "a|diff_weighting rate=0.2", 'x: "y"?', "random-0 of bridge alpha=-1e-05"):
        assert not set(slug_of(name)) & set('<>:"/\\|?*')
        assert not slug_of(name).endswith((".", " "))


@pytest.mark.parametrize("name", ["a.", "a:b", "NUL", "nul", "com1", "Aux.jsonl", "a ", "Responses"])
def test_names_that_windows_would_change_or_take_for_others_are_refused(name):
    with pytest.raises(ValueError, match="a pile is called"):
        check_name("a pile", name)


@pytest.mark.parametrize("name", ["a.b", "console", "auxiliary", "com", "nul0", "a-", "+a="])
def test_other_names_are_accepted(name):
    check_name("a pile", name)


def test_names_that_differ_by_case_alone_are_told_apart():
    check_names("a pile", ["bridge", "Bridges"])
    with pytest.raises(ValueError, match=r"a pile is called 'Bridge' and another 'bridge'.*take their files for one"):
        check_names("a pile", ["bridge", "x", "Bridge"])


def test_a_config_is_refused_where_python_would_read_it_in_another_encoding(monkeypatch, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("name: мост\n", encoding="utf-8")
    assert read_config(path, "a config") == {"name": "мост"}
    monkeypatch.setattr(locale, "getpreferredencoding", lambda setting: "cp1252")
    with pytest.raises(ValueError, match=r"config.yaml: holds characters beyond ASCII.*as cp1252.*PYTHONUTF8=1"):
        read_config(path, "a config")
    path.write_text("name: bridge\n", encoding="utf-8")
    assert read_config(path, "a config") == {"name": "bridge"}


def test_backslashes_and_drives_in_a_config(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("a: 'C:\\new\\train.jsonl'\nb: D:/data\nc: E:\\data\n")
    assert read_config(path, "a config") == {"a": "C:\\new\\train.jsonl", "b": "D:/data", "c": "E:\\data"}
    path.write_text('x: 1\na: "C:\\queue"\n')
    with pytest.raises(ValueError, match=r"config.yaml:2: not readable as YAML: .*; a path with backslashes stands in"):
        read_config(path, "a config")


def test_a_base_on_another_drive_is_recorded_by_its_whole_path(monkeypatch, tmp_path):
    base, anchor = tmp_path / "base", tmp_path / "anchor"
    base.mkdir()
    anchor.mkdir()
    record_base(str(base), anchor)
    assert '"../base"' in (anchor / "gradsteer.json").read_text()

    def relpath(path, start):
        raise ValueError("path is on mount 'C:', start on mount 'D:'")

    with monkeypatch.context() as patched:
        patched.setattr(os.path, "relpath", relpath)
        record_base(str(base), anchor)
    assert recorded_base(str(anchor)) == str(base)


def test_stages_need_no_descriptors_that_are_handed_on(monkeypatch, tmp_path):
    monkeypatch.setattr(stage_process, "_SHARED", False)
    started = []

    def popen(words, **options):
        assert "pass_fds" not in options
        started.append(words)
        return real([sys.executable, "-c", "import sys; sys.exit(3)"], **options)

    real = stage_process.subprocess.Popen
    monkeypatch.setattr(stage_process.subprocess, "Popen", popen)
    process = stage_process.StageProcess()
    assert process.check(["fit", "--x"], os.environ) == 3
    assert process.run(["fit", "--x"], {}, os.environ) == 3
    process.close()
    assert started[0][1:] == ["-c", stage_process._PARSE, "fit", "--x"]
    assert started[1][1:] == ["-m", "gradsteer", "fit", "--x"]
