import bz2
import gzip
import json
import sys
import types

import pytest

from ftjax.data.bad import BadRows
from ftjax.data.sources import find_split, is_hub_id, load_hub, read_parallel, read_rows
from ftjax.errors import UserError

ROWS = [{"text": 'a, "b"', "label": "1"}, {"text": "café", "label": "0"}]
CONTENT = {
    "x.jsonl": "\n".join(map(json.dumps, ROWS)) + "\n",
    "x.json": json.dumps(ROWS),
    "x.csv": 'text,label\n"a, ""b""",1\ncafé,0\n',
    "x.tsv": 'text\tlabel\na, "b"\t1\ncafé\t0\n',
    "x.txt": 'a, "b"||1\ncafé||0\n',
}


@pytest.mark.parametrize("packing", ["", ".gz", ".bz2"])
@pytest.mark.parametrize("name", CONTENT)
def test_every_format_gives_the_same_rows(tmp_path, name, packing):
    pack = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress}[packing]
    path = tmp_path / (name + packing)
    path.write_bytes(pack(CONTENT[name].encode()))
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
        ("x.csv", 'a,b\n1,2\n"3,4\n5,6\n7,8\n', ":3: cannot be read"),  # a quote that is never closed
        ("x.tsv", 'a\tb\n1\t2\n"say ""hi"""\t2\n', ':3: "say ""hi""" is quoted as a'),
        ("x.tsv", '"a"\t"b"\n"1"\t"2"\n', ':1: "a" is quoted as a'),
        ("x.jsonl", "1" * 5000, ":1: not JSON"),
        ("x.jsonl", "[" * 100_000, ":1: not JSON"),
        ("x.txt.bz2", b"not bzip2", "cannot be read"),
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


@pytest.mark.parametrize(
    ("name", "content", "good", "said"),
    [
        ("x.jsonl", '{"a": 1}\n{"a": \n3\n\n{"a": 2}\n', [1, 5], [":2: not JSON", ":3: not a JSON object"]),
        ("x.json", '[{"a": 1}, 3, {"a": 2}]', [1, 3], [":2: not a JSON object"]),
        ("x.csv", 'a,b\n1,2\n3\n"4\n",5\n6,7,8\n', [2, 4], [":3: 1 fields", ":6: 3 fields"]),
        ("x.csv", 'a,b\n1,2\n"3" 4,5\n6,7\n', [2, 4], [":3: cannot be read"]),
        ("x.tsv", "a\tb\n1\n2\t3\n", [3], [":2: 1 fields"]),
        ("x.txt", "a||b\nc\nd||e\n", [1, 3], [":2: 1 column"]),
    ],
)
def test_bad_rows_are_left_out_and_counted(tmp_path, name, content, good, said):
    path, bad = tmp_path / name, BadRows("skip")
    path.write_text(content)
    assert [row.where for row in read_rows(path, bad=bad)] == [f"{path}:{line}" for line in good]
    assert [message.removeprefix(str(path))[: len(says)] for message, says in zip(bad.messages, said)] == said
    assert len(bad.messages) == len(said)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("x.jsonl", "1\n2\n", "all 2 rows are bad; the first: .*x.jsonl:1: not a JSON object"),
        ("x.json", "{", "not JSON"),
        ("x.csv", "a,a\n1,2\n", "a column name appears twice"),
        ("x.csv", '"a,b\n1,2\n', ":1: cannot be read"),
        ("x.csv", 'a,b\n1,2\n"3,4\n5,6\n7,8\n', ":3: cannot be read"),
        ("x.txt.gz", "no gzip", "cannot be read"),
        ("x.txt", "", "has no rows"),
    ],
)
def test_what_is_no_single_row_is_an_error_all_the_same(tmp_path, name, content, says):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=says):
        read_rows(tmp_path / name, bad=BadRows("skip"))
    with pytest.raises(UserError, match="give error or skip"):
        BadRows("ignore")


