"""Engines permit nothing when the policy cannot be asked, and say that it is no verdict."""

from __future__ import annotations

import asyncio
import copy
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from http_double import http, serving

from models.decision import GateDecision
from policies.gate import OpaConfig, OpaEngine, PolicyEngine, RegopyEngine, load_bundle

HASH = "cdd01ef066bc6cf2"
AUDIT = {"enabled": True, "trail_enabled": True, "constitutional_hash": HASH, "retention_period": 2555}
FACTS: dict[str, Any] = {
    "model": {"constitutional_hash": HASH},
    "rollback": {
        "trigger": "watch",
        "adherence": 0.9,
        "n_evaluations": 150,
        "target_version": "v3",
        "target_was_champion": True,
    },
    "audit": AUDIT,
}
REFUSED = {"code": "rollback_target", "message": "No."}
ANSWER = {
    "allow": True,
    "reasons": [],
    "lane": "fast",
    "human_review_required": False,
    "revision": {"bundle": "b1", "data": "d1"},
}


@pytest.fixture(scope="module")
def regopy_engine() -> RegopyEngine:
    return RegopyEngine(load_bundle())


async def decide_once(config: OpaConfig) -> GateDecision:
    engine = OpaEngine(config)
    try:
        return await engine.decide("model_rollback", FACTS)
    finally:
        await engine.aclose()


def assert_no_verdict(decision: GateDecision, code: str) -> None:
    assert not decision.allow
    assert not decision.conclusive
    assert decision.verdict == "unavailable"
    assert not decision.needs_approval
    assert [reason.code for reason in decision.reasons] == [code]


def test_both_are_policy_engines(regopy_engine: RegopyEngine) -> None:
    assert isinstance(regopy_engine, PolicyEngine)
    assert isinstance(OpaEngine(OpaConfig("http://127.0.0.1:1")), PolicyEngine)


async def test_regopy_allows_and_refuses(regopy_engine: RegopyEngine) -> None:
    allowed = await regopy_engine.decide("model_rollback", FACTS)
    assert allowed.allow
    assert allowed.verdict == "allow"
    refused = await regopy_engine.decide("model_rollback", {**FACTS, "audit": None})
    assert refused.verdict == "refuse"
    assert [reason.code for reason in refused.reasons] == [
        "audit_enabled",
        "audit_hash",
        "audit_retention",
        "audit_trail",
    ]
    assert allowed.decision_id != refused.decision_id


async def test_regopy_is_not_fooled_by_a_miss_of_less_than_a_millionth(regopy_engine: RegopyEngine) -> None:
    facts = copy.deepcopy(FACTS)
    facts["rollback"]["adherence"] = 0.95
    assert not (await regopy_engine.decide("model_rollback", facts)).allow
    facts["rollback"]["adherence"] = 0.9499999999
    assert (await regopy_engine.decide("model_rollback", facts)).allow


@pytest.mark.parametrize("facts", [{"rollback": {1, 2}}, {**FACTS, "extra": b"x"}, {**FACTS, "action": "x"}])
async def test_unreadable_facts_are_a_conclusive_refusal(regopy_engine: RegopyEngine, facts: dict[str, Any]) -> None:
    decision = await regopy_engine.decide("model_rollback", facts)
    assert decision.verdict == "refuse"
    assert decision.reasons[0].code == "facts_unreadable"
    assert "constitutional_hash" in [reason.code for reason in decision.reasons]


async def test_unreadable_facts_are_refused_even_where_the_policy_allows() -> None:
    async with serving(lambda _: http(200, {"result": ANSWER})) as server:
        engine = OpaEngine(OpaConfig(server.url))
        decision = await engine.decide("model_rollback", {**FACTS, "extra": b"x"})
        await engine.aclose()
    assert decision.verdict == "refuse"
    assert [reason.code for reason in decision.reasons] == ["facts_unreadable"]
    assert b"extra" not in server.requests[0]


def test_threads_share_a_regopy_engine(regopy_engine: RegopyEngine) -> None:
    """Every thread gets the answer to its own question."""
    barrier = threading.Barrier(4)

    def ask(worker: int) -> list[bool]:
        facts = copy.deepcopy(FACTS)
        facts["rollback"]["target_was_champion"] = worker % 2 == 0
        barrier.wait(timeout=30)
        return [regopy_engine.decide_now("model_rollback", facts).allow for _ in range(25)]

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(4)))
    assert answers == [[worker % 2 == 0] * 25 for worker in range(4)]


def test_regopy_swaps_bundles(regopy_engine: RegopyEngine) -> None:
    engine = RegopyEngine(load_bundle())
    before = engine.decide_now("model_rollback", FACTS)
    engine.swap(engine.bundle.with_data({"bounds": {"watch_min_evaluations": 151}}))
    after = engine.decide_now("model_rollback", FACTS)
    assert before.allow
    assert [reason.code for reason in after.reasons] == ["rollback_grounds"]
    assert after.data_revision == engine.bundle.data_revision != before.data_revision


