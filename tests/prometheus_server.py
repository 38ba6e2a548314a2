"""A private Prometheus for tests: Debian's program over the project's own configuration, with its clock sped up."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import yaml
from services import REPOSITORY, unavailable

from app.embedded.ports import LOOPBACK, free_port
from app.embedded.process import ManagedProcess, Program
from app.embedded.ready import http_ok
from app.embedded.run_directory import RunDirectory

FOLDER = REPOSITORY / "docker" / "prometheus"
RULES = FOLDER / "rules.yaml"
INSTALL = "docker/install/system.sh test   (Debian's package prometheus)"

_DURATION = re.compile(r"\b(\d+)([smhd])\b")
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
QUICK_S = 8
"""What every window of a rule becomes."""


def program(name: str) -> str:
    """The path of `prometheus` or `promtool`; skips the test where the machine has not got it."""
    found = shutil.which(name)
    if found is None:
        unavailable(f"the program {name}", INSTALL)
    return found


def quick_rules(thresholds: Mapping[str, str]) -> dict[str, Any]:
    """The project's rules with short windows and waits; `thresholds` replaces texts in expressions, each found once."""
    rules: dict[str, Any] = yaml.safe_load(RULES.read_text())
    left = dict(thresholds)
    for group in rules["groups"]:
        for rule in group["rules"]:
            for old in list(left):
                if old in rule["expr"]:
                    rule["expr"] = rule["expr"].replace(old, left.pop(old))
            rule["expr"] = re.sub(r"\[\d+[smhd]\]", f"[{QUICK_S}s]", rule["expr"])
            if "for" in rule:
                rule["for"] = "1s"
    assert not left, f"no rule holds {left}"
    return rules


def window_s(text: str) -> int:
    """Seconds of a duration such as `10m`."""
    found = _DURATION.fullmatch(text)
    assert found is not None, text
    return int(found[1]) * _UNITS[found[2]]


class Prometheus:
    """A server that scrapes given addresses by the project's jobs."""

    def __init__(self, run: RunDirectory, targets: Mapping[str, str], rules: Mapping[str, Any]) -> None:
        folder = run.data / "prometheus"
        folder.mkdir(parents=True)
        config: dict[str, Any] = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
        config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
        del config["alerting"]
        jobs = {job["job_name"]: job for job in config["scrape_configs"]}
        assert jobs.keys() == targets.keys()
        for name, job in jobs.items():
            # By names in a network of containers, with a token; here on loopback.
            del job["dns_sd_configs"], job["authorization"]
            job["static_configs"] = [{"targets": [targets[name]]}]
        (folder / "rules.yaml").write_text(yaml.safe_dump(dict(rules)))
        path = folder / "prometheus.yaml"
        path.write_text(yaml.safe_dump(config))
        self.url = f"http://{LOOPBACK}:{(port := free_port())}"
        argv = (
            *(program("prometheus"), f"--config.file={path}", f"--storage.tsdb.path={folder / 'data'}"),
            *(f"--web.listen-address={LOOPBACK}:{port}", "--enable-feature=exemplar-storage"),
        )
        self.process = ManagedProcess(run, Program("prometheus", argv, ready=http_ok(f"{self.url}/-/ready")))

    def get(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its API."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30.0, trust_env=False)
        assert answer.is_success, f"{path} {parameters}: {answer.text}"
        return answer.json()["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series that an expression has now."""
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found

    def firing(self) -> set[str]:
        """The names of alerts that fire now."""
        return {alert["labels"]["alertname"] for alert in self.get("alerts")["alerts"] if alert["state"] == "firing"}


def dashboard_queries() -> dict[str, list[str]]:
    """The expressions of every dashboard, by the panel's title."""
    import json

    found: dict[str, list[str]] = {}
    for path in sorted((Path(REPOSITORY) / "docker" / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            found[f"{path.stem}: {panel['title']}"] = [target["expr"] for target in panel["targets"]]
    return found
