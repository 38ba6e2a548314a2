"""The capacity model: computed from documents, linear in the load, and silent where nothing was measured."""

from __future__ import annotations

from typing import Any

import pytest
from benchmarks.assignor import assignment
from benchmarks.capacity import DOCUMENT, Assumptions, bottleneck, load, money, needs, render
from benchmarks.capacity_inputs import shares, sizes

ROUTING = {"cases": [{"name": "otlp_json_body", "cpu_us_per_record": 20.0, "redis_us_per_record": 1.0}]}
PII = {"collector_us": {"ours": 200.0}}
CAPACITY: dict[str, Any] = {
    "shares": {"claimed": 0.2, "routed": 0.18, "examples_and_feedback": 0.1, "observations": 0.05},
    "bytes_per_record": {"otlp_json_body_gzip": 300.0, "otlp_json_body_plain": 900.0, "routed_gzip": 400.0},
    "claim_bytes": 200.0,
    "curation": {"records": 5500, "cpu_us_per_record": 300.0, "postgres_cpu_us_per_record": 200.0},
    "assignor": [assignment(8, 4)],
    "claiming": {
        "claims": 1000,
        "batch": 500,
        "buckets": 16,
        "single": {"redis_us": 1.5, "client_us": 3.0},
        "cluster": {"redis_us": 2.5, "client_us": 9.0, "shares": [0.5, 0.3, 0.2]},
    },
}
SCALING: dict[str, Any] = {
    "partitions": 8,
    "events": 1000,
    "runs": 1,
    "cpu_spread": 0.034,
    "counts_exact": True,
    "workers": [{"workers": 2, "cpu_us_per_record": 12.5, "partitions": [4, 4], "records": [500, 500]}],
}
ALL = {"routing": ROUTING, "pii": PII, "capacity": CAPACITY, "scaling": SCALING}
GIVEN = Assumptions(utilisation=0.5)


def table(documents: dict[str, Any], rate: float = 1_000_000) -> dict[str, float | None]:
    return {need.what: need.amount for need in needs(documents, rate, "otlp_json_body", GIVEN)}


def test_the_committed_document_is_what_the_committed_figures_give() -> None:
    assert DOCUMENT.read_text() == render(load()), "run: PYTHONPATH=tests python -m benchmarks.capacity"


def test_a_million_events_a_second_by_hand() -> None:
    found = table(ALL)
    assert found["collectors, scrubbing"] == pytest.approx(400)
    assert found["routing workers"] == pytest.approx(40)
    assert found["partitions of `otel-audit-events`"] == 80
    assert found["Redis"] == pytest.approx(2)
    assert found["Redis, claims of an hour"] == pytest.approx(144)
    # 144 GB of claims in masters of 8 GB outweigh 2 cores.
    assert found["Redis shards"] == 18
    assert found["Kafka in"] == pytest.approx(300)
    assert found["Kafka out of the router"] == pytest.approx(72)
    assert found["brokers"] == 12
    assert found["Kafka's disk"] == pytest.approx(300 * 86400 * 7 * 3 / 1e6)
    assert found["curation workers"] == pytest.approx(60)
    assert found["PostgreSQL"] == pytest.approx(40)


def test_it_is_linear_in_the_load() -> None:
    small, large = table(ALL, 100_000), table(ALL, 1_000_000)
    for name in ("routing workers", "collectors, scrubbing", "Redis, claims of an hour", "Kafka in"):
        assert large[name] == pytest.approx(10 * float(small[name] or 0)), name


@pytest.mark.parametrize("missing", ["routing", "pii", "capacity"])
def test_what_was_not_measured_is_not_made_up(missing: str) -> None:
    rest = {name: document for name, document in ALL.items() if name != missing}
    assert money(needs(rest, 1e6, "otlp_json_body", GIVEN), GIVEN) is None
    unknown = [need for need in needs(rest, 1e6, "otlp_json_body", GIVEN) if need.amount is None]
    assert unknown
    assert all(missing in need.source for need in unknown), unknown
    assert f"`{missing}.json` is **missing**" in render(rest, GIVEN)
    assert "missing" not in render(ALL, GIVEN)


def test_money_counts_every_part() -> None:
    whole = money(needs(ALL, 1e6, "otlp_json_body", GIVEN), GIVEN)
    assert whole is not None
    free = Assumptions(utilisation=0.5, core_hour=0, gb_hour=0, disk_gb_month=0, cross_zone_gb=0)
    assert money(needs(ALL, 1e6, "otlp_json_body", free), free) == 0
    cores = 400 + 40 + 2 + 60 + 40
    only_cores = Assumptions(utilisation=0.5, gb_hour=0, disk_gb_month=0, cross_zone_gb=0)
    assert money(needs(ALL, 1e6, "otlp_json_body", only_cores), only_cores) == pytest.approx(cores * 730 * 0.04)
    assert whole > cores * 730 * 0.04


def test_the_first_bottleneck_is_the_lowest() -> None:
    walls = bottleneck(ALL, GIVEN)
    assert [rate for _, rate in walls] == sorted(rate for _, rate in walls)
    found = dict(walls)
    assert walls[0][0] == "one routing worker"
    assert found["one routing worker"] == pytest.approx(25_000)
    assert found["one Redis master's memory, holding an hour's claims"] == pytest.approx(8e9 / (0.2 * 3600 * 200))
    assert found["one PostgreSQL of 16 cores, storing examples"] == pytest.approx(16 * 0.5 * 1e6 / 200 / 0.1)


def test_256_partitions_over_64_workers_are_assigned_evenly_and_at_once() -> None:
    found = assignment(256, 64)
    assert (found["most"], found["least"]) == (4, 4)
    assert found["ms"] < 1000
    assert assignment(256, 60)["most"] - assignment(256, 60)["least"] == 1


def test_what_moves_when_a_worker_leaves_or_comes_is_told_of_both_assignors() -> None:
    found = assignment(256, 64)
    assert found["moved"] == found["must_move"] == 4
    assert found["moved_to_new"] == found["must_move_to_new"] == 3
    # Dealt anew: everybody after the one that left, or came, gets others.
    assert found["roundrobin_moved"] > 64
    assert found["roundrobin_moved_to_new"] > 64


def test_measured_figures_of_scale_stand_in_the_document() -> None:
    told = render(ALL, GIVEN)
    assert "| 2 | 12.5 | 4, 4 | 500, 500 |" in told
    assert "costs 3.4% more than the cheapest; nothing was lost" in told
    assert "| 3 masters | 2.5 | 9 | 50.0%, 30.0%, 20.0% |" in told
    assert "counts were wrong" in render(ALL | {"scaling": SCALING | {"counts_exact": False}}, GIVEN)


def test_shares_and_sizes_come_from_the_reference_mix() -> None:
    told = shares()
    # A tenth of all are told again; of the rest 13 % are curated, and a fifth of the 30 % evaluations are kept.
    assert told["examples_and_feedback"] == pytest.approx(0.9 * 0.13, abs=0.01)
    assert told["observations"] == pytest.approx(0.9 * 0.06, abs=0.01)
    assert told["claimed"] > told["routed"]
    measured = sizes()
    assert measured["otlp_json_body_gzip"] < measured["otlp_json_body_plain"]
