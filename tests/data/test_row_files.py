"""Files of text in the encodings and with the delimiters that spreadsheets and consoles write."""

import codecs
import json

import pytest

from gradsteer.data.row_files import read_file

TEXT = "Was ist Brötchen?"


def written(path, text, encoding):
    path.write_bytes(text.encode(encoding))
    return path


def rows(path, encoding=None):
    return [row for _, row in read_file(path, encoding)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".json", ".jsonl"])
def test_what_a_byte_order_mark_says_is_certain(tmp_path, encoding, suffix):
    row = {"prompt": TEXT, "id": "1"}
    line = json.dumps(row, ensure_ascii=False)
    separator = "\t" if suffix == ".tsv" else ","
    table = f"prompt{separator}id\r\n{TEXT}{separator}1\r\n"
    text = {".json": f"[{line}]", ".jsonl": f"{line}\r\n"}.get(suffix, table)
    assert rows(written(tmp_path / f"a{suffix}", text, encoding)) == [row]


@pytest.mark.parametrize(
    ("name", "text"), [("a.csv", f"prompt\nx\n{TEXT}\n"), ("a.jsonl", f'\n\n{{"prompt": "{TEXT}"}}\n')]
)
def test_other_encodings_are_named_with_the_file_or_said(tmp_path, name, text):
    path = written(tmp_path / name, text, "cp1252")
    with pytest.raises(ValueError, match=rf"{name}:3: not utf-8 \(byte 0xf6\); .*\{{path: .*, encoding: cp1252\}}"):
        rows(path)
    assert rows(path, "cp1252")[-1] == {"prompt": TEXT}
    with pytest.raises(ValueError, match="encoding is 'cp12'; accepted: a name"):
        rows(path, "cp12")
    path = written(tmp_path / name, "prompt\nbread\n", "utf-16-le")
    assert not path.read_bytes().startswith(codecs.BOM_UTF16_LE)
    with pytest.raises(ValueError, match=rf"{name}: holds zero bytes, as UTF-16 .*encoding: utf-16-le"):
        rows(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "id;prompt\n1;Bread, or cake?\n"),
        ("a.csv", "id\tprompt\n1\tBread, or cake?\n"),
        ("a.tsv", "id\tprompt\n1\tBread, or cake?\n"),
        ("a.csv", 'id,prompt\n1,"Bread, or cake?"\n\n,\n'),  # spreadsheets end in empty rows
        ("a.csv", '"id";"prompt"\n1;"Bread, or cake?"\n'),
    ],
)
def test_the_delimiter_is_the_headers(tmp_path, name, text):
    assert rows(written(tmp_path / name, text, "utf-8")) == [{"id": "1", "prompt": "Bread, or cake?"}]


def test_a_header_that_leaves_it_open_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"a\.csv:1: the header 'id;prompt\\tlabel' has both semicolons and tabs"):
        rows(written(tmp_path / "a.csv", "id;prompt\tlabel\n1;a\tb\n", "utf-8"))
    assert rows(written(tmp_path / "a.csv", 'prompt,"score (0;1)"\na,1\n', "utf-8")) == [
        {"prompt": "a", "score (0;1)": "1"}
    ]


def test_a_single_object_is_no_list_of_rows(tmp_path):
    for text, said in (
        ('{"data": [{"prompt": "a"}]}', "it has the list 'data': save that"),
        ('{\n"prompt": "a"\n}', ""),
    ):
        (tmp_path / "a.JSON").write_text(text)
        with pytest.raises(ValueError, match=rf"a\.JSON: is a single object.*{said}.*accepted: a list of objects"):
            list(read_file(tmp_path / "a.JSON"))
