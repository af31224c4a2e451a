"""Bring the database to the newest schema: `python -m shared.db.migrate`."""

from pathlib import Path

from alembic import command
from alembic.config import Config

from shared import log
from shared.settings import get_settings


def alembic_config(database_url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["database_url"] = database_url
    return config


def upgrade(database_url: str) -> None:
    command.upgrade(alembic_config(database_url), "head")


if __name__ == "__main__":
    log.configure("migrate")
    upgrade(get_settings().database_url)
