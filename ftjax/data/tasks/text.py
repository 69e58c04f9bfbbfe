"""Raw text for (continued) pretraining: each file is one document, split by document."""

from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ftjax.data.bad import BadRows
from ftjax.data.sources import Row, is_hub_id, none_left, read_text, suffix
from ftjax.data.tasks.table import Source, file_of, limited, load_table
from ftjax.data.tasks.task import Split, Task, Text
from ftjax.errors import UserError

COLUMNS = {"text": "text"}
HOLD_OUT = 10  # one document of so many, or the last tenth of a single one


def load(cfg: Any, split: Split, bad: BadRows) -> list[Row]:
    """Documents with the role `text`.

    A .txt (.gz, .bz2) file is one document; other formats have one per row. In a directory the validation
    documents match the pattern `cfg.validation_files`, or are every tenth by sorted name, the first
    included. A single file given as cfg.data is cut at nine tenths of its characters.

    Raises:
        UserError: no documents, or a test split without task.files.test.
    """
    path, before = file_of(cfg, split), len(bad.messages)
    if path and suffix(path) == ".txt":
        rows = [_document(Path(path), read_text(path))]
    elif path or is_hub_id(cfg.data):
        return load_table(cfg, split, bad, Source(COLUMNS, _not_empty))
    elif split == "test":
        raise UserError("task.files.test is not set; the text task holds out validation documents only")
    elif not cfg.data:
        raise UserError(f"task.data and task.files.{split} are empty; give .txt documents")
    elif Path(cfg.data).is_file() and suffix(cfg.data) != ".txt":
        raise UserError(f"{cfg.data}: task.data is a .txt file or a directory; give rows as task.files.{split}")
    elif Path(cfg.data).is_file():
        row = _document(Path(cfg.data), read_text(cfg.data))
        cut = len(row["text"]) * (HOLD_OUT - 1) // HOLD_OUT
        rows = [Row({"text": row["text"][:cut] if split == "train" else row["text"][cut:]}, row.where)]
    elif Path(cfg.data).is_dir():
        pattern = getattr(cfg, "validation_files", "")
        rows = []
        for document in _documents(Path(cfg.data), pattern, split):
            text = read_text(document)
            with bad:
                rows.append(_document(document, text))
        if not rows:
            raise none_left(cfg.data, bad.messages[before:])
    else:
        raise UserError(f"{cfg.data}: no such directory or file; set task.data to .txt or .txt.gz documents")
    return limited(rows, cfg, split)


def _document(path: Path, text: str) -> Row:
    row = Row({"text": text}, f"{path}:1")
    _not_empty(row)
    return row


def _not_empty(row: Row) -> None:
    if not row["text"].strip():
        raise UserError(f"{row.where}: the document is empty; remove it or give it text")


def _documents(directory: Path, pattern: str, split: Split) -> list[Path]:
    paths = sorted(path for path in directory.iterdir() if suffix(path) == ".txt")
    held = {path for path in paths if fnmatch(path.name, pattern)} if pattern else set(paths[::HOLD_OUT])
    chosen = [path for path in paths if (path in held) == (split == "validation")]
    if not chosen:
        raise UserError(
            f"{directory}: no document left for the {split} split ({len(paths)} .txt or .txt.gz files); "
            "add files or mend task.validation_files"
        )
    return chosen


def example(row: dict[str, Any], eos: str) -> Text:
    """The whole document, ended by eos."""
    return Text("", row["text"] + eos)


TASK = Task(("lm", "mlm", "nsp", "rtd", "spans"), COLUMNS, load, example, ("perplexity", "bits_per_byte"), chunked=True)