def test_quotes_of_a_tsv_are_letters(tmp_path):
    texts = ['"', '""', '"a', '"a" b', '"a"', '"a "b" c"', '"a "" b', 'a ""b""']
    (tmp_path / "x.tsv").write_text("text\n" + "".join(f"{text}\n" for text in texts))
    assert [row["text"] for row in read_rows(tmp_path / "x.tsv")] == texts
    (tmp_path / "x.tsv").write_text('"text"\n"a ""b"""\n')  # GLUE's may hold such
    assert read_rows(tmp_path / "x.tsv", bare=True) == [{'"text"': '"a ""b"""'}]


def test_long_rows_and_odd_characters_stay(tmp_path):
    text = "x" * 300_000 + "\u2028\x0b\x00\x85😀"
    for name, content in {
        "x.csv": f'text,label\n"{text}",1\n', "x.tsv": f"text\tlabel\n{text}\t1\n", "x.txt": f"{text}||1\n",
        "x.jsonl": json.dumps({"text": text, "label": "1"}, ensure_ascii=False) + "\n",
    }.items():  # fmt: skip
        (tmp_path / name).write_text(content)
        assert read_rows(tmp_path / name, ("text", "label")) == [{"text": text, "label": "1"}]


def test_a_header_that_is_not_written(tmp_path):
    path = tmp_path / "x.csv"
    path.write_text("1,a,b,c\n0,d,e\n")
    header = {"header": ("label", "text", "..."), "columns": ("text",)}
    assert read_rows(path, **header) == [{"label": "1", "text": "a"}, {"label": "0", "text": "d"}]
    assert [row.where for row in read_rows(path, **header)] == [f"{path}:1", f"{path}:2"]
    path.write_text("text,label\na,1\n")
    assert read_rows(path, **header) == [{"text": "a", "label": "1"}]
    path.write_text("1,a\n0\n")
    with pytest.raises(UserError, match=r"x\.csv:2: 1 fields"):
        read_rows(path, **header)
    path.write_text('text\tlabel\nsay "hi\t1\n')
    assert read_rows(path, tabbed=True) == [{"text": 'say "hi', "label": "1"}]


def test_parallel_lines(tmp_path):
    paths = {name: tmp_path / f"x.{name}" for name in ("en", "de")}
    paths["en"].write_text("a\nb\u2028c\nd\n")
    paths["de"].write_text("x\r\ny\nz")
    rows = read_parallel(paths, BadRows())
    assert [tuple(row.values()) for row in rows] == [("a", "x"), ("b\u2028c", "y"), ("d", "z")]
    assert [row.where for row in rows] == [f"{paths['en']}:{line}" for line in (1, 2, 3)]
    paths["de"].write_text("x\n\nz\n")
    with pytest.raises(UserError, match=r"x\.de:2: an empty line"):
        read_parallel(paths, BadRows())
    bad = BadRows("skip")
    assert len(read_parallel(paths, bad)) == 2 and len(bad.messages) == 1
    paths["de"].write_text("x\n")
    with pytest.raises(UserError, match=r"x\.en has 3 lines, .*x\.de has 1 lines: they do not belong together"):
        read_parallel(paths, bad)


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
    with pytest.raises(UserError, match=r"no such local path, and the hub gave no 'test' .* or task\.files to files"):
        load_hub("owner/set", "test")


def test_classes_of_the_hub_come_by_name(monkeypatch):
    import datasets

    label = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features({"label": label, "tags": datasets.List(label), "n": datasets.Value("int32")})
    table = datasets.Dataset.from_dict({"label": [1, -1], "tags": [[0, 1], []], "n": [1, 0]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda name, configuration, split: table)
    assert load_hub("owner/set", "train") == [
        {"label": "yes", "tags": ["no", "yes"], "n": 1},
        {"label": -1, "tags": [], "n": 0},
    ]
