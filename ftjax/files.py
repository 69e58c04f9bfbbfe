"""Files that are whole or absent, in folders of this machine and in buckets.

A bucket's path (`gs://bucket/...`) is one of etils.epath, which has of pathlib's methods those that runs' folders need.
What such a place cannot or does otherwise is here: nothing there is renamed or appended to, there are no folders to
make, and an object is whole or absent by itself.
"""

import contextlib
import errno
import importlib.util
import json
import logging
import math
import os
import re
import shutil
import socket
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from ftjax.errors import UserError

BUCKETS = "gs://"
SEEN = 30.0  # seconds after which what grows is to be seen in a bucket
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)
LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EEXIST, errno.EISDIR, errno.ENAMETOOLONG)


def as_path(text: str) -> Path:
    """The path that a text names, of this machine or of a bucket.

    Raises:
      UserError: a bucket, without the package that reaches it.
    """
    if not text.startswith(BUCKETS):
        return Path(text)
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{text}: a bucket needs gcsfs: pip install 'ftjax[gcs]'")
    from etils import epath
    from fsspec.config import conf

    conf.setdefault("gcs", {})["use_listings_cache"] = False  # other machines write there too
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # zonal buckets have no creation if absent
    return cast(Path, epath.Path(text))


def local(text: str, flag: str) -> Path:
    """The path of this machine that a flag names.

    Raises:
      UserError: a bucket's.
    """
    if text.startswith(BUCKETS):
        raise UserError(f"{flag}={text}: give a path of this machine, not of a bucket")
    return Path(text)


def bucket_errors() -> tuple[type[Exception], ...]:
    """What a bucket's client raises of credentials and of the network; none before a bucket was asked."""
    if "gcsfs" not in sys.modules:
        return ()
    from aiohttp import ClientError
    from gcsfs.retry import HttpError
    from google.auth.exceptions import GoogleAuthError

    return ClientError, HttpError, GoogleAuthError


def in_bucket(path: Path) -> bool:
    """Whether a path is a bucket's."""
    return not isinstance(path, Path)


def absolute(path: Path) -> Path:
    """The path from the root; symbolic links stay."""
    return path if in_bucket(path) else Path(os.path.abspath(path))


def modified(path: Path) -> float:
    """When it was last written, in seconds since 1970."""
    if in_bucket(path):
        import fsspec

        return fsspec.filesystem("gs").info(str(path))["mtime"].timestamp()
    return path.stat().st_mtime


def cache(name: str) -> Path:
    """Where this user's caches of a name lie on this machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ftjax" / name


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Writes to `path`; a UserError that names it where that cannot be. What may pass (a lost connection) is raised as
    it is."""
    try:
        yield
    except OSError as error:
        refused = isinstance(error, FileNotFoundError | NotADirectoryError | PermissionError)
        if not refused and error.errno not in LASTING and not str(error).startswith("Forbidden"):  # as gcsfs says it
            raise
        absent = in_bucket(path) and isinstance(error, FileNotFoundError) and error.errno is None
        why = "no such bucket" if absent else error.strerror or error
    except ValueError as error:
        code = re.search(r"os_error_code='(\d+)'", str(error))  # as tensorstore says it
        if code is None:
            raise
        why = os.strerror(int(code[1]))
    else:
        return
    raise UserError(f"cannot write to {path}: {why}") from None


def make_folder(path: Path) -> None:
    """Makes a folder, and those that it is in.

    Raises:
      UserError: a place that cannot be written to.
    """
    with writing(path):
        if not in_bucket(path):
            path.mkdir(parents=True, exist_ok=True)


def read_bytes(path: Path) -> bytes:
    """What a file holds at one time, whoever writes it anew meanwhile.

    Raises:
      OSError: none there, or none that can be read.
    """
    if in_bucket(path):
        import fsspec

        # one request: a file that is opened there asks for its size first
        return cast(bytes, fsspec.filesystem("gs").cat_file(str(path)))
    return path.read_bytes()


def read_text(path: Path) -> str:
    """As `read_bytes`, a text in UTF-8."""
    return read_bytes(path).decode()


def write_text(path: Path, text: str) -> None:
    """Written aside, then renamed.

    Raises:
      UserError: a place that cannot be written to.
    """
    with writing(path):
        if in_bucket(path):
            path.write_bytes(text.encode())
        else:
            with _aside(path, text) as aside:
                aside.rename(path)


