"""Apache Kafka's jars, fetched once by Maven into a cache that all runs share."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from app.embedded.errors import EmbeddedError, ProgramMissing

KAFKA_VERSION = "4.3.1"
OLDEST_JAVA = 17
"""The oldest Java that runs a broker of Kafka 4."""

APT_COMMAND = "apt-get install default-jre-headless maven"

_POM = Path(__file__).with_name("pom.xml")
_FETCH_WITHIN_S = 900.0
_JAVA_VERSION = re.compile(r'version "(\d+)(?:\.(\d+))?')


def default_cache(environment: Mapping[str, str]) -> Path:
    """The cache folder: FLYWHEEL_CACHE, else `constitutional-flywheel` in the user's cache folder (XDG)."""
    if chosen := environment.get("FLYWHEEL_CACHE"):
        return Path(chosen).expanduser()
    return Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "constitutional-flywheel"


def find_java() -> Path:
    """The machine's Java, where it is new enough.

    Raises:
        ProgramMissing: there is none, or it is too old.
    """
    found = shutil.which("java")
    if found is None:
        raise ProgramMissing("Apache Kafka needs Java, and there is no `java` on the search path", APT_COMMAND)
    answer = subprocess.run([found, "-version"], capture_output=True, text=True, timeout=60, check=False)
    match = _JAVA_VERSION.search(answer.stderr + answer.stdout)
    major = int(match[2] or 0) if match and match[1] == "1" else int(match[1]) if match else 0  # Java 8 said "1.8"
    if major < OLDEST_JAVA:
        raise ProgramMissing(f"Apache Kafka {KAFKA_VERSION} needs Java {OLDEST_JAVA}, {found} is {major}", APT_COMMAND)
    return Path(found)


def jar_folder(cache: Path) -> Path:
    """Where the jars lie in the cache, once they were fetched."""
    return cache / f"kafka-{KAFKA_VERSION}"


def fetch_jars(cache: Path) -> Path:
    """The folder of the jars; Maven fetches them the first time (54 MB).

    The folder appears whole or not at all, so runs side by side may fetch at the same time.

    Raises:
        ProgramMissing: they must be fetched and there is no Maven.
        EmbeddedError: Maven failed.
    """
    folder = jar_folder(cache)
    if folder.is_dir():
        return folder
    maven = shutil.which("mvn")
    if maven is None:
        raise ProgramMissing("Apache Kafka's jars are fetched by Maven, and there is no `mvn`", APT_COMMAND)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=cache) as work:
        shutil.copy(_POM, work)
        jars = Path(work, "jars")
        goal = ("dependency:copy-dependencies", f"-DoutputDirectory={jars}", "-DincludeScope=runtime")
        # -C: a jar whose checksum does not match is an error.
        argv = [maven, "-q", "-B", "-C", *goal]
        fetched = subprocess.run(
            argv,
            cwd=work,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_FETCH_WITHIN_S,
            check=False,
        )
        if fetched.returncode != 0 or not any(jars.glob(f"kafka_*-{KAFKA_VERSION}.jar")):
            raise EmbeddedError(
                f"Maven could not fetch Apache Kafka {KAFKA_VERSION} (code {fetched.returncode}). Check that it "
                f"reaches its repository. It said:\n{fetched.stdout[-4000:]}"
            )
        _publish(jars, folder)
    return folder


def _publish(jars: Path, folder: Path) -> None:
    try:
        jars.rename(folder)
    except OSError:
        if not folder.is_dir():  # somebody else's fetch coming first is as good
            raise
