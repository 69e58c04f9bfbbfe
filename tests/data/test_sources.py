import gzip
import json
import sys
import types

import pytest

from ftjax.data.sources import find_split, is_hub_id, load_hub, read_rows
from ftjax.errors import UserError

ROWS = [{"text": 'a, "b"', "label": "1"}, {"text": "café", "label": "0"}]
CONTENT = {
    "x.jsonl": "\n".join(map(json.dumps, ROWS)) + "\n",
    "x.json": json.dumps(ROWS),
    "x.csv": 'text,label\n"a, ""b""",1\ncafé,0\n',
    "x.tsv": 'text\tlabel\na, "b"\t1\ncafé\t0\n',
    "x.txt": 'a, "b"||1\ncafé||0\n',
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", CONTENT)
def test_every_format_gives_the_same_rows(tmp_path, name, packed):
    data = CONTENT[name].encode()
    path = tmp_path / (name + ".gz" if packed else name)
    path.write_bytes(gzip.compress(data) if packed else data)
    rows = read_rows(path, ("text", "label"))
    assert rows == ROWS
    first = 2 if name.endswith(("csv", "tsv")) else 1
    assert [row.where for row in rows] == [f"{path}:{first}", f"{path}:{first + 1}"]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.jsonl", '{"a": 1}\n{"a": \n', ":2: not JSON"),
        ("x.jsonl", '{"a": 1}\n\n3\n', ":3: not a JSON object"),
        ("x.json", '{"a": 1}', "not a JSON array"),
        ("x.json", "[1]", ":1: not a JSON object"),
        ("x.json", "[\n{]", ":2: not JSON"),
        ("x.csv", "a,b\n1,2\n3\n", ":3: 1 fields, not the header's 2"),
        ("x.csv", 'a,b\n"1\n2",2\n3\n', ":4: 1 fields"),
        ("x.csv", 'a,b\n1,"2\n', ":2: cannot be read"),
        ("x.csv", "a,a\n1,2\n", ":1: a column name appears twice"),
        ("x.csv", "a,b\n", "has no rows"),
        ("x.txt", "a||b\nc\n", ":2: 1 column"),
        ("x.txt", "", "has no rows"),
        ("x.txt", "a||b\n\xff||c\n".encode("latin-1"), ":2: not UTF-8"),
        ("x.gz", b"", "unknown format"),
        ("x.txt.gz", b"not gzip", "cannot be read"),
        ("x.txt.gz", gzip.compress(b"a||b\n" * 99, mtime=0)[:-9], "cannot be read"),
        ("x.parquet", "", "unknown format '.parquet'"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, content, says):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError) as error:
        read_rows(path)
    assert str(error.value).startswith(str(path)) and says in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_file_and_split(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_rows(tmp_path / "x.csv")
    (tmp_path / "other.csv").write_text("a\n1\n")
    with pytest.raises(UserError, match=r"no train\.tsv for the train split \(there: other\.csv\)"):
        find_split(tmp_path, "train", ("train.tsv",))
    (tmp_path / "train.tsv.gz").write_bytes(b"")
    assert find_split(tmp_path, "train", ("train.tsv",)).name == "train.tsv.gz"


def test_hub_ids(tmp_path, monkeypatch):
    assert is_hub_id("nyu-mll/glue:sst2") and is_hub_id("glue")
    assert not any(map(is_hub_id, ("./x", "/x/y", "a/b/c", "x.jsonl", "", str(tmp_path))))

    def load_dataset(name, configuration, split):
        if split != "train":
            raise ValueError("Unknown split\nmore")
        return [{"name": name, "configuration": configuration}]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    [row] = load_hub("owner/set:part", "train")
    assert row == {"name": "owner/set", "configuration": "part"} and row.where == "owner/set:part[train]:1"
    with pytest.raises(UserError, match="no such local path, and the hub gave no 'test' split"):
        load_hub("owner/set", "test")
