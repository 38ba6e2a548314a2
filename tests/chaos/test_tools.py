"""The suite's tools do what they say: a fault that does nothing tests nothing."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis
from services import unavailable

from chaos.catalogue import FAULTS, drawn_faults, drawn_topology
from chaos.clocks import Clocks
from chaos.disk import small_disk
from chaos.link import Link
from chaos.on_networks import NONSENSE


@pytest.fixture
def link(redis_url: str) -> Iterator[Link]:
    port = redis.connection.parse_url(redis_url)["port"]
    link = Link(int(port))
    yield link
    link.close()


@pytest.fixture
def client(redis_url: str, link: Link) -> Iterator[redis.Redis]:
    made = redis.Redis(
        host="127.0.0.1",
        port=link.port,
        password=redis.connection.parse_url(redis_url)["password"],
        socket_timeout=5,
        retry=None,
    )
    yield made
    made.close()


def test_a_link_is_slow_cut_and_whole_again(link: Link, client: redis.Redis) -> None:
    assert client.ping()
    link.delay_s = 0.3
    began = time.monotonic()
    assert client.ping()
    assert time.monotonic() - began >= 0.6, "held back each way"
    link.delay_s = 0.0
    link.down = True
    link.cut()
    with pytest.raises(redis.exceptions.ConnectionError):
        client.ping()
    link.down = False
    assert client.ping()


def test_a_link_answers_nonsense_in_the_servers_place(link: Link) -> None:
    link.answer_with(NONSENSE)
    answers: list[str] = []
    for _ in NONSENSE:
        try:
            answers.append(str(httpx.post(f"http://127.0.0.1:{link.port}/", content=b"x" * 1000).status_code))
        except httpx.HTTPError as error:
            answers.append(type(error).__name__)
    assert answers[:9] == ["200", "200", "200", "200", "200", "204", "302", "404", "503"]
    assert answers[9:] == ["RemoteProtocolError"] * 2
    link.answer_truly()
    with pytest.raises(httpx.HTTPError):  # Redis speaks no HTTP
        httpx.get(f"http://127.0.0.1:{link.port}/")


def test_a_full_disk_refuses_sqlite_and_takes_it_again(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        if not disk.own:
            unavailable("no disk can be mounted", "a shell of root's", may_be_missing=True)
        with sqlite3.connect(disk.folder / "some.db", isolation_level=None) as database:
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("CREATE TABLE t (x)")
            disk.fill()
            with pytest.raises(sqlite3.OperationalError, match="full"):
                database.execute("INSERT INTO t VALUES (?)", (b"x" * 1_000_000,))
            disk.clear()
            database.execute("INSERT INTO t VALUES (?)", (b"x" * 1_000_000,))
            assert database.execute("SELECT count(*) FROM t").fetchone() == (1,)
        database.close()
    assert not any((tmp_path / "disk").iterdir())


def test_a_clock_is_set_and_time_goes_on(tmp_path: Path) -> None:
    clocks = Clocks(tmp_path / "clock")
    if not clocks.own:
        unavailable("libfaketime is missing", "apt-get install faketime", may_be_missing=True)
    clocks.set(-250)
    program = "import time; a = time.monotonic(); time.sleep(0.5); print(time.time(), time.monotonic() - a)"
    command = [sys.executable, "-c", program]
    environment = {**os.environ, **clocks.environment()}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    shown, slept = map(float, done.stdout.split())
    assert time.time() - shown == pytest.approx(250, abs=5)
    assert slept == pytest.approx(0.5, abs=0.4)


def test_every_kind_of_fault_falls_within_five_seeds_each_on_what_it_needs() -> None:
    fallen = []
    for seed in range(1, 6):
        faults = drawn_faults(seed, 8)
        topology = drawn_topology(seed, faults)
        fallen += [fault.name for fault in faults]
        for fault in faults:
            assert fault.needs != "three brokers" or topology.brokers == 3
            assert fault.needs != "postgresql" or topology.database == "postgresql"
    assert set(fallen) == {fault.name for fault in FAULTS}
    assert drawn_faults(3, 8) == drawn_faults(3, 8)
