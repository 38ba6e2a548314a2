"""A training Job's manifest, its mailbox, and how a worker follows it over the API, the official client in between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
from kubernetes_double import NAMESPACE, SCHEMAS, Cluster, serving
from services import unavailable
from systems import wait_until

from agents.training.child import JobFailed
from agents.training.cluster import follow
from agents.training.cluster.api import ClusterUnavailable, JobApi, JobInvalid
from agents.training.cluster.config import ClusterConfig
from agents.training.cluster.follow import ClusterJobs
from agents.training.cluster.mailbox import Inbox, Outbox
from agents.training.cluster.manifest import FENCE_LABEL, Run, first_host, job_name, render
from app.cluster import check_cluster, cluster_config
from app.settings import Settings, SettingsError, load_settings
from app.store import Database, cycles, switches
from app.wiring import cycle_config
from models.cycle import Cycle, CycleState, TriggerType

SECRETS = {
    "DATABASE__URL": "postgresql+psycopg://flywheel:hidden-password@postgres/flywheel",
    "CURATION__DIGEST_KEY": "hidden-digest-key",
    "POLICY_ENGINE__TOKEN": "hidden-policy-token",
    "AUDIT_ENGINE__TOKEN": "hidden-audit-token",
    "AUDIT_ENGINE__DIGEST_KEY": "hidden-audit-digest-key",
    "TEACHER__TOKEN": "hidden-teacher-token",
}
PLAIN = {
    "TRAINING__RUNNER": "kubernetes",
    "TRAINING__ARTIFACTS": "/app/data/models",
    "TRAINING__MODEL_CACHE": "/app/models/base",
    "TEACHER__URL": "http://teacher:8000/v1",
    "TEACHER__MODEL": "large",
    "TEACHER__SEND_EVENT_TEXT": "true",
}


def settings(**changes: str) -> Settings:
    given = {**SECRETS, **PLAIN, **changes}
    return load_settings({f"FLYWHEEL_{name}": value for name, value in given.items()}, toml=None)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(f"sqlite:///{tmp_path / 'store.db'}")
    made.migrate()
    yield made
    made.close()


@pytest.fixture
def cycle(database: Database) -> Cycle:
    with database.write() as connection:
        opened = cycles.open_cycle(
            connection,
            model_id="assistant",
            domain="default",
            trigger_type=TriggerType.MANUAL,
            requested_by="jo.e@example.org",
            facts={},
        )
    assert opened is not None
    return opened


def run_of(cycle: Cycle, fence: int = 7) -> Run:
    return Run(cycle, fence, Path(f"/app/data/models/{cycle.cycle_id}/jobs/{fence}.json"), timeout_s=3600.0)


# --- the manifest


@pytest.mark.parametrize("nodes", ["1", "4"])
@pytest.mark.parametrize("gpus", ["0", "8"])
def test_the_job_is_valid_and_says_what_it_must(cycle: Cycle, nodes: str, gpus: str) -> None:
    given = settings(
        TRAINING__NODES=nodes,
        KUBERNETES__GPUS=gpus,
        KUBERNETES__SCHEDULER="volcano",
        KUBERNETES__LABELS='{"kueue.x-k8s.io/queue-name": "training"}',
        KUBERNETES__NODE_SELECTOR='{"gpu": "h100"}',
    )
    job = render(run_of(cycle), cluster_config(given))
    kubernetes_validate.validate(job, SCHEMAS, strict=True)
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert (spec["completions"], spec["parallelism"], spec["backoffLimit"]) == (int(nodes), int(nodes), 0)
    assert spec["completionMode"] == "Indexed"
    assert spec["activeDeadlineSeconds"] > 3600 + given.kubernetes.start_s
    assert spec["ttlSecondsAfterFinished"] == given.kubernetes.keep_s
    labels = job["metadata"]["labels"]
    assert labels["acgs-lite.io/cycle-id"] == cycle.cycle_id
    assert labels["acgs-lite.io/owner"] == "jo.e-example.org"
    assert labels[FENCE_LABEL] == "7"
    assert labels["kueue.x-k8s.io/queue-name"] == "training"
    assert pod["restartPolicy"] == "Never"
    assert pod["automountServiceAccountToken"] is False
    assert pod["schedulerName"] == "volcano"
    assert pod["nodeSelector"] == {"gpu": "h100"}
    assert pod["securityContext"].items() >= {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000}.items()
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"]["limits"] == container["resources"]["requests"]
    assert container["resources"]["limits"].get("nvidia.com/gpu") == (None if gpus == "0" else "8")
    claims = {
        v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v
    }
    mounted = {claims[m["name"]]: m["mountPath"] for m in container["volumeMounts"] if m["name"] in claims}
    assert mounted == {"model-cache-pvc": "/app/models", "training-data-pvc": "/app/data"}
    (secret,) = [v["secret"] for v in pod["volumes"] if "secret" in v]
    assert {item["key"] for item in secret["items"]} == {"database_url", "digest_key"}


def test_no_secret_stands_in_the_manifest_or_in_what_lies_on_the_volume(
    cycle: Cycle, database: Database, tmp_path: Path
) -> None:
    given = settings()
    config = cycle_config(given).model_copy(update={"artifacts": tmp_path})
    jobs = ClusterJobs(cluster_config(given), config, database, api=None)  # type: ignore[arg-type]  # nothing is asked
    run = Run(cycle, 7, tmp_path / "7.json", 3600.0)
    jobs._write(run, {"cycle_id": cycle.cycle_id, "lease": {"fence": 7}})
    told = run.specification.read_text() + json.dumps(render(run, cluster_config(given)))
    assert config.model_dump_json().count("hidden-") >= len(SECRETS), "the secrets are in the configuration itself"
    assert "hidden-" not in told
    assert json.loads(run.specification.read_text())["job"]["config"]["tuning"]["lora_rank"] == 16


def test_names_are_dns_labels_and_differ_by_fence() -> None:
    name = job_name("20261127-151617-AbC123", 12)
    assert name == "train-20261127-151617-abc123-12"
    assert name != job_name("20261127-151617-AbC123", 13)
    longest = job_name("x" * 200, 10**9)
    # A pod's index is put behind it.
    assert len(f"{longest}-9999") <= 63
    assert first_host(name, cluster_config(settings())).startswith(f"{name}-0.constitutional-training.governance.svc")


# --- settings


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"DATABASE__URL": "sqlite:////app/data/store.db"}, "database.url"),
        ({"TRAINING__ARTIFACTS": "/var/lib/flywheel/models"}, "training.artifacts"),
        ({"TRAINING__MODEL_CACHE": "/app/modelsbase"}, "training.model_cache"),
        ({"CONSTITUTION__PATH": "/etc/constitution.yaml"}, "constitution.path"),
    ],
)
def test_what_a_pod_would_not_find_is_refused_before_a_cycle_waits(changes: dict[str, str], named: str) -> None:
    check_cluster(settings())
    with pytest.raises(SettingsError, match=named.replace(".", r"\.")):
        check_cluster(settings(**changes))


def test_several_nodes_are_for_a_cluster() -> None:
    with pytest.raises(SettingsError, match=r"training\.runner=kubernetes"):
        settings(TRAINING__RUNNER="process", TRAINING__NODES="2")


# --- the mailbox


def test_what_is_half_written_is_read_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "7.jsonl"
    inbox, outbox = Inbox(path), Outbox(path)
    assert inbox.read() == []
    outbox.write({"progress": {"done": 1}})
    with path.open("a") as file:
        file.write('{"progress": {"do')
    assert inbox.read() == [{"progress": {"done": 1}}]
    assert inbox.read() == []
    with path.open("a") as file:
        file.write('ne": 2}}\nno message\n[1]\n')
    outbox.write({"result": {"ä": "\u2028"}})
    assert inbox.read() == [{"progress": {"done": 2}}, {"result": {"ä": "\u2028"}}]
    assert len(Inbox(path).read()) == 3


# --- the follower


class Follower:
    """A worker's end, and the mailbox of the Job that it follows."""

    def __init__(self, cluster: Cluster, database: Database, cycle: Cycle, folder: Path) -> None:
        self.cluster = cluster
        self.cycle = cycle
        self.folder = folder
        given = settings()
        self.config = cycle_config(given).model_copy(update={"artifacts": folder, "poll_s": 0.02})
        self.settings: ClusterConfig = cluster_config(given).model_copy(update={"poll_s": 0.05, "timeout_s": 5.0})
        self.database = database
        self.told: list[dict[str, Any]] = []
        self.jobs = self.another()

    def another(self) -> ClusterJobs:
        """A worker that knows nothing of the first one."""
        api = JobApi(NAMESPACE, 5.0, self.cluster.kubeconfig(self.folder / "kubeconfig"))
        return ClusterJobs(self.settings, self.config, self.database, api)

    def start(self, fence: int = 7, jobs: ClusterJobs | None = None) -> asyncio.Task[dict[str, Any]]:
        lease = {"name": "domain:default", "holder": "training-job", "fence": fence}
        specification = {"cycle_id": self.cycle.cycle_id, "lease": lease}
        return asyncio.create_task((jobs or self.jobs).run(self.cycle, specification, self._take))

    async def _take(self, fields: dict[str, Any]) -> None:
        self.told.append(fields)

    def name(self, fence: int = 7) -> str:
        return job_name(self.cycle.cycle_id, fence)

    def pod(self, fence: int = 7) -> Outbox:
        """Where the Job's pod writes."""
        return Outbox(self.folder / self.cycle.cycle_id / "jobs" / f"{fence}.jsonl")


