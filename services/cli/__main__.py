"""`python -m services.cli`, the same as the `forethought` command."""

from services.cli.main import app

app(prog_name="forethought")
