"""A PostgreSQL of Debian's, for as long as the tests take."""

import getpass
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The address of an empty database."""
    pytest.importorskip("psycopg", reason="psycopg is not installed: pip install -e '.[postgres]'")
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin")) or [Path("/usr/bin")]
    if not (programs[-1] / "initdb").exists():
        pytest.skip("there is no PostgreSQL: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # pytest's own are closed to other users
    root = getpass.getuser() == "root"
    if root:  # which PostgreSQL refuses to be
        shutil.chown(folder, "postgres")
    as_user = ["runuser", "-u", "postgres", "--"] if root else []
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

    def run(program: str, *words: str) -> None:
        words = (*as_user, str(programs[-1] / program), "-D", str(folder / "data"), *words)
        subprocess.run(words, cwd=folder, check=True, stdout=subprocess.DEVNULL)

    run("initdb", "-A", "trust", "-U", "digits", "--no-sync")
    run("pg_ctl", "-w", "-l", str(folder / "log"), "-o", f"-p {port} -h 127.0.0.1 -k {folder} -F", "start")
    yield f"postgresql://digits@127.0.0.1:{port}/postgres"
    run("pg_ctl", "-m", "immediate", "stop")
    shutil.rmtree(folder)
