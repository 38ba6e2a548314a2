"""The embedded Redis Cluster itself: formed, private, and whole again after a master was gone."""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster as ClusterClient
from redis.retry import Retry

from app.embedded import redis_cluster
from app.embedded.errors import NotReady
from app.embedded.redis import wheel_redis
from app.embedded.redis_cluster import MASTERS, SLOTS, RedisCluster
from app.embedded.run_directory import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    with RunDirectory.create(tmp_path / "run") as made:
        yield made


@pytest.mark.parametrize("which", ["machine", "wheel"])
def test_three_masters_share_the_slots_and_come_back(run: RunDirectory, which: str) -> None:
    cluster = RedisCluster(run, wheel_redis() if which == "wheel" else None, node_timeout_s=1.0)
    cluster.start()
    try:
        with ClusterClient.from_url(cluster.url) as client:
            for number in range(100):
                client.set(f"key-{number}", number)
            assert client.get("key-7") == b"7"
        kept = []
        for node in cluster.nodes:
            assert node.cluster_info()["cluster_size"] == str(MASTERS)
            with node.client() as alone:
                kept.append(alone.dbsize())
                assert alone.config_get("bind") == {"bind": "127.0.0.1"}
        assert sum(kept) == 100
        assert min(kept) > 0

        urls = [node.url for node in cluster.nodes]
        cluster.nodes[1].kill()
        cluster.wait_until_failed(cluster.nodes[1])
        assert int(cluster.nodes[0].cluster_info()["cluster_slots_ok"]) < SLOTS
        cluster.nodes[1].start()
        cluster.wait_until_served()
        cluster.stop()
        cluster.start()
        assert [node.url for node in cluster.nodes] == urls
        with ClusterClient.from_url(cluster.url) as client:
            assert client.get("key-7") is None, "a cluster that was stopped comes back empty"
    finally:
        cluster.kill()
    assert [node.cluster_info() for node in cluster.nodes] == [{}] * MASTERS


def test_it_is_behind_a_password_that_only_this_user_can_read(run: RunDirectory) -> None:
    cluster = RedisCluster(run)
    cluster.start()
    try:
        for node in cluster.nodes:
            stranger = redis.Redis(port=node.port, retry=Retry(NoBackoff(), 0))
            with stranger, pytest.raises(redis.AuthenticationError):
                stranger.ping()
        files = [*run.data.glob("*/redis.conf")]
        assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o600] * MASTERS
    finally:
        cluster.stop()


def test_a_bus_port_that_is_taken_means_another_port(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    taken, *good = [redis_cluster.node_port() for _ in range(1 + MASTERS)]
    draws = iter([taken, *good])
    monkeypatch.setattr(redis_cluster, "node_port", lambda: next(draws))
    with socket.socket() as other:
        other.bind(("127.0.0.1", taken + redis_cluster.BUS))
        other.listen()
        cluster = RedisCluster(run)
        cluster.start()
        cluster.stop()
    assert [node.port for node in cluster.nodes] == good


def test_a_cluster_that_does_not_agree_says_what_it_knows(run: RunDirectory) -> None:
    cluster = RedisCluster(run, ready_within_s=0.0)
    with pytest.raises(
        NotReady, match=r"redis-cluster-0 did not come to serve all slots within 0 s[\s\S]*cluster_state"
    ):
        cluster.start()
    assert cluster.nodes == ()
    assert [*run.pids.iterdir()] == []
