"""The chunk transport while it is moved: seeks, kills, rebalances, starts, a broker that restarts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chunk_rig import Rig, finished, repeated, trickle
from chunk_worker import Options

from app.embedded.kafka import KafkaBroker

Unique = Callable[[str], str]


@pytest.fixture
def rig(real_kafka: KafkaBroker, unique: Unique, tmp_path: Path) -> Iterator[Rig]:
    made = Rig(real_kafka.bootstrap, True, tmp_path, unique("chunks"))
    yield made
    made.close()


@pytest.mark.parametrize("call", ["seek", "seek_wait"])
def test_a_seek_moves_its_partition_and_no_other(rig: Rig, unique: Unique, call: str) -> None:
    topic = rig.make_topic(unique("in"), 2)
    rig.send(topic, 0, 50)
    rig.send(topic, 1, 80)
    worker = rig.start("worker")
    rig.wait_committed()
    worker.hold(topic, 0, 50)
    rig.send(topic, 0, 5)
    worker.wait(lambda: (topic, 0, 54) in worker.got(), "five records are held")
    worker.ask(call, topic, 1, 60)
    worker.wait(lambda: worker.got().count((topic, 1, 79)) == 2, "what was sought is delivered again")
    worker.ask("commit")
    assert rig.committed()[topic, 0] == 50, "committed past records that are held"
    worker.release()
    rig.wait_committed()
    assert [offset for _, number, offset in worker.done() if number == 1][80:] == list(range(60, 80))
    assert [offset for _, number, offset in worker.done() if number == 0] == list(range(55))
    worker.stop()


def test_a_kill_repeats_what_was_not_committed(rig: Rig, unique: Unique) -> None:
    topic = rig.make_topic(unique("in"), 3)
    for number in range(3):
        rig.send(topic, number, 200)
    killed = rig.start("killed", held=True)
    killed.hold(topic, 1, 70)
    killed.wait(lambda: (topic, 1, 70) in killed.got(), "a batch is held")
    killed.ask("commit")
    killed.kill()
    committed = rig.committed()
    assert 0 < committed[topic, 1] <= 70
    heir = rig.start("heir")
    rig.wait_committed()
    expected = [(*place, offset) for place, start in committed.items() for offset in range(start, 200)]
    assert sorted(heir.done()) == expected, "from exactly what was committed, each once"
    assert finished(killed, heir) == rig.spots()
    heir.stop()


@pytest.mark.parametrize("environment", [{}, {"NO_CYTHON": "1"}], ids=["compiled", "python"])
def test_a_rebalance_repeats_nothing(rig: Rig, unique: Unique, environment: dict[str, str]) -> None:
    topic = rig.make_topic(unique("in"), 4)
    # With room in the batch, fetches go on while one is held.
    options = Options(poll_records=100, batch_messages=2000)
    with trickle(rig, topic):
        stays = rig.start("stays", options, **environment)
        stays.wait(stays.grows(40), "records flow")
        for name in ("comes", "comes-again"):
            stays.hold()
            comes = rig.start(name, options, **environment)
            begun = stays.said().count("Revoking")
            stays.wait(lambda n=begun: stays.said().count("Revoking") > n, "the rebalance begins")
            rig.wait_sent(100)  # what is fetched meanwhile is not delivered, and what is held stays known
            known = stays.got()
            stays.release()
            comes.wait(comes.grows(40), "the other has its share")
            assert set(known) <= set(stays.done()), "the first gave up what it had in hand"
            comes.stop()
        stays.wait(stays.grows(200), "the first has it all again")
    rig.wait_committed()
    assert finished(*rig.members) == rig.spots()
    assert not repeated(*rig.members)
    stays.stop()


def test_a_worker_more_takes_its_share_and_moves_no_other_partition(rig: Rig, unique: Unique) -> None:
    topic = rig.make_topic(unique("in"), 12)
    now = {"first": rig.start("first")}

    def read_since(marks: dict[str, int]) -> dict[str, set[int]]:
        """The partitions that each has read records of, since it had read so many."""
        return {n: {number for _, number, _ in m.done()[marks.get(n, 0) :]} for n, m in now.items()}

    def shared_out() -> dict[str, set[int]]:
        """Who reads which partitions, once all have their share."""
        share = 12 // len(now)

        def even() -> bool:
            marks = {name: len(member.done()) for name, member in now.items()}
            for number in range(12):
                rig.send(topic, number, 1)
            rig.wait_committed()
            return all(len(read) == share for read in read_since(marks).values())

        now["first"].wait(even, "all have their share")
        marks = {name: len(member.done()) for name, member in now.items()}
        for number in range(12):
            rig.send(topic, number, 1)
        rig.wait_committed()
        return read_since(marks)

    before = shared_out()
    for name in ("second", "third"):
        now[name] = rig.start(name)
        after = shared_out()
        assert all(after[n] <= held for n, held in before.items()), "a partition moved between two that stay"
        before = after
    now.pop("second").stop()
    after = shared_out()
    assert all(after[n] >= before[n] for n in now), "what stays where it can"
    assert finished(*rig.members) == rig.spots()
    assert not repeated(*rig.members)
    for member in now.values():
        member.stop()


def test_who_holds_a_rebalance_up_for_too_long_repeats_only_what_was_not_committed(rig: Rig, unique: Unique) -> None:
    topic = rig.make_topic(unique("in"), 4)
    for number in range(4):
        rig.send(topic, number, 50)
    options = Options(rebalance_timeout_s=6.0)
    slow = rig.start("slow", options)
    rig.wait_committed()
    slow.hold()
    for number in range(4):
        rig.send(topic, number, 50)
    slow.wait(lambda: len(slow.got()) > 200, "a batch is held")
    committed = rig.committed()
    heir = rig.start("heir", options)
    rig.wait_committed("the group has gone on without the first")
    begun = len(slow.done())
    slow.release()
    slow.wait(lambda: len(slow.done()) > begun, "the first finishes what it has")
    with trickle(rig, topic):
        slow.wait(slow.grows(40), "the first is back and gets records")
        heir.wait(heir.grows(40), "and so does the other")
    rig.wait_committed()
    assert finished(slow, heir) == rig.spots()
    assert all(offset >= committed[topic, number] for _, number, offset in repeated(slow, heir))
    for member in (slow, heir):
        member.stop()


def test_workers_that_start_at_the_same_moment_skip_nothing(
    real_kafka: KafkaBroker, unique: Unique, tmp_path: Path
) -> None:
    rigs = [Rig(real_kafka.bootstrap, True, tmp_path / str(n), unique(f"race-{n}")) for n in range(3)]
    try:
        for number, rig in enumerate(rigs):
            rig.folder.mkdir()
            topic = rig.make_topic(unique(f"in-{number}"), 4)
            for partition_ in range(4):
                rig.send(topic, partition_, 100)
            # Nothing is committed yet, and rebalances come while the first fetches do.
            for name in ("one", "other"):
                rig.start(name, Options(poll_records=7))
        for rig in rigs:
            rig.wait_committed()
            assert finished(*rig.members) == rig.spots()
            for member in rig.members:
                member.stop()
    finally:
        for rig in rigs:
            rig.close()


def test_a_broker_that_restarts_is_waited_for(rig: Rig, real_kafka: KafkaBroker, unique: Unique) -> None:
    topic = rig.make_topic(unique("in"), 4)
    worker = rig.start("worker", Options(finish_s=0.02))

    def send_to_all(count: int) -> None:
        for number in range(4):
            rig.send(topic, number, count)

    send_to_all(20)
    rig.wait_committed()
    real_kafka.stop()  # while the worker is idle
    real_kafka.start()
    send_to_all(400)
    worker.wait(lambda: len(worker.done()) > 200, "the worker reads on")
    real_kafka.kill()  # while it is not
    real_kafka.start()
    rig.wait_committed()
    assert finished(worker) == rig.spots()
    worker.stop()
