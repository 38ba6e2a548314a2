"""Sections of docker/CAPACITY.md on how the parts scale, from the benchmarks' documents."""

from __future__ import annotations

from typing import Any


def scaling(documents: dict[str, dict[str, Any]]) -> list[str]:
    """What workers cost side by side, and how they share the work."""
    if "scaling" not in documents:
        return ["What workers cost side by side was not measured (`scaling.json` is missing)."]
    scaling = documents["scaling"]
    lines = ["## Workers side by side", "", "| workers | us of CPU a record, all together | partitions | records |"]
    lines.append("|--:|--:|---|---|")
    lines += [
        f"| {one['workers']} | {one['cpu_us_per_record']:g} | {_list(one['partitions'])} | {_list(one['records'])} |"
        for one in scaling["workers"]
    ]
    exact = "nothing was lost and nothing told twice" if scaling["counts_exact"] else "**counts were wrong**"
    return [
        *lines,
        "",
        f"One group on {scaling['partitions']} partitions of Apache Kafka, {scaling['events']:,} events, medians of",
        f"{scaling['runs']}: the dearest costs {scaling['cpu_spread']:.1%} more than the cheapest; {exact}.",
    ]


def _list(amounts: list[int]) -> str:
    return ", ".join(f"{amount:,}" for amount in amounts)


def assignor(documents: dict[str, dict[str, Any]]) -> list[str]:
    """How partitions are dealt out, and what moves when a worker leaves or comes."""
    dealt = documents.get("capacity", {}).get("assignor", [])
    if not all("roundrobin_moved" in one for one in dealt) or not dealt:
        return ["The assignor was not measured (`capacity.json` is missing, or older than that)."]
    lines = ["## Assigning partitions", ""]
    ours = "| partitions | workers | ms | most | least | one leaves: held | moved | one comes: share | moved |"
    lines += [f"{ours} round robin: ms | one leaves | one comes |"]
    lines += ["|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"]
    lines += [
        f"| {one['partitions']} | {one['workers']} | {one['ms']:g} | {one['most']} | {one['least']} |"
        f" {one['must_move']} | {one['moved']} | {one['must_move_to_new']} | {one['moved_to_new']} |"
        f" {one['roundrobin_ms']:g} | {one['roundrobin_moved']} | {one['roundrobin_moved_to_new']} |"
        for one in dealt
    ]
    return [
        *lines,
        "",
        "Of the assignor of `app/transport/sticky.py`, which the group's leader runs at each rebalance; beside it what",
        "moves under Kafka's round-robin one, which Faust would take and which deals anew each time. In a rebalance",
        "all workers hand in what they hold, whichever assignor follows; what stays where it was has no new owner.",
    ]


def claiming(documents: dict[str, dict[str, Any]]) -> list[str]:
    """What a claim costs on one Redis and on a cluster."""
    found = documents.get("capacity", {}).get("claiming")
    if found is None:
        return ["Redis Cluster was not measured (`capacity.json` is missing, or older than that)."]
    one, three = found["single"], found["cluster"]
    shares = ", ".join(f"{share:.1%}" for share in three["shares"])
    return [
        "## Claims on a Redis Cluster",
        "",
        "| claims | us of Redis' CPU each | us of the router's CPU each | held by each master |",
        "|---|--:|--:|---|",
        f"| one server | {one['redis_us']:g} | {one['client_us']:g} | all |",
        f"| {len(three['shares'])} masters | {three['redis_us']:g} | {three['client_us']:g} | {shares} |",
        "",
        f"{found['claims']:,} fresh claims in batches of {found['batch']}, by the router's own code, on loopback.",
        f"Masters take whole buckets, `routing.dedup_buckets` of them ({found['buckets']} here): more masters than",
        "buckets are of no use, and few buckets a master share the load unevenly. Set a multiple of the masters, in",
        "all routers at once: what was claimed in other buckets is not found again, so duplicates of an hour may pass.",
    ]