async def until(condition: Callable[[], object]) -> None:
    await asyncio.to_thread(wait_until, condition, "what the test waits for", 20.0)


@pytest.fixture
async def follower(
    database: Database, cycle: Cycle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Follower]:
    try:
        import kubernetes  # noqa: F401
    except ImportError:
        unavailable("the package kubernetes is missing", "make test")
    monkeypatch.setattr(follow, "SETTLE_S", 0.3)
    async with serving(Cluster()) as cluster:
        yield Follower(cluster, database, cycle, tmp_path)


async def test_progress_and_result_come_by_the_mailbox(follower: Follower) -> None:
    job = follower.start()
    await until(lambda: follower.cluster.made == [follower.name()])
    assert follower.jobs.is_at_work(follower.cycle.cycle_id)
    for step in range(3):
        follower.pod().write({"progress": {"done": step, "total": 3}})
    await until(lambda: len(follower.told) == 3)
    follower.pod().write({"result": {"path": "/app/data/models/x"}})
    assert await job == {"path": "/app/data/models/x"}
    assert not follower.jobs.is_at_work(follower.cycle.cycle_id)
    assert follower.cluster.deleted == [], "the cluster removes what has ended by itself"


async def test_a_worker_that_starts_anew_takes_the_running_job_over(follower: Follower) -> None:
    first = follower.start()
    await until(lambda: follower.cluster.made)
    follower.pod().write({"progress": {"done": 1, "total": 2}})
    await until(lambda: follower.told)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert follower.cluster.deleted == [], "the worker ends, its Job does not"
    assert follower.jobs.is_at_work(follower.cycle.cycle_id)
    second = follower.start(jobs=follower.another())
    await until(lambda: len(follower.told) == 2)
    follower.pod().write({"result": {"steps": 2}})
    assert await second == {"steps": 2}
    assert follower.cluster.made == [follower.name()]


