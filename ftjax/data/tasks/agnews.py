"""AG News: the section of a news item, from its title and description (Zhang et al. 2015)."""

from collections.abc import Iterator

from ftjax.data.sources import Row
from ftjax.data.tasks.table import classification_task, read_table
from ftjax.errors import UserError

CLASSES = ("World", "Sports", "Business", "Sci/Tech")
HEADER = ("Class Index", "Title", "Description")  # of the original files, where it is not written, and of copies


def expand(row: Row) -> Iterator[Row]:
    """Rows of the original files count the classes from 1."""
    if set(HEADER) <= row.keys():
        if not all(isinstance(row[name], (str, int)) for name in HEADER):
            raise UserError(f"{row.where}: {', '.join(HEADER)} must be text or a number")
        index = str(row["Class Index"]).strip()
        if index not in ("1", "2", "3", "4"):
            raise UserError(f"{row.where}: the class is '{index}'; it is from 1 to 4")
        text = f"{str(row['Title']).strip()} {str(row['Description']).strip()}"
        row = Row({"text": text, "label": CLASSES[int(index) - 1]}, row.where)
    yield row


TASK = classification_task(
    columns={"text": "text", "label": "label"},
    classes=CLASSES,
    read=lambda path, columns, bad: read_table(
        path, {role: f"{column}|{'|'.join(HEADER)}" for role, column in columns.items()}, bad, header=HEADER
    ),
    expand=expand,
)