async def test_opa_is_asked_over_a_kept_connection() -> None:
    async with serving(lambda _: http(200, {"result": ANSWER, "decision_id": "d-7"})) as server:
        engine = OpaEngine(OpaConfig(server.url, token="secret"))
        decisions = [await engine.decide("model_rollback", FACTS) for _ in range(3)]
        await engine.aclose()
    assert all(decision.allow for decision in decisions)
    assert decisions[0].decision_id == "d-7"
    assert (decisions[0].bundle_revision, decisions[0].data_revision) == ("b1", "d1")
    assert server.connections == 1
    head, body = server.requests[0].split(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/data/acgs/nemo/constitutional/decision?strict-builtin-errors=true ")
    assert b"authorization: bearer secret" in head.lower()
    assert json.loads(body) == {"input": {"action": "model_rollback", **FACTS}}


async def test_opa_unreachable() -> None:
    async with serving(lambda _: None) as server:
        pass
    assert_no_verdict(await decide_once(OpaConfig(server.url)), "policy_unavailable")


async def test_opa_slow() -> None:
    async with serving(lambda _: None) as server:
        assert_no_verdict(await decide_once(OpaConfig(server.url, timeout_seconds=0.1)), "policy_unavailable")


async def test_opa_trickling_is_bounded_as_a_whole() -> None:
    """Bytes that keep coming hold off a timeout of each read, but not that of the decision."""

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while not writer.is_closing() and not reader.at_eof():
            writer.write(b" ")
            await asyncio.sleep(0.02)

    listener = await asyncio.start_server(trickle, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    async with asyncio.timeout(20):
        decision = await decide_once(OpaConfig(url, timeout_seconds=0.2))
    listener.close()
    assert_no_verdict(decision, "policy_unavailable")


@pytest.mark.parametrize("status", [301, 400, 401, 404, 500, 503])
async def test_opa_error_status(status: int) -> None:
    async with serving(lambda _: http(status, {"result": ANSWER})) as server:
        assert_no_verdict(await decide_once(OpaConfig(server.url)), "policy_unavailable")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"[]",
        b"{}",
        {"result": None},
        {"result": True},
        {"result": {}},
        {"result": {**ANSWER, "allow": "true"}},
        {"result": {**ANSWER, "allow": 1}},
        {"result": {**ANSWER, "lane": "express"}},
        {"result": {**ANSWER, "human_review_required": None}},
        {"result": {**ANSWER, "human_review_required": True}},
        {"result": {name: part for name, part in ANSWER.items() if name != "human_review_required"}},
        {"result": {**ANSWER, "reasons": None}},
        {"result": {**ANSWER, "reasons": [{"code": "x"}], "allow": False}},
        {"result": {**ANSWER, "reasons": [REFUSED]}},
        {"result": {**ANSWER, "allow": False}},
        {"result": {**ANSWER, "revision": None}},
        {"result": {**ANSWER, "revision": {"bundle": "", "data": "d1"}}},
    ],
)
async def test_opa_malformed(body: Any) -> None:
    async with serving(lambda _: http(200, body)) as server:
        assert_no_verdict(await decide_once(OpaConfig(server.url)), "policy_malformed")


async def test_opa_breaks_the_connection() -> None:
    async with serving(lambda _: b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n{}") as server:
        config = OpaConfig(server.url, timeout_seconds=0.2)
        assert_no_verdict(await decide_once(config), "policy_unavailable")


@pytest.mark.parametrize("revision", [{"bundle_revision": "b2"}, {"data_revision": "d2"}])
async def test_opa_with_other_policies_than_expected(revision: dict[str, str]) -> None:
    async with serving(lambda _: http(200, {"result": ANSWER})) as server:
        assert (await decide_once(OpaConfig(server.url, bundle_revision="b1", data_revision="d1"))).allow
        assert_no_verdict(await decide_once(OpaConfig(server.url, **revision)), "policy_revision")


async def test_opa_left_alone_after_repeated_failure_and_asked_again_later() -> None:
    now = 0.0
    healthy = False
    async with serving(lambda _: http(200, {"result": ANSWER}) if healthy else http(500, {})) as server:
        engine = OpaEngine(OpaConfig(server.url, failure_threshold=3, reset_seconds=5.0), clock=lambda: now)
        for _ in range(5):
            assert_no_verdict(await engine.decide("model_rollback", FACTS), "policy_unavailable")
        assert len(server.requests) == 3
        healthy, now = True, 5.0
        assert (await engine.decide("model_rollback", FACTS)).allow
        assert (await engine.decide("model_rollback", FACTS)).allow
        assert len(server.requests) == 5
        await engine.aclose()


async def test_cancellation_passes_and_frees_the_trial() -> None:
    now = 0.0
    reply: bytes | None = http(500, {})
    async with serving(lambda _: reply) as server:
        engine = OpaEngine(OpaConfig(server.url, failure_threshold=1, reset_seconds=1.0), clock=lambda: now)
        await engine.decide("model_rollback", FACTS)
        reply, now = None, 1.0
        server.asked.clear()
        trial = asyncio.create_task(engine.decide("model_rollback", FACTS))
        async with asyncio.timeout(20):
            await server.asked.wait()
        trial.cancel()
        with pytest.raises(asyncio.CancelledError):
            await trial
        reply = http(200, {"result": ANSWER})
        assert (await engine.decide("model_rollback", FACTS)).allow
        await engine.aclose()


@pytest.mark.parametrize(
    "settings",
    [{"url": "opa:8181"}, {"url": "http://a", "timeout_seconds": 0}, {"url": "http://a", "max_connections": 0}],
)
def test_opa_settings_that_cannot_work(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"url|timeout_seconds"):
        OpaConfig(**settings)