def create(path: Path, text: str) -> bool:
    """Writes a file that is not there; False where it is. Of those who try at once one alone does.

    Raises:
      UserError: a place that cannot be written to.
    """
    with writing(path):
        try:
            if in_bucket(path):
                import fsspec

                fsspec.filesystem("gs", finalize_on_close=True).pipe_file(str(path), text.encode(), mode="create")
            else:
                with _aside(path, text) as aside:
                    _link(aside, path)
        except FileExistsError:
            # of a bucket's, the answer to a first try may have been lost
            return in_bucket(path) and read_text(path) == text
    return True


def _beside(path: Path) -> Path:
    """A name that no other process has, be it of another machine on the same disk."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")


@contextlib.contextmanager
def _aside(path: Path, text: str) -> Iterator[Path]:
    """A file of this text beside `path`, which goes."""
    aside = _beside(path)
    try:
        aside.write_text(text)
        yield aside
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()


def _link(aside: Path, path: Path) -> None:
    """FileExistsError where `path` is there; else it is there at once and whole."""
    try:
        os.link(aside, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        with path.open("x") as stream:  # a bucket mounted as a folder, whose files appear when they are closed
            stream.write(aside.read_text())


class Growing:
    """Where files of a folder are written bit by bit: the folder itself or, as a bucket has no such files, one of this
    machine.

    folder: that place.
    """

    def __init__(self, folder: Path):
        self.folder, self._up = folder, None
        if in_bucket(folder):
            self.folder, self._up = Path(tempfile.mkdtemp(prefix="ftjax-")), folder
            weakref.finalize(self, shutil.rmtree, self.folder, True)
        self._copied: dict[Path, int] = {}
        self._when = time.time()

    def file(self, name: str) -> Path:
        """A file there, as it is so far."""
        path = self.folder / name
        if self._up is not None and (self._up / name).exists():
            path.write_bytes(read_bytes(self._up / name))
        return path

    def copy(self, now: bool = True) -> None:
        """Copies up what has grown; where not `now`, only once in a while, and what fails later.

        Raises:
          UserError: a bucket that cannot be written to.
        """
        if self._up is None or (not now and time.time() - self._when < SEEN):
            return
        self._when = time.time()
        for path in sorted(self.folder.rglob("*")):
            if not path.is_file() or path.stat().st_size == self._copied.get(path):
                continue
            data, up = path.read_bytes(), self._up / path.relative_to(self.folder).as_posix()
            try:
                with writing(up):
                    up.write_bytes(data)
            except (OSError, UserError, *bucket_errors()) as error:
                if now:
                    raise
                logging.warning("%s: not copied yet (%s)", up, error)
            else:
                self._copied[path] = len(data)


def check_other(source: Path | None, output: Path | None, flag: str) -> None:
    """UserError where what is written would take the place of what is read, or has no folder to go to."""
    if output is None or in_bucket(output):
        return
    if source is not None and output.resolve() == source.resolve():
        raise UserError(f"{flag}={output} is what is read; give another file")
    if not output.parent.is_dir() or output.is_dir():
        raise UserError(f"{flag}={output}: give a file in a folder that is there")


def as_json(value: Any) -> str:
    """Sorted and indented, made `finite`."""
    return json.dumps(finite(value), indent=2, sort_keys=True, allow_nan=False) + "\n"


def write_json(path: Path, value: Any) -> None:
    """As `as_json`."""
    write_text(path, as_json(value))


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """JSON lines."""
    write_text(path, "".join(json.dumps(finite(row), allow_nan=False) + "\n" for row in rows))


@contextlib.contextmanager
def whole(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write into: at the end it is `folder`, or its files, also those of folders inside,
    replace those of the same names.

    Raises:
      UserError: a place that cannot be written to.
    """
    if in_bucket(folder):
        raise UserError(f"{folder}: this goes to folders of this machine alone")
    folder = absolute(folder)
    aside = _beside(folder)
    try:
        aside.mkdir(parents=True)
        yield aside
        if not folder.exists():
            aside.rename(folder)
            return
        files = [path.relative_to(aside) for path in aside.rglob("*") if path.is_file()]
        for file in sorted(files, key=lambda file: file.suffix == ".json"):  # what tells of weights comes last
            (folder / file).parent.mkdir(exist_ok=True, parents=True)
            os.replace(aside / file, folder / file)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def finite(value: Any) -> Any:
    """The same lists and objects with null for each number that is not finite, for JSON has none."""
    if isinstance(value, dict):
        return {name: finite(x) for name, x in value.items()}
    if isinstance(value, list | tuple):
        return [finite(x) for x in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
