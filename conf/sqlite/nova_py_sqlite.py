"""What SQLite needs to serve several OpenStack processes at once: `?plugin=immediate` in a database's URL (USE_MYSQL=0).

oslo.db opens every transaction by a plain BEGIN. Such a transaction gets the write lock at its first write only, and when
it has read before, and another process has written since, SQLite refuses it at once, whatever the timeout ("database is
locked"): what it has read is no longer true. BEGIN IMMEDIATE takes the lock first, so that whoever comes second waits.

Where a thread opens a second transaction inside its first, it would wait for itself. placement does so when another request
took room at the same provider while it was about to: to read how much is left (placement.objects.allocation.replace_all).
Such a one gets the plain BEGIN: it reads what is there.
"""

from __future__ import annotations

import threading
import weakref
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
        held = threading.local()  # .by: who took the lock last in this thread
        event.listen(engine, "connect", prepare)
        event.listen(engine, "begin", lambda connection: begin(connection, held))


def prepare(connection: Any, _record: Any) -> None:
    """Readers do not wait for a writer (WAL), a killed process loses nothing, keys are checked as MariaDB does."""
    for setting in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {setting}")


def begin(connection: Connection, held: threading.local) -> None:
    """The write lock first; oslo.db leaves out its own BEGIN where this mark stands, and removes it at the end."""
    holder = held.by() if hasattr(held, "by") else None
    if holder and holder.in_transaction():
        return
    connection.exec_driver_sql("BEGIN IMMEDIATE")
    connection.info["in_transaction"] = True
    held.by = weakref.ref(connection)
