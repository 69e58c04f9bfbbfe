"""METEOR 1.5 (Denkowski & Lavie 2014) by its own Java program, which the optional package pycocoevalcap carries."""

import importlib.util
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path

from ftjax.errors import UserError
from ftjax.metrics.ptb import ptb_words

_FILES = {"meteor-1.5.jar": 6_000_000, "data/paraphrase-en.gz": 60_000_000}  # bytes at least: cut ones make it hang
_COMMAND = ["java", "-Dfile.encoding=UTF-8", "-Xmx2G", "-jar", "meteor-1.5.jar", *"- - -stdio -l en -norm".split()]  # noqa: SIM905
_START = 30.0  # seconds for Java to say its version


def meteor(
    predictions: Sequence[str], references: Sequence[Sequence[str]], timeout: float = 600.0
) -> tuple[float, list[float]]:
    """(the corpus's METEOR, each row's), English, of `ptb_words`; the best of a row's references counts.

    The corpus's is of summed statistics, not the mean of rows.

    Raises:
      UserError: no Java, no program, or no answer within `timeout` seconds.
    """
    if reason := why_absent():
        raise UserError(f"no METEOR: {reason}")
    asked = []
    for prediction, row in zip(predictions, references, strict=True):
        texts = [" ".join(ptb_words(text)) for text in (*row, prediction)]
        asked.append(" ||| ".join(["SCORE", *texts]))
    process = subprocess.Popen(
        _COMMAND, cwd=_folder(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        encoding="utf-8",
    )  # fmt: skip
    timer = threading.Timer(timeout, process.kill)
    timer.start()
    try:
        assert process.stdin and process.stdout
        statistics = []
        for line in asked:
            print(line, file=process.stdin, flush=True)
            statistics.append(process.stdout.readline().strip())
        print(" ||| ".join(["EVAL", *statistics]), file=process.stdin, flush=True)
        rows = [float(process.stdout.readline()) for _ in asked]
        return float(process.stdout.readline()), rows
    except (OSError, ValueError):
        raise UserError(f"METEOR's Java program broke off, or took over {timeout:.0f} s; leave meteor out") from None
    finally:
        timer.cancel()
        process.kill()
        process.communicate()


def why_absent() -> str | None:
    """What METEOR lacks here, in one line; None where it can run."""
    folder = _folder()
    if folder is None:
        return "pycocoevalcap is not installed (pip install pycocoevalcap)"
    for name, size in _FILES.items():
        file = folder / name
        if not file.is_file() or file.stat().st_size < size:
            return f"{file} is not there, or not whole; install pycocoevalcap again"
    try:
        subprocess.run(["java", "-version"], capture_output=True, check=True, timeout=_START)
    except (OSError, subprocess.SubprocessError):
        return "java does not start; install a Java runtime (8 or later)"
    return None


def _folder() -> Path | None:
    found = importlib.util.find_spec("pycocoevalcap")
    return Path(found.submodule_search_locations[0]) / "meteor" if found and found.submodule_search_locations else None
