"""The migrations make exactly the tables that the models describe."""

from alembic import command

from shared.migrate import alembic_config


def test_no_table_or_column_differs(postgres_url: str) -> None:
    command.check(alembic_config(postgres_url))
