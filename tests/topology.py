"""compose.yaml run as plain processes: the same commands and environment, host names replaced by loopback ports.

What images add is added as they would: the Dockerfiles' variables, the entrypoint, the health check's own script.
Kafka, Redis and PostgreSQL are this machine's programs with the configuration that compose gives their images.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml
from composed_kafka import ComposedKafka
from deployment import COMPOSE, DOCKER, Container, compose_containers, draw_secrets, image_environment
from services import REPOSITORY
from sqlalchemy.engine import make_url

from app.embedded.collector import find_collector
from app.embedded.opa import find_opa
from app.embedded.ports import LOOPBACK, free_port
from app.embedded.postgres import PostgresServer, find_postgres
from app.embedded.process import ManagedProcess, ProcessGroup, Program
from app.embedded.ready import Ready, http_ok, log_shows
from app.embedded.redis import find_redis
from app.embedded.run_directory import RunDirectory
from app.roles import Role

NOT_HERE = frozenset({"grafana", "elasticsearch", "mlflow", "collector-storage", "backup"})
"""Programs that cannot be had here; one that only gives a volume its owner; one that is run by hand."""

# Where our own programs listen is a setting whose default compose leaves alone.
_PORT_SETTINGS = {f"FLYWHEEL_WEB__{role.value.upper()}_PORT": role for role in Role}
_ANY_ADDRESS = re.compile(r"\b(?:0\.0\.0\.0|127\.0\.0\.1|localhost):(\d+)")
_READY_S = 300.0


class Topology:
    """The services of compose.yaml as processes. `environment` of a service is what its process was started with."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.folder = run.data
        self.secrets = draw_secrets(self.folder / "secrets", REDIS_HOST="redis", POSTGRES_HOST="postgres")
        absent = NOT_HERE if _has_prometheus() else {*NOT_HERE, "prometheus"}
        self.containers = {c.name: c for c in compose_containers() if c.name not in absent}
        self.group = ProcessGroup()
        self.processes: dict[str, ManagedProcess] = {}
        self.environments: dict[str, dict[str, str]] = {}
        self._tasks: dict[str, subprocess.Popen[str]] = {}
        self._ports: dict[tuple[str, int], int] = {}

    def port(self, service: str, port: int) -> int:
        """The loopback port that stands for a service's port."""
        return self._ports.setdefault((service, port), free_port())

    def url(self, service: str, port: int) -> str:
        return f"http://{LOOPBACK}:{self.port(service, port)}"

    def secret(self, name: str) -> str:
        return (self.secrets / name).read_text()

    def environment_secret(self, service: str, variable: str) -> str:
        """What a service reads from the file that a variable of its names."""
        return Path(self.environments[service][variable]).read_text()

    def start(self) -> None:
        """Start each service as soon as those that it depends on are healthy or have ended; raises `ProcessError`."""
        waiting, starting, done = dict(self.containers), dict[str, Container](), set[str]()
        deadline = time.monotonic() + _READY_S
        while waiting or starting:
            for name, container in list(waiting.items()):
                if self.containers.keys() & container.raw.get("depends_on", {}).keys() <= done:
                    starting[name] = waiting.pop(name)
                    self._start(container)
            if not starting:
                raise ValueError(f"{COMPOSE} has a circle of dependencies among {', '.join(waiting)}")
            ready = [name for name, container in starting.items() if self._is_done(container)]
            for name in ready:
                done.add(name)
                del starting[name]
            self.group.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{', '.join(starting)} not ready within {_READY_S:.0f} s")
            time.sleep(0.1)

    def stop(self) -> None:
        self.group.stop()

    def command(self, service: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A `flywheel` command inside a service, as `docker compose exec` would run it."""
        running = self._flywheel(service, *arguments)
        output, errors = running.communicate(timeout=120)
        return subprocess.CompletedProcess(running.args, running.returncode, output, errors)

    def _flywheel(self, service: str, *arguments: str) -> subprocess.Popen[str]:
        argv = [sys.executable, "-m", "app", *arguments]
        environment = {**os.environ, **self.environments[service]}
        return subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def _start(self, container: Container) -> None:
        if container.name == "kafka":
            self._start_kafka(container)
        elif container.name == "postgres":
            self._start_postgres(container)
        elif container.raw.get("restart") == "no":
            self.environments[container.name] = self._environment(container)
            self._tasks[container.name] = self._flywheel(container.name, *container.arguments)
        else:
            program = self._program(container)
            self.processes[container.name] = self.group.start(ManagedProcess(self.run, program))

    def _program(self, container: Container) -> Program:
        name = container.name
        environment = self._environment(container)
        arguments = [self._translated(container, text) for text in container.arguments]
        ready: Ready | None = None
        if container.is_ours:
            argv = [sys.executable, "-m", "app", *arguments]
        elif name == "redis":
            argv = [str(find_redis()), *arguments[1:], "--port", str(self.port(name, 6379)), "--bind", LOOPBACK]
            ready = log_shows("Ready to accept connections")
        elif name == "opa":
            argv = [str(find_opa()), *arguments]
        elif name == "otel-collector":
            argv = [str(find_collector()), *arguments]
        else:
            argv = [str(shutil.which(name)), *arguments]
        self.environments[name] = environment
        grace = float(str(container.raw.get("stop_grace_period", "10s")).removesuffix("s"))
        return Program(name, tuple(argv), env=environment, ready=ready, stop_within=grace)

    def _environment(self, container: Container) -> dict[str, str]:
        given = dict(container.environment)
        if container.is_ours:
            given = {**image_environment(container.image), **given}
            given.pop("PATH", None)
            # The code of this checkout, which an image would have in its environment.
            given["PYTHONPATH"] = str(REPOSITORY)
            for variable, role in _PORT_SETTINGS.items():
                if container.arguments == ("worker", role.value):
                    (port,) = re.findall(r":(\d+)/", given["HEALTH_URL"])
                    given[variable] = f"{LOOPBACK}:{port}"
            for engine in ("policy-engine", "audit-engine"):
                if container.arguments == (engine,):
                    (port,) = re.findall(r":(\d+)/", given["HEALTH_URL"])
                    given[f"FLYWHEEL_{engine.replace('-', '_').upper()}__PORT"] = f"{LOOPBACK}:{port}"
        translated = {name: self._translated(container, text) for name, text in given.items()}
        for name in translated:
            if name.startswith("FLYWHEEL_") and name.endswith("_PORT"):
                translated[name] = translated[name].rpartition(":")[2]
            elif translated[name] == "0.0.0.0":  # noqa: S104 - the container's, here loopback
                translated[name] = LOOPBACK
        return translated

    def _translated(self, container: Container, text: str) -> str:
        """A text of a service as it must be here: ports, mounted files and folders."""
        text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text).replace("$$", "$")
        text = _ANY_ADDRESS.sub(lambda m: f"{LOOPBACK}:{self.port(container.name, int(m[1]))}", text)
        text = self._with_hosts(text)
        for path, here in self._mounts(container).items():
            text = re.sub(rf"(?<![\w/]){re.escape(path)}(?=/|$|\b)", str(here), text)
        return text

    def _with_hosts(self, text: str) -> str:
        names = "|".join(map(re.escape, sorted(self.containers, key=len, reverse=True)))
        return re.sub(rf"(?<![\w.-])({names}):(\d+)", lambda m: f"{LOOPBACK}:{self.port(m[1], int(m[2]))}", text)

    def _mounts(self, container: Container) -> dict[str, Path]:
        """Where a container's folders and files lie here; those of the text that name hosts are copied with theirs."""
        places = {"/run/secrets": self._secrets_here()}
        for volume in container.raw.get("volumes", ()):
            source, target, *_ = str(volume).split(":")
            if not source.startswith("."):
                places[target] = self.folder / "volumes" / source
                places[target].mkdir(parents=True, exist_ok=True)
                if source == "policy-cache":
                    self._lend_encoder(places[target])
            elif target.startswith("/etc/otelcol"):
                places[target] = (DOCKER / source).resolve()
            else:
                places[target] = self._copied(container, DOCKER / source)
        # What the image's own folders are, where no volume lies on them.
        for path in ("/var/lib/flywheel", "/app"):
            if container.is_ours and path not in places:
                places[path] = self.folder / "containers" / container.name / path.strip("/").replace("/", "-")
        return dict(sorted(places.items(), key=lambda item: -len(item[0])))

    def _lend_encoder(self, volume: Path) -> None:
        """Let the policy engine find what this checkout has prepared already: making it takes half a minute."""
        prepared = REPOSITORY / "var" / "cache" / "engine"
        prepared.mkdir(parents=True, exist_ok=True)
        if not (volume / "engine").exists():
            (volume / "engine").symlink_to(prepared)

    def _secrets_here(self) -> Path:
        here = self.folder / "run-secrets"
        here.mkdir(exist_ok=True, mode=0o700)
        for path in self.secrets.iterdir():
            (here / path.name).write_text(self._with_hosts(path.read_text()))
        return here

    def _copied(self, container: Container, source: Path) -> Path:
        target = self.folder / "containers" / container.name / source.name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, dirs_exist_ok=True)
        else:
            shutil.copy(source, target)
        for path in [target, *target.rglob("*")]:
            if path.name == "prometheus.yaml":
                path.write_text(yaml.safe_dump(self._scraped_here(yaml.safe_load(path.read_text()))))
            elif path.suffix in {".yaml", ".yml"}:
                text = self._with_hosts(path.read_text())
                path.write_text(text.replace("/run/secrets", str(self._secrets_here())))
        return target

    def _scraped_here(self, configuration: dict[str, Any]) -> dict[str, Any]:
        """Prometheus' configuration with loopback ports for the names that it would look up."""
        services = dict.fromkeys(self.containers, "") | {
            alias: name
            for name, container in self.containers.items()
            if isinstance(networks := container.raw.get("networks"), dict)
            for alias in networks["flywheel"]["aliases"]
        }
        configuration.pop("alerting", None)  # nobody is told here
        for job in configuration["scrape_configs"]:
            job["authorization"]["credentials_file"] = str(self._secrets_here() / "web_token")
            targets = [(name, found["port"]) for found in job.pop("dns_sd_configs") for name in found["names"]]
            here = [f"{LOOPBACK}:{self.port(services[name] or name, port)}" for name, port in targets]
            job["static_configs"] = [{"targets": here}]
        return configuration

    def _is_done(self, container: Container) -> bool:
        """As compose sees it: healthy, or at its end where it runs once."""
        name = container.name
        if (task := self._tasks.get(name)) is not None:
            assert task.poll() in {None, 0}, f"{name} ended with {task.returncode}: {task.communicate()[1]}"
            return task.returncode == 0
        pages = {
            "opa": (8181, "/health?bundles=true"),
            "otel-collector": (13133, "/"),
            "prometheus": (9090, "/-/ready"),
        }
        if name in pages:
            port, path = pages[name]
            return http_ok(self.url(name, port) + path)(self.processes[name])
        if not container.is_ours:
            return True  # was waited for when it was started
        # The script starts a Python each time: it has the last word, not the first.
        return http_ok(self.environments[name]["HEALTH_URL"])(self.processes[name]) and self._is_healthy(name)

    def _is_healthy(self, name: str) -> bool:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "HEALTH_URL": self.environments[name]["HEALTH_URL"]}
        script = DOCKER / "install" / "healthy.sh"
        return subprocess.run([script], env=environment, timeout=30, check=False).returncode == 0

    def _start_kafka(self, container: Container) -> None:
        broker = ComposedKafka(self.run, container.environment)
        self.group.start(broker)
        self._ports["kafka", 9092] = int(broker.bootstrap.rpartition(":")[2])

    def _start_postgres(self, container: Container) -> None:
        server = PostgresServer(self.run)
        self.group.start(server)
        where = make_url(server.url())
        self._ports["postgres", 5432] = int(where.port or 0)
        # The image runs it when the database is new, with the machine's own way in.
        environment = self._environment(container) | {
            "PGHOST": LOOPBACK,
            "PGPORT": str(self._ports["postgres", 5432]),
            "PGPASSWORD": str(where.password),
            "PATH": f"{find_postgres()}:{os.environ['PATH']}",
        }
        script = DOCKER / "postgres" / "init.sh"
        done = subprocess.run([script], env={**os.environ, **environment}, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr


def _has_prometheus() -> bool:
    return shutil.which("prometheus") is not None and (DOCKER / "prometheus" / "prometheus.yaml").exists()
