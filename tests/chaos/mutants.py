"""The system with a protection taken out: each time, a fault's seed must fail.

Workers and engines are started with `at_start/sitecustomize.py`, which changes a module's text as it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from app.embedded.collector import CONFIG_PATH
from chaos.at_start import Change
from chaos.site import COLLECTOR_CONFIG, Topology


@dataclass(frozen=True)
class Mutant:
    """A protection, taken out.

    Args:
        protection: what is taken out, as the table tells it.
        faults: names of faults that must then be noticed, each by itself.
        changes: module, text, other text.
        variables: environment of workers and engines.
        collector: a text of the collector's configuration, and another text.
        topology: what the site stands on.
        times: how often the fault falls; chance may have it miss the moment.
        tests: of the unit tests, those that must fail as well: cheap, and not left to chance.
    """

    protection: str
    faults: tuple[str, ...]
    changes: tuple[Change, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    collector: tuple[str, str] | None = None
    topology: Topology = field(default_factory=Topology)
    times: int = 2
    tests: str = ""

    def environment(self, folder: Path) -> dict[str, str]:
        """Further variables of its processes; `folder` takes what they read."""
        if self.collector is None:
            return dict(self.variables)
        other = folder / "collector.yaml"
        other.write_text(CONFIG_PATH.read_text().replace(*self.collector))
        return {**self.variables, COLLECTOR_CONFIG: str(other)}


_COMMIT_FIRST: Change = (
    "agents.consume",
    """        if events:
            await handler.finish(prepared)
""",
    """        for event in events:
            await self._stream.ack(event)
        await self._app.consumer.commit()
        await asyncio.sleep(0.2)
        if events:
            await handler.finish(prepared)
""",
)
FULL_DISK = "../functional/test_full_disk.py"
_POSTGRES = Topology(1, "postgresql")
_THREE = Topology(3, "sqlite")

MUTANTS = (
    Mutant(
        "offsets are committed after the work",
        ("router killed (SIGKILL)", "curation killed (SIGKILL)"),
        (_COMMIT_FIRST,),
        tests="agents/test_consume.py",
    ),
    Mutant(
        "a worker that stops finishes the batch in hand",
        ("router stopped (SIGTERM)",),
        (("agents.consume", "drain_timeout_s: float = 10.0", "drain_timeout_s: float = 0.0"),),
        tests="agents/test_consume.py",
    ),
    Mutant(
        "a worker that says nothing loses its partitions after 6 s",
        ("router frozen past its session (SIGSTOP)",),
        (("app.factory", "broker_session_timeout=kafka.session_timeout_s", "broker_session_timeout=60.0"),),
        times=1,
    ),
    Mutant(
        "a lease runs out",
        ("training worker killed (SIGKILL)",),
        (("app.store.leases", "elif row.expires_at > now:", "elif row.expires_at > 0:"),),
        tests="app/test_store_leases.py",
    ),
    Mutant(
        "a stage that was cut off is begun again",
        ("training worker stopped (SIGTERM)",),
        (
            (
                "agents.training.runner",
                "return cycles.list_cycles(connection, open_only=True)",
                """return [
                cycle for cycle in cycles.list_cycles(connection, open_only=True)
                if cycle.state not in (CycleState.PREPARING, CycleState.REVISING)
            ]""",
            ),
        ),
        times=3,
        tests="agents/test_training_cancel.py",
    ),
    Mutant(
        "a cycle is changed by compare-and-set",
        ("training worker frozen past its lease (SIGSTOP)",),
        (("app.store.cycles", ", cycles.c.version == cycle.version)", ")"),),
        times=3,
        tests="app/test_store_cycles.py",
    ),
    Mutant(
        "what was counted is remembered",
        ("monitoring killed (SIGKILL)", "monitoring stopped (SIGTERM)"),
        (("agents.monitoring.poll", "Position.parse(await self._cursors.load(self.name))", "Position()"),),
        tests="agents/test_monitoring_poll.py",
    ),
    Mutant(
        "a cycle waits for the policy engine",
        ("policy engine killed (SIGKILL)",),
        (("agents.training.runner", '        "WatcherAway",\n', ""),),
    ),
    Mutant(
        "an engine's nonsense is no answer",
        ("policy engine answers nonsense",),
        (("app.wiring", "except httpx.HTTPError:", "except httpx.ConnectError:"),),
    ),
    Mutant(
        "an audit entry that was not taken is sent again",
        ("audit engine killed (SIGKILL)", "audit engine frozen (SIGSTOP)", "audit engine slow"),
        (
            (
                "app.relay",
                """                    async with asyncio.timeout(LEASE_S / 2):
                        await self._deliver(item)
