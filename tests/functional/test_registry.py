"""Champions on real Kafka: watched, rolled back by themselves and by hand, mirrored into MLflow once it is there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import sqlalchemy as sa
from pipelines import HASH, Pipeline
from registry_parts import BAD, trained
from systems import cli, entries, lag, running, stats, wait_until

from app.embedded.ports import LOOPBACK, free_port
from app.embedded.process import ManagedProcess, Program
from app.embedded.system import System
from app.roles import Role
from app.store import alerts, registry, watch
from app.store.tables import champion_watch
from models.cycle import CycleState

pytestmark = [pytest.mark.torch, pytest.mark.kafka, pytest.mark.timeout(600)]
MODEL = "assistant"
WATCHED = ("policy-evaluations", "constitutional-violations")
LEAST = 30


def evaluation(name: str, version: str | None, *, adherent: bool) -> bytes:
    """A policy evaluation of an answer; one that is not adherent is a violation too, and always kept."""
    event: dict[str, Any] = {
        "event_id": name,
        "event_type": "policy_evaluation",
        "model_id": MODEL,
        "compliance_score": 0.99 if adherent else 0.1,
    }
    if version is not None:
        event["model_version"] = version
    if not adherent:
        event |= {"constitutional_hash": HASH, "violations": ["harmful_content"]}
    return orjson.dumps(event)


class Registry:
    """The registry of a running system, as the test looks at it and writes to it."""

    def __init__(self, system: System, folder: Path) -> None:
        self.system = system
        self.folder = folder
        self.pipeline = Pipeline(system, folder)
        self.database = self.pipeline.database

    def version(self, state: CycleState) -> str:
        with self.database.write() as connection:
            return trained(connection, self.folder, model=MODEL, state=state)

    def champion(self) -> str | None:
        with self.database.read() as connection:
            found = registry.champion(connection, MODEL)
        return None if found is None else str(found.version_id)

    def seen(self) -> int:
        with self.database.read() as connection:
            return sum(found.evaluations for found in watch.champions(connection))

    def send(self, values: list[bytes]) -> None:
        """Send events through the router and wait until curation has taken all that came of them."""
        before = self.pipeline.routed().get("in", 0)
        self.pipeline.produce(values)
        wait_until(lambda: self.pipeline.routed().get("in", 0) == before + len(values), "all is routed")
        wait_until(lambda: lag(self.pipeline.bootstrap, "flywheel-curate", WATCHED) == 0, "all is curated")

    def mirror(self) -> dict[str, Any]:
        return stats(self.system, Role.TRAIN, "mlflow")

    def decide(self, *arguments: str) -> dict[str, Any]:
        done = cli(self.system, "models", *arguments, "--by", "ann", "--comment", "a test", "--json")
        assert done.returncode == 0, done.stderr + done.stdout
        found: dict[str, Any] = orjson.loads(done.stdout)
        return found


def test_champions_are_watched_rolled_back_promoted_and_mirrored(tmp_path: Path) -> None:
    for package in ("mlflow", "flask"):
        pytest.importorskip(package, reason=f"{package} is missing. Provide it with: make test")
    port = free_port()
    changes: dict[str, dict[str, Any]] = {
        "gate": {"bounds": {"watch_min_evaluations": LEAST}},
        "watch": {"interval_s": 0.3},
        "mlflow": {"tracking_uri": f"http://{LOOPBACK}:{port}", "interval_s": 0.3, "retry_s": 0.5},
    }
    with running(tmp_path, "real", None, changes) as system:
        system.start_engines()
        system.start_workers([Role.ROUTE, Role.CURATE, Role.TRAIN])
        house = Registry(system, tmp_path / "models")
        before, bad = house.version(CycleState.PROMOTED), house.version(CycleState.PROMOTED)

        _what_is_said_of_another_version_does_not_count(house, before, bad)
        _a_bad_champion_is_rolled_back(house, before, bad)
        assert house.mirror()["up"] == 0, "MLflow was away all the time"
        mlflow = _start_mlflow(system, port)
        promoted = house.version(CycleState.REJECTED)
        assert house.decide("promote", promoted)["replaced"] == before
        assert house.champion() == promoted
        assert house.decide("rollback", MODEL)["champion"] == before
        _everything_is_on_record(house, before, bad, promoted)
        _mlflow_has_caught_up(house, mlflow, port, {before: "champion", bad: "rolled_back", promoted: "rolled_back"})
        _the_page_promotes_what_the_gate_permits(house)


def _what_is_said_of_another_version_does_not_count(house: Registry, before: str, bad: str) -> None:
    house.send([evaluation(f"other-{n}", before, adherent=False) for n in range(2 * LEAST)])
    assert (house.seen(), house.champion()) == (0, bad)
    wait_until(lambda: house.mirror().get("pending", 0) >= 3 and house.mirror()["up"] == 0, "MLflow is missed")


def _a_bad_champion_is_rolled_back(house: Registry, before: str, bad: str) -> None:
    # Of those that are adherent one in five is kept, and stands for five: some 0.88 in all.
    told = [evaluation(f"good-{n}", bad if n % 2 else None, adherent=True) for n in range(300)]
    told += [evaluation(f"bad-{n}", bad if n % 2 else None, adherent=False) for n in range(40)]
    house.send(told)
    wait_until(lambda: house.champion() == before, "the champion is rolled back")
    with house.database.read() as connection:
        (alert,) = alerts.after(connection, 0)
        rolled_back, *_ = registry.history(connection, MODEL)
        looked_at = connection.execute(
            sa.select(champion_watch).where(champion_watch.c.deployment == rolled_back["previous"])
        ).one()
    assert (alert["detail"]["rolled_back"], alert["detail"]["returned_to"]) == (bad, before)
    assert 0.5 < alert["detail"]["adherence"] < 0.95
    assert LEAST <= alert["detail"]["n_evaluations"] <= looked_at.evaluations <= 160
    assert rolled_back["kind"] == "watch"


def _everything_is_on_record(house: Registry, before: str, bad: str, promoted: str) -> None:
    wait_until(lambda: not house.pipeline.unsent(), "all is told")
    deployed = [entry["body"] for entry in entries(house.system, "deployment")]
    assert [(body["version_id"], body["context"]["kind"]) for body in deployed] == [
        (before, "promotion"),
        (bad, "promotion"),
        (before, "watch"),
        (promoted, "promotion"),
        (before, "rollback"),
    ]
    decided = {entry["body"]["context"]["decision"]["decision_id"]: entry for entry in
               entries(house.system, "gate_decision")}  # fmt: skip
    actions = [decided[body["context"]["decision_id"]]["body"]["context"]["decision"] for body in deployed[2:]]
    assert [(one["action"], one["allow"]) for one in actions] == [
        ("model_rollback", True),
        ("model_promotion", True),
        ("model_rollback", True),
    ]
    metrics = httpx.get(f"{house.system.url(Role.TRAIN)}/metrics", timeout=30.0, trust_env=False).text
    assert 'flywheel_champion_rollbacks_total{kind="watch",model_id="assistant"} 1.0' in metrics
    assert 'flywheel_alerts_total{kind="champion_rolled_back"} 1.0' in metrics


def _the_page_promotes_what_the_gate_permits(house: Registry) -> None:
    with house.database.write() as connection:
        poor = trained(connection, house.folder, model=MODEL, evaluation=BAD)
        good = trained(connection, house.folder, model=MODEL)
    url = f"{house.system.url(Role.TRAIN)}/api/v1/models/versions"
    said = {"comment": "a test", "by": "ann"}
    with httpx.Client(timeout=60.0, trust_env=False) as http:
        refused = http.post(f"{url}/{poor}/promote", json=said)
        own = http.post(f"{url}/{good}/promote", json=said | {"by": "requester"})
        done = http.post(f"{url}/{good}/promote", json=said)
    assert refused.status_code == 409
    assert "over" in refused.json()["detail"]
    assert own.status_code == 409
    assert done.status_code == 200, done.text
    assert house.champion() == good


def _start_mlflow(system: System, port: int) -> ManagedProcess:
    folder = system.run.data / "mlflow"
    folder.mkdir(parents=True)
    script = Path(__file__).parents[1] / "mlflow_server.py"
    program = Program("mlflow", (sys.executable, str(script), str(port), str(folder)))
    return system.stack.add(ManagedProcess(system.run, program))


def _mlflow_has_caught_up(house: Registry, mlflow: ManagedProcess, port: int, expected: dict[str, str]) -> None:
    wait_until(lambda: house.mirror().get("up") == 1 and house.mirror()["pending"] == 0, "MLflow shows everything")
    assert mlflow.running
    api = f"http://{LOOPBACK}:{port}/api/2.0/mlflow"

    def get(path: str, **parameters: str) -> dict[str, Any]:
        answer = httpx.get(f"{api}/{path}", params=parameters, timeout=30.0, trust_env=False)
        found: dict[str, Any] = answer.raise_for_status().json()
        return found

    def tags(found: dict[str, Any]) -> dict[str, str]:
        return {tag["key"]: tag["value"] for tag in found["tags"]}

    def champion() -> str:
        found = get("registered-models/alias", name=MODEL, alias="champion")["model_version"]
        return tags(found)["flywheel.version_id"]

    def versions() -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = get("model-versions/search", filter=f"name='{MODEL}'")["model_versions"]
        return found

    def statuses() -> dict[str, str]:
        return {tags(one)["flywheel.version_id"]: tags(one)["flywheel.status"] for one in versions()}

    # What is pending is counted at a look: there may be one more deployment than it has seen.
    wait_until(lambda: statuses() == expected, "MLflow has every version's status")
    wait_until(lambda: champion() == house.champion(), "the alias follows")
    run = get("runs/get", run_id=versions()[0]["run_id"])["run"]
    metrics = {one["key"]: one["value"] for one in run["data"]["metrics"]}
    assert metrics["evaluation.adherence.candidate"] == 0.97
    assert metrics["privacy.epsilon"] == 4.0
    files = get("artifacts/list", run_id=versions()[0]["run_id"])["files"]
    assert {one["path"] for one in files} == {"adapter", "evaluation.json", "statement.json"}
