"""What `make` stands on: pinned versions, the install scripts, and that skips are not hidden."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[3]
INSTALL = ROOT / "docker" / "install"
PINS = {
    canonicalize_name(name): version
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
}

CASES = """
import pytest

def test_passes():
    pass

def test_misses_a_program():
    from services import unavailable
    unavailable("there is no database", "apt-get install database")

def test_misses_data():
    from services import unavailable
    unavailable("test data: none", "DATA=/path", may_be_missing=True)

@pytest.mark.skip(reason="a plain skip")
def test_is_skipped():
    pass

@pytest.mark.xfail(reason="known", strict=True)
def test_fails_as_known():
    assert False
"""


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    return [Requirement(text) for group in groups for text in group]


def test_every_dependency_is_pinned_to_a_version_it_allows() -> None:
    wrong = [
        str(needed)
        for needed in requirements()
        if needed.name != "constitutional-flywheel"
        and not needed.specifier.contains(PINS.get(canonicalize_name(needed.name), "none"), prereleases=True)
    ]
    assert wrong == [], "run `make constraints` after a change of dependencies"


def test_pins_are_versions_and_nothing_else() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert len(lines) == len(PINS)


def pytest_run(folder: Path, *, require_all: bool) -> str:
    """Run the cases above under this project's conftest; what pytest printed."""
    for name in ("conftest.py", "services.py"):
        shutil.copy(ROOT / "tests" / name, folder)
    (folder / "test_cases.py").write_text(CASES)
    (folder / "test_module.py").write_text("import pytest\npytest.importorskip('no_such_module')\n")
    environment = {**os.environ, "FLYWHEEL_REQUIRE_ALL": "1" if require_all else "", "PYTHONPATH": str(ROOT)}
    options = ("-q", "-p", "no:cacheprovider", "--continue-on-collection-errors", "--import-mode=importlib")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "-c", os.devnull, "--rootdir", str(folder), str(folder)],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout


def test_skips_stay_skips_and_are_listed(tmp_path: Path) -> None:
    told = pytest_run(tmp_path, require_all=False)
    assert "1 passed, 4 skipped, 1 xfailed" in told
    assert "did not run here" in told
    assert "there is no database. Provide it with: apt-get install database" in told


def test_skips_are_failures_where_all_is_required_but_for_test_data(tmp_path: Path) -> None:
    told = pytest_run(tmp_path, require_all=True)
    assert "1 failed, 1 passed, 1 skipped, 1 xfailed, 2 errors" in told
    for reason in ("could not import 'no_such_module'", "there is no database", "a plain skip"):
        assert f"this was skipped: {reason}" in told
    assert "this machine may go without: test data: none" in told


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A search path with the shell's own tools and nothing that could be installed."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("bash", "dirname", "env", "head", "id", "sed"):
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    return folder


def script(name: str, *arguments: str, path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(INSTALL / name), *arguments],
        env={"PATH": str(path), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_python_that_does_not_fit_is_named_with_the_remedy(bare: Path) -> None:
    done = script("find-python.sh", path=bare, PYTHON="/bin/false")
    assert done.returncode == 1
    assert "No Python 3.11 to 3.13 with venv among: /bin/false" in done.stderr
    assert "apt-get install python3 python3-venv" in done.stderr


def test_the_named_python_is_taken(bare: Path) -> None:
    done = script("find-python.sh", path=bare, PYTHON=sys.executable)
    assert done.returncode == 0
    assert Path(done.stdout.strip()).resolve() == Path(sys.executable).resolve()


def test_without_apt_the_missing_packages_are_named(bare: Path) -> None:
    done = script("system.sh", "test", path=bare, PYTHON=sys.executable)
    assert done.returncode == 0
    assert "Not a Debian or Ubuntu" in done.stderr
    assert "redis-server" in done.stderr
    assert "default-jre-headless maven prometheus chromium shellcheck" in done.stderr


def test_without_root_and_sudo_the_command_is_named(bare: Path) -> None:
    for name, body in (("apt-get", "exit 9"), ("id", "echo 1000")):
        (bare / name).unlink(missing_ok=True)
        (bare / name).write_text(f"#!{bare}/bash\n{body}\n")
        (bare / name).chmod(0o755)
    done = script("system.sh", "test", path=bare, PYTHON=sys.executable)
    assert done.returncode == 0
    assert "only root can install it: sudo apt-get install redis-server" in done.stderr


def test_the_demo_needs_nothing_but_python(bare: Path) -> None:
    done = script("system.sh", "demo", path=bare, PYTHON=sys.executable)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