""",
                """                    with __import__("contextlib").suppress(Exception):
                        async with asyncio.timeout(LEASE_S / 2):
                            await self._deliver(item)
""",
            ),
        ),
        tests="app/test_relay.py",
    ),
    Mutant(
        "only a receipt is a receipt",
        ("audit engine answers nonsense",),
        (
            (
                "policies.clients.audit_client",
                "    status = response.status_code\n    if status in _REFUSALS:",
                """    status = response.status_code
    if status == httpx.codes.OK:
        return AuditReceipt.model_construct(id=entry.entry_id or "", digest="")
    if status in _REFUSALS:""",
            ),
        ),
        tests="policies/test_clients.py",
    ),
    Mutant(
        "a decision takes effect once it is logged",
        ("audit engine answers nonsense",),
        (
            (
                "agents.training.context",
                "            await self.audit.log(entry.model_copy(update=of_cycle))\n",
                """            with contextlib.suppress(Exception):
                await self.audit.log(entry.model_copy(update=of_cycle))
""",
            ),
        ),
        times=3,
    ),
    Mutant(
        "the collector's queue lies on a disk",
        ("collector killed (SIGKILL)",),
        collector=("      storage: file_storage\n", ""),
    ),
    Mutant(
        "a partition has replicas",
        ("one of three brokers killed (SIGKILL)",),
        variables={"FLYWHEEL_KAFKA__REPLICATION_FACTOR": "1"},
        topology=_THREE,
        times=1,
    ),
    Mutant(
        "a record is published once Kafka has acknowledged it",
        ("all brokers killed (SIGKILL)", "network to Kafka drops connections"),
        (("app.kafka", '        acks="all",\n        enable_idempotence=idempotent,', "        acks=0,"),),
    ),
    Mutant(
        "the router waits for Redis",
        ("Redis frozen (SIGSTOP)", "Redis filled to its memory limit", "network to Redis drops connections"),
        variables={"FLYWHEEL_ROUTING__DEDUP_ON_OUTAGE": "pass"},
    ),
    Mutant(
        "a Redis that came back is told the script anew",
        ("Redis killed, its data lost",),
        (
            (
                "agents.routing.dedup",
                "            except NoScriptError:  # first use of this server, or it has restarted\n",
                """            except NoScriptError:
                if hasattr(self, "told"):
                    raise
                self.told = True
""",
            ),
        ),
        times=1,
        tests="agents/test_routing_dedup.py",
    ),
    Mutant(
        "a batch that the store did not take is stored again",
        (
            "PostgreSQL restarted in mid-transaction",
            "PostgreSQL killed (SIGKILL)",
            "network to PostgreSQL drops connections",
        ),
        (
            (
                "agents.curation.agent",
                "            await asyncio.to_thread(self.curator.store, prepared.records)\n",
                """            try:
                await asyncio.to_thread(self.curator.store, prepared.records)
            except Exception:
                logger.warning("a batch was not stored")
""",
            ),
        ),
        topology=_POSTGRES,
    ),
    Mutant(
        "a step is kept until its checkpoint has room",
        (),
        (
            (
                "agents.training.jobs.train",
                "when_there_is_room(lambda: save_checkpoint",
                "(lambda write, _: write())(lambda: save_checkpoint",
            ),
        ),
        tests=FULL_DISK,
    ),
    Mutant(
        "a stage that finds a full disk is tried again",
        (),
        (("agents.training.runner", "        DISK_FULL,\n", ""),),
        tests=FULL_DISK,
    ),
    Mutant(
        "of a message without room nothing is left",
        (),
        (("agents.training.cluster.mailbox", "os.truncate(self._path, before)", "pass"),),
        tests=FULL_DISK,
    ),
)
