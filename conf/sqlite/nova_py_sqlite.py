"""What SQLite needs to serve several OpenStack processes at once: `?plugin=immediate` in a database's URL (USE_MYSQL=0).

oslo.db opens every transaction by a plain BEGIN. Such a transaction gets the write lock at its first write only, and when
it has read before, and another process has written since, SQLite refuses it at once, whatever the timeout ("database is
locked"): what it has read is no longer true. BEGIN IMMEDIATE takes the lock first, so that whoever comes second waits.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, CreateEnginePlugin, Engine


class Immediate(CreateEnginePlugin):
    """Loaded by SQLAlchemy before oslo.db adds its own listeners, so these run first."""

    def update_url(self, url: URL) -> URL:
        """It has no options to take out."""
        return url

    def engine_created(self, engine: Engine) -> None:
        """Listen."""
        event.listen(engine, "connect", prepare)
        event.listen(engine, "begin", begin)


def prepare(connection: Any, _record: Any) -> None:
    """Readers do not wait for a writer (WAL), a killed process loses nothing, keys are checked as MariaDB does."""
    for setting in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {setting}")


def begin(connection: Connection) -> None:
    """The write lock first; oslo.db leaves out its own BEGIN where this mark stands, and removes it at the end."""
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    connection.info["in_transaction"] = True
