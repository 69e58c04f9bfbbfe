"""METEOR's program: what is missing is said, what hangs is stopped, and what is asked is what it takes."""

import stat
import sys

import pytest

from ftjax import metrics
from ftjax.errors import UserError
from ftjax.metrics.meteor import why_absent

JAVA = """#!{python}
import sys
if "-version" in sys.argv:
    sys.exit({version})
for line in sys.stdin:
    {hang}
    kind, *parts = line.rstrip("\\n").split(" ||| ")
    if kind == "SCORE":
        print(sum(part == parts[-1] for part in parts[:-1]), len(parts) - 1, flush=True)
    else:
        for part in parts:
            hits, references = part.split()
            print(int(hits) / int(references))
        print(0.25, flush=True)
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """install(version=, hang=): a package of the right sizes, and a java that says how many references are the same."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "pycocoevalcap", None)
    monkeypatch.delitem(sys.modules, "pycocoevalcap")
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(version=0, hang="pass", jar=7_000_000):
        folder = tmp_path / "pycocoevalcap" / "meteor"
        (folder / "data").mkdir(parents=True)
        (folder.parent / "__init__.py").touch()
        for name, size in (("meteor-1.5.jar", jar), ("data/paraphrase-en.gz", 61_000_000)):
            with (folder / name).open("wb") as file:
                file.truncate(size)
        java = tmp_path / "java"
        java.write_text(JAVA.format(python=sys.executable, version=version, hang=hang))
        java.chmod(java.stat().st_mode | stat.S_IXUSR)

    return make


def test_what_is_asked(install):
    install()
    found = metrics.measure("meteor", ["The cat.", "Café X"], [["the cat", "A dog!"], ["café x"]])
    assert (found.value, found.rows, found.interval()) == (0.25, [0.5, 1.0], None)


def test_what_is_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="pycocoevalcap is not installed"):
        metrics.meteor(["a"], [["a"]])


@pytest.mark.parametrize("made, said", [({"jar": 1000}, "not whole"), ({"version": 1}, "java does not start")])
def test_what_does_not_work(install, made, said):
    install(**made)
    assert said in (why_absent() or "")
    with pytest.raises(UserError, match=said):
        metrics.meteor(["a"], [["a"]])


@pytest.mark.parametrize("hang", ["__import__('time').sleep(60)", "sys.exit(1)"])
def test_what_hangs(install, hang):
    install(hang=hang)
    with pytest.raises(UserError, match="broke off"):
        metrics.meteor(["a"], [["a"]], timeout=0.5)
