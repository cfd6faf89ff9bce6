"""Bring the schemas of runs and accounts up to date, and make the account that training logs in with:  upgrade.py ACCOUNTS_URI

Replicas that start at once each call this; a lock of PostgreSQL lets one of them at a time, for MLflow 3.17 fails where two make the same
tables. Read from the environment: MLFLOW_BACKEND_STORE_URI, MLFLOW_CLIENT_USERNAME and MLFLOW_CLIENT_PASSWORD (no account without them).
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = 7238129  # any number, but the same in all replicas


@contextmanager
def alone(uri: str) -> Iterator[None]:
    """Wait until no other process upgrades this PostgreSQL; other databases are not shared, and need no lock."""
    import sqlalchemy

    if not uri.startswith("postgresql"):
        yield
        return
    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:  # the lock goes with the connection, however this process ends
        connection.execute(sqlalchemy.text(f"select pg_advisory_lock({_LOCK})"))
        yield


def account(uri: str, name: str, password: str) -> None:
    """An ordinary user of that name and password; one that is there gets the password."""
    from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore()
    store.init_db(uri)
    if not store.has_user(name):
        store.create_user(name, password)
    elif not store.authenticate_user(name, password):
        store.update_user(name, password=password)


def main(accounts: str) -> None:
    runs = os.environ["MLFLOW_BACKEND_STORE_URI"]
    with alone(runs):
        subprocess.run(["mlflow", "db", "upgrade", runs], check=True)
        subprocess.run([sys.executable, "-m", "mlflow.server.auth", "db", "upgrade", "--url", accounts], check=True)
        if name := os.environ.get("MLFLOW_CLIENT_USERNAME"):
            account(accounts, name, os.environ["MLFLOW_CLIENT_PASSWORD"])


if __name__ == "__main__":
    main(sys.argv[1])
