"""Training by Kubernetes Jobs: the real worker, client, pods' program, store and model; of the cluster, a double.

The double of the API server runs a Job's pods as processes of this machine (`tests/kubernetes_double.py`).
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from benches import TINY, WITHIN_S, Bench, at_work, bench_of, is_running, until
from kubernetes_double import Cluster, serving
from pydantic import SecretStr
from services import unavailable
from systems import cli, running

from agents.training.cluster import follow
from app.embedded.system import System
from app.store import cycles, registry
from models.cycle import TERMINAL_STATES, CycleState

pytestmark = [pytest.mark.torch, pytest.mark.postgres, pytest.mark.timeout(900)]

LEASE_S = 20.0
"""Longer than a busy machine keeps a process from renewing it."""
DIGEST_KEY = "a-digest-key-for-the-tests-of-training-jobs"


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    try:
        import kubernetes  # noqa: F401
    except ImportError:
        unavailable("the package kubernetes is missing", "make test")
    folder = tmp_path_factory.mktemp("cluster")
    suite = folder / "suite.jsonl"
    suite.write_text('{"prompt": "Why is the sky blue?", "expected": "comply"}')
    evaluation = {"suites": (suite,), "max_new_tokens": 4, "public_prompts": 0, "baselines": ()}
    with running(folder, "mock", None, TINY | {"evaluation": evaluation}) as system:
        system.start_engines()
        yield system


@pytest.fixture
async def cluster(postgres_url: str, tmp_path: Path) -> AsyncIterator[Cluster]:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "database_url").write_text(postgres_url + "\n")
    (secrets / "digest_key").write_text(DIGEST_KEY + "\n")
    # gloo between "machines" that are all this one.
    async with serving(Cluster(secrets, {"GLOO_SOCKET_IFNAME": "lo"}, runs_pods=True)) as served:
        yield served


@pytest.fixture
def bench(engines: System, cluster: Cluster, postgres_url: str, tmp_path: Path) -> Iterator[Bench]:
    settings = engines.settings
    with bench_of(engines, postgres_url, tmp_path) as made:
        engines.change(
            {
                "curation": {"digest_key": SecretStr(DIGEST_KEY)},
                "training": {"runner": "kubernetes", "epochs": 4, "lease_s": LEASE_S},
                "kubernetes": {
                    "kubeconfig": cluster.kubeconfig(tmp_path / "kubeconfig"),
                    "volumes": {"/": "everything"},
                    "poll_s": 0.2,
                },
            }
        )
        made.settings = engines.settings
        yield made
    engines.settings = settings


def fences(bench: Bench) -> list[int]:
    """Of the steps that were reserved, in their order."""
    with bench.database.read() as connection:
        return [row.fence for row in connection.execute(sa.text("SELECT fence FROM privacy_ledger ORDER BY seq"))]


def check_trained(bench: Bench, cycle_id: str) -> dict[str, Any]:
    """The cycle came to its decision, over an adapter that was trained within its budget."""
    cycle = bench.cycle(cycle_id)
    assert cycle.state is CycleState.REJECTED, cycle.reasons
    assert cycle.plan is not None
    # A tiny evaluation speaks against promotion, and nothing before it against anything.
    assert "evaluation_harmful_count" in {reason["code"] for reason in cycle.reasons}
    with bench.database.read() as connection:
        version = registry.version_of_cycle(connection, cycle_id)
    assert version is not None
    assert version.statement["epsilon"] <= cycle.plan.epsilon_target
    assert version.statement["steps"] == bench.reserved(cycle_id) >= cycle.plan.steps
    training: dict[str, Any] = cycle.facts["training"]
    return training


async def test_a_job_trains_and_the_next_worker_takes_it_over(bench: Bench, cluster: Cluster) -> None:
    cycle_id = bench.open(answered=True).cycle_id
    async with at_work(bench.settings, bench.database):
        await until(lambda: bench.reserved(cycle_id) >= 1, "the Job trains")
    (name,) = cluster.made
    (pod,) = cluster.pods[name]
    assert is_running(pod.pid), "the Job ended with its worker"
    # Longer than the lease: it is the pod that keeps it.
    held = bench.reserved(cycle_id)
    await asyncio.sleep(1.5 * bench.settings.training.lease_s)
    assert not bench.is_free("domain:default") or not is_running(pod.pid)
    assert bench.reserved(cycle_id) > held or not is_running(pod.pid)
    async with at_work(bench.settings, bench.database):
        await until(lambda: bench.cycle(cycle_id).state in TERMINAL_STATES, "the cycle is decided", 2 * WITHIN_S)
    assert cluster.made == [name], "the running Job was not taken over"
    assert len(set(fences(bench))) == 1
    assert check_trained(bench, cycle_id)["processes"] == 1
    assert bench.is_free("domain:default")


async def test_a_pod_that_is_killed_is_followed_by_another_job_from_the_last_checkpoint(
    bench: Bench, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "SETTLE_S", 1.0)
    cycle_id = bench.open(answered=True).cycle_id
    checkpoints = bench.config.directory(cycle_id) / "checkpoints"
    async with at_work(bench.settings, bench.database):
        await until(lambda: len(list(checkpoints.glob("step-*"))) >= 2, "some steps are done")
        (pod,) = cluster.pods[cluster.made[0]]
        os.kill(pod.pid, signal.SIGKILL)
        await until(lambda: bench.cycle(cycle_id).state in TERMINAL_STATES, "the cycle is decided", 2 * WITHIN_S)
    assert len(cluster.made) == 2
    check_trained(bench, cycle_id)
    told = fences(bench)
    assert told == sorted(told)
    assert len(set(told)) == 2, "the second Job needs a fence of its own"
    plan = bench.cycle(cycle_id).plan
    assert plan is not None
    # At most the step that was under way is counted twice.
    assert plan.steps <= len(told) <= plan.steps + 1


async def test_the_job_of_a_cancelled_cycle_ends(engines: System, bench: Bench, cluster: Cluster) -> None:
    cycle_id = bench.open(answered=True).cycle_id
    async with at_work(bench.settings, bench.database):
        await until(lambda: bench.reserved(cycle_id) >= 1, "the Job trains")
        (name,) = cluster.made
        (pod,) = cluster.pods[name]
        done = await asyncio.to_thread(cli, engines, "cycles", "cancel", cycle_id, "--by", "operator")
        assert done.returncode == 0, done.stderr
        await until(lambda: not is_running(pod.pid), "its pod has ended")
        await until(lambda: name not in cluster.jobs, "and is gone")
        await until(lambda: bench.is_free("domain:default"), "the domain is free")
    assert bench.states(cycle_id)[-2:] == ["training", "cancelled"]


async def test_a_pod_ends_by_itself_where_nobody_can_tell_the_cluster(bench: Bench, cluster: Cluster) -> None:
    """No worker, no API: what is cancelled, or has lost its lease, trains no further."""
    cycle_id = bench.open(answered=True).cycle_id
    async with at_work(bench.settings, bench.database):
        await until(lambda: bench.reserved(cycle_id) >= 1, "the Job trains")
    cluster.away = True
    (pod,) = cluster.pods[cluster.made[0]]
    assert is_running(pod.pid), "training was over: nothing was tested"
    with bench.database.write() as connection:
        cycles.transition(connection, bench.cycle(cycle_id), CycleState.CANCELLED)
    await until(lambda: not is_running(pod.pid), "the pod has seen it")
    assert '"kind": "Halted"' in follow.mailbox(bench.config.directory(cycle_id) / "jobs" / "1.json").read_text()


async def test_two_machines_train_together(
    bench: Bench, cluster: Cluster, engines: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "first_host", lambda *_: "127.0.0.1")
    engines.change({"training": {"nodes": 2, "epochs": 1}})
    bench.settings = engines.settings
    cycle_id = bench.open(answered=True).cycle_id
    async with at_work(bench.settings, bench.database):
        await until(lambda: bench.cycle(cycle_id).state in TERMINAL_STATES, "the cycle is decided", 2 * WITHIN_S)
    (name,) = cluster.made
    assert [pod.process.returncode for pod in cluster.pods[name]] == [0, 0]
    assert check_trained(bench, cycle_id)["processes"] == 2