async def test_what_ended_while_no_worker_was_there_is_not_done_again(follower: Follower) -> None:
    first = follower.start()
    await until(lambda: follower.cluster.made)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    follower.pod().write({"result": {"steps": 2}})
    # The lease has run out meanwhile: another fence.
    assert await follower.start(8, follower.another()) == {"steps": 2}
    assert follower.cluster.made == [follower.name()]


async def test_a_job_of_an_earlier_fence_is_deleted(follower: Follower) -> None:
    first = follower.start()
    await until(lambda: follower.cluster.made)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    second = follower.start(8, follower.another())
    await until(lambda: follower.cluster.made == [follower.name(7), follower.name(8)])
    assert follower.cluster.deleted == [follower.name(7)]
    follower.pod(8).write({"result": {}})
    assert await second == {}


async def test_a_cancelled_cycles_job_is_deleted(follower: Follower) -> None:
    job = follower.start()
    await until(lambda: follower.cluster.made)
    with follower.database.write() as connection:
        cycles.transition(connection, follower.cycle, CycleState.CANCELLED)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert follower.cluster.deleted == [follower.name()]
    assert not follower.jobs.is_at_work(follower.cycle.cycle_id)


async def test_the_stop_switch_deletes_the_job_too(follower: Follower) -> None:
    job = follower.start()
    await until(lambda: follower.cluster.made)
    with follower.database.write() as connection:
        switches.halt(connection, changed_by="operator", comment="look first")
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert follower.cluster.deleted == [follower.name()]


async def test_a_cycle_is_cancelled_while_the_api_is_away(follower: Follower) -> None:
    job = follower.start()
    await until(lambda: follower.cluster.made)
    with follower.database.write() as connection:
        cycles.transition(connection, follower.cycle, CycleState.CANCELLED)
    follower.cluster.away = True
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job


async def test_an_error_comes_with_its_kind(follower: Follower) -> None:
    job = follower.start()
    await until(lambda: follower.cluster.made)
    follower.pod().write({"error": {"kind": "BudgetExhaustedError", "message": "nothing fits"}})
    with pytest.raises(JobFailed, match="nothing fits") as raised:
        await job
    assert raised.value.kind == "BudgetExhaustedError"


async def test_a_job_whose_pod_sees_first_that_it_must_end_is_deleted(follower: Follower) -> None:
    job = follower.start()
    await until(lambda: follower.cluster.made)
    follower.pod().write({"error": {"kind": "Halted", "message": "the cycle is cancelled now"}})
    with pytest.raises(JobFailed, match="cancelled"):
        await job
    assert follower.cluster.jobs == {}


async def test_a_job_that_fails_without_a_word_has_died(follower: Follower) -> None:
    job = follower.start()
    await until(lambda: follower.cluster.made)
    follower.cluster.ends(follower.name(), "Failed", "BackoffLimitExceeded", "Job has reached its backoff limit")
    with pytest.raises(JobFailed, match="BackoffLimitExceeded") as raised:
        await job
    assert raised.value.kind == "Died"
    assert not follower.jobs.is_at_work(follower.cycle.cycle_id)


