"""`python -m ftjax`."""

from ftjax.cli.main import run

run()
