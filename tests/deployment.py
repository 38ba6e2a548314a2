"""The deployment's files as data: compose, rendered manifests, Dockerfiles, the settings that containers start with.

Plain functions and records; `conftest.py` puts this folder on the path, so a test says `from deployment import ...`.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from services import REPOSITORY, unavailable

from app.settings import Settings, load_settings

DOCKER = REPOSITORY / "docker"
COMPOSE = DOCKER / "compose.yaml"
KUBERNETES = DOCKER / "kubernetes"
SECRETS_AT = "/run/secrets"
OURS = ("acgs/constitutional-flywheel", "acgs/constitutional-trainer")
DOCKERFILES = {
    "acgs/constitutional-flywheel": DOCKER / "slim.Dockerfile",
    "acgs/constitutional-trainer": DOCKER / "torch.Dockerfile",
}

Document = dict[str, Any]


@dataclass(frozen=True)
class Container:
    """A container of ours or of others, from compose or from a manifest, as far as both tell the same of it."""

    workload: str
    name: str
    image: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    ports: tuple[int, ...] = ()
    raw: Document = field(default_factory=dict)
    pod: Document = field(default_factory=dict)
    keeps_entrypoint: bool = True

    @property
    def is_ours(self) -> bool:
        """Whether it runs a `flywheel` command, by the entrypoint of an image of ours."""
        return self.image.partition(":")[0] in OURS and self.keeps_entrypoint


def draw_secrets(folder: Path, **hosts: str) -> Path:
    """The secrets of an installation, drawn by the script that operators use."""
    script = DOCKER / "install" / "secrets.sh"
    subprocess.run([script, folder], check=True, env={**os.environ, **hosts}, timeout=60)
    return folder


def compose_file() -> Document:
    """compose.yaml with its anchors and merges resolved."""
    found: Document = yaml.safe_load(COMPOSE.read_text())
    return found


def compose_containers() -> list[Container]:
    """Every service of compose.yaml."""
    return [
        Container(
            workload=name,
            name=name,
            image=service["image"],
            arguments=tuple(map(str, service.get("command") or ())),
            environment={key: str(value) for key, value in (service.get("environment") or {}).items()},
            ports=tuple(int(str(port).rsplit(":", 1)[1]) for port in service.get("ports", ())),
            raw=service,
            keeps_entrypoint="entrypoint" not in service,
        )
        for name, service in compose_file()["services"].items()
    ]


def find_program(name: str, script: str) -> Path:
    """A program that an install script builds: the one `FLYWHEEL_TEST_NAME` names, or on the path; else skips."""
    named = os.environ.get(f"FLYWHEEL_TEST_{name.upper()}") or shutil.which(name)
    if not named or not os.access(named, os.X_OK):
        unavailable(f"the program {name} was not found", f"docker/install/{script}   (needs Go)")
    return Path(named)


def render(overlay: str, folder: Path, *components: str) -> list[Document]:
    """The manifests of an overlay. Its tree is copied to `folder`, where the secrets of `dev` are drawn.

    With `components`, of an overlay over that one that takes these besides, as an operator would write it.
    """
    program = find_program("kustomize", "kustomize.sh")
    tree = folder / "docker"
    for part in ("kubernetes", "opa", "postgres"):
        shutil.copytree(DOCKER / part, tree / part, ignore=shutil.ignore_patterns("secrets"))
    where = tree / "kubernetes" / "overlays" / overlay
    draw_secrets(where / "secrets")
    if components:
        own = {"resources": [f"../{overlay}"], "components": [f"../../components/{name}" for name in components]}
        where = where.with_name("own")
        where.mkdir()
        (where / "kustomization.yaml").write_text(yaml.safe_dump(own))
    made = subprocess.run([program, "build", where], capture_output=True, text=True, timeout=120, check=False)
    assert made.returncode == 0, made.stderr
    assert "Warning" not in made.stderr, made.stderr
    return [document for document in yaml.safe_load_all(made.stdout) if document]


def of_kind(documents: list[Document], *kinds: str) -> list[Document]:
    """The documents of these kinds."""
    return [document for document in documents if document["kind"] in kinds]


def named(documents: list[Document], kind: str, name: str) -> Document:
    """The one document of a kind and name."""
    (found,) = [d for d in of_kind(documents, kind) if d["metadata"]["name"] == name]
    return found


def pods(documents: list[Document]) -> dict[str, Document]:
    """Pod templates by the name of what makes them."""
    return {
        d["metadata"]["name"]: d["spec"]["template"] for d in of_kind(documents, "Deployment", "StatefulSet", "Job")
    }


def containers(documents: list[Document]) -> list[Container]:
    """All containers of all pods, first those that initialise, with the variables that Kubernetes would give them."""
    maps = {d["metadata"]["name"]: d.get("data", {}) for d in of_kind(documents, "ConfigMap")}
    return [
        Container(
            workload=workload,
            name=raw["name"],
            image=raw["image"],
            arguments=tuple(raw.get("args", ())),
            environment=dict(_variables(raw, maps)),
            ports=tuple(port["containerPort"] for port in raw.get("ports", ())),
            raw=raw,
            pod=template,
            keeps_entrypoint="command" not in raw,
        )
        for workload, template in pods(documents).items()
        for raw in [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]
    ]


def _variables(raw: Document, maps: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, str]]:
    for source in raw.get("envFrom", ()):
        yield from maps[source["configMapRef"]["name"]].items()
    for variable in raw.get("env", ()):
        if "value" in variable:
            yield variable["name"], variable["value"]
        else:
            reference = variable["valueFrom"]["configMapKeyRef"]
            yield variable["name"], maps[reference["name"]][reference["key"]]


_ENV_LINE = re.compile(r"^(?:ENV )?\s*([A-Z_0-9]+)=(\S+?)(?: \\)?$", re.MULTILINE)


def image_environment(image: str) -> dict[str, str]:
    """What the Dockerfile of an image of ours sets for its last stage."""
    text = DOCKERFILES[image.partition(":")[0]].read_text().rpartition("\nFROM ")[2]
    (block,) = re.findall(r"^ENV .*?[^\\]$", text, re.MULTILINE | re.DOTALL)
    return dict(_ENV_LINE.findall(block))


def settings_of(container: Container, secrets: Path) -> Settings:
    """The settings that a container of ours would start with; its secrets are read from the folder `secrets`."""
    environment = {**image_environment(container.image), **container.environment}
    moved = {name: value.replace(SECRETS_AT, str(secrets)) for name, value in environment.items()}
    return load_settings({k: v for k, v in moved.items() if not k.startswith("PYTHON")}, toml=None)
