"""Alembic's environment: one connection, one transaction, one migrator at a time."""

from alembic import context
from sqlalchemy import create_engine, text

from shared.db.tables import Base

MIGRATION_LOCK = 4610_10630
"""Key of the advisory lock that makes concurrent starts wait for each other."""

engine = create_engine(context.config.attributes["database_url"])
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=Base.metadata, compare_type=True)
    with context.begin_transaction():
        connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
        context.run_migrations()
engine.dispose()
