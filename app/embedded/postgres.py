"""A private PostgreSQL cluster for tests: the machine's programs, own data folder, loopback and one Unix socket.

PostgreSQL refuses to run as root; then the cluster belongs to the account `postgres` that the packages make. Nothing
is synced to disk, so a cluster that was killed may be corrupt: it is for data that can be made again.
"""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from app.embedded.errors import EmbeddedError, ProgramMissing
from app.embedded.ports import LOOPBACK, free_port
from app.embedded.process import ManagedProcess, Program
from app.embedded.ready import log_shows
from app.embedded.run_directory import RunDirectory
from app.embedded.server import Server

ACCOUNT = "postgres"
"""The account that runs the server under root, and the database's superuser."""

APT_COMMAND = "apt-get install postgresql"

_DEBIAN = Path("/usr/lib/postgresql")
_FAST_SHUTDOWN = signal.SIGINT
_UNSAFE_BUT_FAST = ("fsync=off", "full_page_writes=off", "synchronous_commit=off")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one cluster lives."""

    folder: Path
    port: int

    @property
    def data(self) -> Path:
        return self.folder / "data"


def find_postgres() -> Path:
    """The folder of the newest server programs (Debian's layout, else the search path).

    Raises:
        ProgramMissing: there are none.
    """
    versions = [path for path in _DEBIAN.glob("*/bin") if os.access(path / "initdb", os.X_OK)]
    if versions:
        return max(versions, key=lambda path: [int(part) for part in path.parent.name.split(".")])
    found = shutil.which("initdb")
    if found is None:
        raise ProgramMissing("PostgreSQL's server programs were not found", APT_COMMAND)
    return Path(found).resolve().parent


class PostgresServer(Server):
    """A PostgreSQL cluster as a child process, made when it is first started.

    Args:
        run: where its log lies, and with which its data are removed.
    """

    def __init__(self, run: RunDirectory) -> None:
        super().__init__()
        self._run = run
        self._password = secrets.token_urlsafe(24)
        self._place: _Place | None = None

    def url(self, database: str = "postgres") -> str:
        """SQLAlchemy URL (psycopg 3) of a database of the cluster, once it is started. A secret."""
        if self._place is None:
            raise EmbeddedError("PostgreSQL has no address before it is started. Call start() first")
        return f"postgresql+psycopg://{ACCOUNT}:{self._password}@{LOOPBACK}:{self._place.port}/{quote(database)}"

    def _start_anew(self) -> ManagedProcess:
        # Not in the run directory: a socket's path holds 107 bytes, and the account must be able to reach it.
        place = _Place(folder=self._run.scratch("postgres"), port=free_port())
        programs = find_postgres()
        self._make_cluster(programs, place)
        settings = (f"port={place.port}", f"listen_addresses={LOOPBACK}", f"unix_socket_directories={place.folder}")
        options = [part for setting in (*settings, *_UNSAFE_BUT_FAST) for part in ("-c", setting)]
        argv = (*_as_account(), str(programs / "postgres"), "-D", str(place.data), *options)
        ready = log_shows("database system is ready to accept connections")
        program = Program("postgres", argv, cwd=place.folder, ready=ready, stop_signal=_FAST_SHUTDOWN)
        process = ManagedProcess(self._run, program)
        process.start()
        self._place = place
        return process

    def _make_cluster(self, programs: Path, place: _Place) -> None:
        password_file = place.folder / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(f"{self._password}\n")
        if os.geteuid() == 0:
            for path in (place.folder, password_file):
                shutil.chown(path, _account().pw_uid, _account().pw_gid)
        what = (str(programs / "initdb"), "-D", str(place.data), "-U", ACCOUNT, "--pwfile", str(password_file))
        how = ("-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync")
        made = subprocess.run(
            [*_as_account(), *what, *how], cwd=place.folder, capture_output=True, text=True, timeout=120, check=False
        )
        password_file.unlink()
        if made.returncode != 0:
            raise EmbeddedError(f"initdb ended with code {made.returncode}: {made.stderr.strip()}")


def _account() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(ACCOUNT)
    except KeyError as error:
        what = f"PostgreSQL refuses to run as root, and there is no account {ACCOUNT!r} to run it"
        raise ProgramMissing(what, APT_COMMAND) from error


def _as_account() -> tuple[str, ...]:
    """What stands before a command that must not run as root; nothing for other users."""
    if os.geteuid() != 0:
        return ()
    account = _account()
    # A change of user clears the parent-death signal, so setpriv sets it again.
    return (
        "setpriv",
        f"--reuid={account.pw_uid}",
        f"--regid={account.pw_gid}",
        "--init-groups",
        "--pdeathsig=KILL",
        "--",
    )
