"""Every command that a playbook of docker/README.md tells an operator to type, typed, on a system at work."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator

import pytest
import sqlalchemy as sa
from ledger_parts import spend
from pipelines import Pipeline, Traffic
from services import REPOSITORY
from systems import cli, entries, running, wait_until

from app.roles import Role
from app.store import cohorts, cycles, examples, switches
from app.store.tables import examples as examples_table
from models.cycle import Cycle, CycleState, TriggerType

MANUAL = (REPOSITORY / "docker" / "README.md").read_text()
SECTION = re.compile(r"^### (Flywheel\w+)\n(.*?)(?=^##|\Z)", re.DOTALL | re.MULTILINE)
PLAYBOOKS = dict(SECTION.findall(MANUAL))


def commands(playbook: str) -> list[str]:
    """The commands of a playbook, in its order: lines of its blocks, and what stands between backticks."""
    return re.findall(r"(?:^|`)flywheel ([^`\n]+)", PLAYBOOKS[playbook], re.MULTILINE)


class Operator:
    """Follows the playbooks: puts in what they leave open, and types."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline
        self.words = {"YOU": "operator", "WHY": "as the playbook says", "D": "default", "N": "50"}

    def follow(self, playbook: str, **words: str) -> dict[str, subprocess.CompletedProcess[str]]:
        """Type a playbook's commands, one after the other; what each answered, by the command as it is printed."""
        given = {**self.words, **words}
        done = {}
        for command in commands(playbook):
            arguments = [given.get(word, word) for word in shlex.split(command)]
            done[command] = cli(self.pipeline.system, *arguments)
        return done


def check(done: dict[str, subprocess.CompletedProcess[str]], *but: str) -> None:
    """All of them did what they should, except those that must be refused."""
    for command, result in done.items():
        assert (result.returncode != 0) is (command in but), f"{command}: {result.stdout}{result.stderr}"
        assert "Traceback" not in result.stderr, command


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Operator]:
    """At a system that has routed and stored, with dead letters and a budget spent."""
    folder = tmp_path_factory.mktemp("playbooks")
    with running(folder, "real", None, {"curation": {"min_examples": 100_000}}) as system:
        system.start_engines(["audit-engine"])
        system.start_workers([Role.ROUTE, Role.CURATE])
        pipeline = Pipeline(system, folder)
        traffic = Traffic("P", 3)
        pipeline.emit(traffic.events)
        wait_until(lambda: len(pipeline.stored()) == len(traffic.examples), "the events are stored")
        yield Operator(pipeline)
        pipeline.database.close()


def open_cycle(operator: Operator, model_id: str = "alpha") -> Cycle:
    with operator.pipeline.database.write() as connection:
        cycle = cycles.open_cycle(
            connection,
            model_id=model_id,
            domain="default",
            trigger_type=TriggerType.MANUAL,
            requested_by="requester",
            facts={},
        )
    assert cycle is not None
    return cycle


def halted(operator: Operator) -> bool:
    with operator.pipeline.database.read() as connection:
        return switches.halted(connection) is not None


def resume(operator: Operator) -> None:
    assert cli(operator.pipeline.system, "cycles", "resume", "--by", "operator").returncode == 0
    wait_until(lambda: not halted(operator), "the audit engine has it, and cycles go on")


def no_commit_progress(operator: Operator) -> None:
    check(operator.follow("FlywheelNoCommitProgress"))
    told = cli(operator.pipeline.system, "routing", "ls", "--json").stdout
    assert "pass" in told


def dead_letters(operator: Operator) -> None:
    letters = json.loads(cli(operator.pipeline.system, "dlq", "ls", "--json").stdout)
    place = re.search(r'"(\d+:\d+)"', json.dumps(letters))
    assert place is not None, letters
    done = operator.follow("FlywheelDeadLetters", PLACE=place[1])
    check(done)
    assert "compliance_score" in done["dlq show PLACE"].stdout
    assert "operator" in json.dumps(entries(operator.pipeline.system, "dead_letters_replayed"))


def adherence_low(operator: Operator) -> None:
    cycle = open_cycle(operator)
    done = operator.follow("FlywheelAdherenceLow")
    check(done)
    assert cycle.cycle_id in done["cycles ls"].stdout
    assert cli(operator.pipeline.system, "cycles", "cancel", cycle.cycle_id, "--by", "operator").returncode == 0


def violations_burst(operator: Operator) -> None:
    check(operator.follow("FlywheelViolationsBurst"))
    assert halted(operator)
    resume(operator)


def budget_80(operator: Operator) -> None:
    cycle = open_cycle(operator)
    with operator.pipeline.database.write() as connection:
        spend(connection, cycle, steps=20)
        cycles.transition(connection, cycle, CycleState.FAILED)
    done = operator.follow("FlywheelPrivacyBudget80", MODEL="alpha")
    check(done)
    assert "default" in done["privacy show"].stdout


def budget_95(operator: Operator) -> None:
    check(operator.follow("FlywheelPrivacyBudget95"))
    with operator.pipeline.database.read() as connection:
        assert cohorts.current(connection, "default") == 1


def cycle_stuck(operator: Operator) -> None:
    cycle = open_cycle(operator, "beta")
    done = operator.follow("FlywheelCycleStuck", ID=cycle.cycle_id)
    check(done)
    assert "proposed" in done["cycles show ID"].stdout
    with operator.pipeline.database.read() as connection:
        now = cycles.get(connection, cycle.cycle_id)
    assert now is not None
    assert now.state is CycleState.CANCELLED


def engine_unreachable(operator: Operator) -> None:
    check(operator.follow("FlywheelEngineUnreachable"))


def pii_downstream(operator: Operator) -> None:
    with operator.pipeline.database.read() as connection:
        query = sa.select(examples_table.c.subject_token).where(examples_table.c.subject_token.is_not(None))
        subject = str(connection.execute(query.limit(1)).scalar_one())
    check(operator.follow("FlywheelPiiDownstream", ID=subject))
    assert halted(operator)
    with operator.pipeline.database.read() as connection:
        ids = connection.execute(
            sa.select(examples_table.c.example_id).where(examples_table.c.subject_token == subject)
        ).scalars()
        assert not any(example.prompt for example in examples.get(connection, list(ids)).values())
    resume(operator)


FOLLOWED: dict[str, Callable[[Operator], None]] = {
    "FlywheelNoCommitProgress": no_commit_progress,
    "FlywheelDeadLetters": dead_letters,
    "FlywheelAdherenceLow": adherence_low,
    "FlywheelViolationsBurst": violations_burst,
    "FlywheelPrivacyBudget80": budget_80,
    "FlywheelPrivacyBudget95": budget_95,
    "FlywheelCycleStuck": cycle_stuck,
    "FlywheelEngineUnreachable": engine_unreachable,
    "FlywheelPiiDownstream": pii_downstream,
}


def test_every_playbook_with_a_command_is_followed_here() -> None:
    alerts = re.findall(r"alert: (\w+)", (REPOSITORY / "docker" / "prometheus" / "rules.yaml").read_text())
    assert set(alerts) == PLAYBOOKS.keys()
    assert {name for name in PLAYBOOKS if commands(name)} == FOLLOWED.keys()


@pytest.mark.parametrize("playbook", FOLLOWED)
def test_what_a_playbook_says_can_be_typed(operator: Operator, playbook: str) -> None:
    FOLLOWED[playbook](operator)