async def test_a_job_that_found_no_machines_is_waited_for(follower: Follower) -> None:
    from agents.training.runner import TRANSIENT

    job = follower.start()
    await until(lambda: follower.cluster.made)
    follower.cluster.ends(
        follower.name(), "Failed", "DeadlineExceeded", "Job was active longer than specified deadline"
    )
    with pytest.raises(JobFailed) as raised:
        await job
    assert raised.value.kind == "NotScheduled"
    assert raised.value.kind in TRANSIENT


async def test_a_result_that_the_volume_shows_late_counts(follower: Follower) -> None:
    job = follower.start()
    await until(lambda: follower.cluster.made)
    looks = len(follower.cluster.requests)
    follower.cluster.ends(follower.name(), "Complete")
    await until(lambda: len(follower.cluster.requests) > looks)
    follower.pod().write({"result": {"late": True}})
    assert await job == {"late": True}


async def test_a_job_that_somebody_deleted_has_died(follower: Follower) -> None:
    job = follower.start()
    await until(lambda: follower.cluster.made)
    follower.cluster.jobs.clear()
    with pytest.raises(JobFailed, match="deleted") as raised:
        await job
    assert raised.value.kind == "Died"


async def test_an_api_that_goes_away_ends_no_job(follower: Follower) -> None:
    job = follower.start()
    await until(lambda: follower.cluster.made)
    follower.cluster.away = True
    asked = len(follower.cluster.requests)
    await until(lambda: len(follower.cluster.requests) > asked + 2)
    follower.pod().write({"progress": {"done": 1, "total": 1}})
    await until(lambda: follower.told)
    assert not job.done()
    follower.cluster.away = False
    follower.cluster.ends(follower.name(), "Failed", "BackoffLimitExceeded")
    with pytest.raises(JobFailed):
        await job


@pytest.mark.parametrize(
    "answer",
    [(401, "Unauthorized"), (403, "exceeded quota: gpus"), (404, "namespace not found"), (500, "etcd"), (503, "busy")],
)
async def test_an_api_that_lets_nobody_in_is_waited_for(follower: Follower, answer: tuple[int, str]) -> None:
    from agents.training.runner import TRANSIENT

    follower.cluster.answer = answer
    with pytest.raises(ClusterUnavailable, match=str(answer[0])):
        await follower.start()
    assert ClusterUnavailable.__name__ in TRANSIENT
    assert follower.jobs.is_at_work(follower.cycle.cycle_id), "one may be: its lease is not given back"
    follower.cluster.answer = None
    job = follower.start()
    await until(lambda: follower.cluster.made)
    follower.pod().write({"result": {}})
    assert await job == {}


async def test_a_worker_that_starts_anew_while_the_api_is_away_leaves_the_job_its_lease(follower: Follower) -> None:
    first = follower.start()
    await until(lambda: follower.cluster.made)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    follower.cluster.away = True
    heir = follower.another()
    with pytest.raises(ClusterUnavailable):
        await follower.start(jobs=heir)
    assert heir.is_at_work(follower.cycle.cycle_id)
    follower.cluster.away = False
    job = follower.start(jobs=heir)
    follower.pod().write({"result": {}})
    assert await job == {}
    assert not heir.is_at_work(follower.cycle.cycle_id)
    assert follower.cluster.made == [follower.name()]


async def test_an_api_that_is_not_there_is_waited_for(follower: Follower) -> None:
    follower.cluster.away = True
    with pytest.raises(ClusterUnavailable, match="does not answer"):
        await follower.start()


async def test_a_job_that_the_api_refuses_is_no_transient_fault(follower: Follower) -> None:
    from agents.training.runner import TRANSIENT

    api = JobApi(NAMESPACE, 5.0, follower.cluster.kubeconfig(follower.folder / "kubeconfig"))
    manifest = render(run_of(follower.cycle), follower.settings)
    manifest["spec"]["template"]["spec"]["restartPolicy"] = 3
    with pytest.raises(JobInvalid, match=r"restartPolicy|restart_policy"):
        await api.create(manifest)
    follower.cluster.refuses = "cpu: much is no quantity"
    with pytest.raises(JobInvalid, match="much is no quantity"):
        await follower.start()
    assert not follower.jobs.is_at_work(follower.cycle.cycle_id)
    assert JobInvalid.__name__ not in TRANSIENT


async def test_outside_a_cluster_and_without_a_kubeconfig_the_remedy_is_named(follower: Follower) -> None:
    with pytest.raises(ClusterUnavailable, match=r"kubernetes\.kubeconfig"):
        await JobApi(NAMESPACE, 5.0).list("")
