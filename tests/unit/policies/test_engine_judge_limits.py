"""The judge over real HTTP: what happens when it cannot answer, and what it may cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from fastapi import Response
from scripted_judge import CONFIG, HARMFUL, SILENT, TEXT, Asking, as_json, ask, endpoint

from app.embedded.ports import free_port
from policies.engine import judge as judging
from policies.engine.config import EngineConfig
from policies.engine.judge_budget import DailyBudget, MinuteRate
from policies.engine.reading import Judged

NO_ANSWERS: dict[str, tuple[Any, str, str]] = {
    "500": (500, "unreachable", "cannot be reached"),
    "429": (429, "rate_limited", "rate limit"),
    "401": (401, "rejected", "rejects our requests"),
    "404": (404, "rejected", "rejects our requests"),
    "302": (302, "rejected", "rejects our requests"),
    "silent": (SILENT, "timed_out", "took too long"),
    "prose": ("It is fine, I think.", "not_understood", "not in the form"),
    "html": (lambda: Response("<html>hello</html>"), "not_understood", "not in the form"),
    "no choices": (lambda: as_json({"choices": []}), "not_understood", "not in the form"),
    "null content": (
        lambda: as_json({"choices": [{"message": {"content": None}}]}),
        "not_understood",
        "not in the form",
    ),
    "cut off": (
        lambda: as_json({"choices": [{"message": {"content": "{"}, "finish_reason": "length"}]}),
        "not_understood",
        "not in the form",
    ),
    "huge": (lambda: Response(b" " * 300_000), "not_understood", "not in the form"),
    "deep": (lambda: Response(b"[" * 100_000), "not_understood", "not in the form"),
}


@pytest.mark.parametrize(("reply", "why", "said"), NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_a_judge_that_cannot_answer_leaves_the_local_verdict_and_says_so(reply: Any, why: str, said: str) -> None:
    with endpoint(reply) as (_, url), Asking(replace(CONFIG, url=url, timeout_s=0.5)) as judge:
        (verdict,) = judge.about(TEXT)
        assert (judge.count(why), judge.state) == (1.0, why)
    assert (verdict.allow, verdict.confidence_score, verdict.violations) == (True, 0.96, [])
    assert verdict.scores["judge_answered"] == 0.0
    assert said in verdict.reason
    assert "judge gave no answer" in verdict.reason


def test_nobody_there() -> None:
    verdict = ask(f"http://127.0.0.1:{free_port()}/v1")
    assert (verdict.allow, verdict.confidence_score) == (True, 0.96)
    assert "cannot be reached" in verdict.reason


def test_a_text_too_long_is_not_sent() -> None:
    with endpoint(HARMFUL) as (script, url):
        verdict = ask(url, text=Judged("x" * 80, "y" * 30), max_chars=100)
        assert "too long" in verdict.reason
        assert script.asked == []


def test_a_passing_trouble_is_asked_again() -> None:
    with endpoint(503, 500, HARMFUL) as (script, url):
        assert not ask(url, retries=2).allow
    assert len(script.asked) == 3


def test_a_lasting_one_is_not() -> None:
    with endpoint(400, HARMFUL) as (script, url):
        assert ask(url, retries=2).allow
    assert len(script.asked) == 1


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_honoured(form: str) -> None:
    def later() -> Response:
        at = (datetime.now(UTC) + timedelta(seconds=2)).strftime("%a, %d %b %Y %H:%M:%S GMT")
        return Response(status_code=429, headers={"Retry-After": "1" if form == "seconds" else at})

    with endpoint(later, HARMFUL) as (script, url):
        assert not ask(url, retries=1, deadline_s=8.0).allow
    assert script.times[1] - script.times[0] >= 0.99


def test_a_retry_after_beyond_the_deadline_is_not_waited_for() -> None:
    with endpoint(lambda: Response(status_code=503, headers={"Retry-After": "60"}), HARMFUL) as (script, url):
        started = time.monotonic()
        assert ask(url, retries=3).allow
        assert time.monotonic() - started < 2.0
    assert len(script.asked) == 1


def test_the_deadline_holds_for_a_whole_batch() -> None:
    with endpoint(SILENT) as (_, url), Asking(replace(CONFIG, url=url, concurrency=2, batch_deadline_s=1.0)) as judge:
        started = time.monotonic()
        verdicts = judge.about(*[TEXT] * 20)
        assert time.monotonic() - started < 5.0
    assert {verdict.confidence_score for verdict in verdicts} == {0.96}
    assert {verdict.scores["judge_answered"] for verdict in verdicts} == {0.0}


def test_an_endpoint_that_fails_again_and_again_is_left_alone_and_then_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "REST_S", 0.3)
    with endpoint(*[500] * 5, HARMFUL) as (script, url), Asking(replace(CONFIG, url=url)) as judge:
        for _ in range(5):
            judge.about(TEXT)
        assert judge.state == "resting"
        assert "cannot be reached" in judge.about(TEXT)[0].reason
        assert len(script.asked) == 5
        time.sleep(0.35)
        assert not judge.about(TEXT)[0].allow
        assert judge.state == "answering"


def test_no_more_requests_a_minute_than_allowed() -> None:
    with endpoint(HARMFUL) as (script, url), Asking(replace(CONFIG, url=url, requests_per_minute=3)) as judge:
        verdicts = judge.about(*[TEXT] * 5)
        assert len(script.asked) == 3
        assert judge.count("rate_limited") == 2.0
    assert sum(verdict.allow for verdict in verdicts) == 2


def test_a_minute_is_any_sixty_seconds() -> None:
    now = [0.0]
    rate = MinuteRate(2, clock=lambda: now[0])
    assert (rate.admit(), rate.admit()) == (0.0, 0.0)
    assert rate.admit() == 60.0
    now[0] = 59.0
    assert rate.admit() == pytest.approx(1.0)
    now[0] = 60.0
    assert rate.admit() == 0.0


@pytest.mark.parametrize(
    ("limit", "calls"), [({"calls_per_day": 2}, 2), ({"tokens_per_day": 1500}, 2)], ids=["calls", "tokens"]
)
def test_a_used_up_budget_is_a_state_of_its_own_and_outlives_a_restart(
    limit: dict[str, int], calls: int, tmp_path: Path
) -> None:
    engine = EngineConfig(cache_dir=tmp_path)
    with endpoint(HARMFUL) as (script, url):
        config = replace(CONFIG, url=url, **limit)  # type: ignore[arg-type]
        with Asking(config, engine) as judge:
            assert [judge.about(TEXT)[0].allow for _ in range(4)] == [False] * calls + [True] * (4 - calls)
            assert judge.state == "budget_used_up"
            assert judge.count("budget_used_up") == 4 - calls
            unit = next(iter(limit)).removesuffix("_per_day")
            left = judge.metrics.registry.get_sample_value("policy_engine_judge_budget_left", {"unit": unit})
            assert left == 0.0
        with Asking(config, engine) as again:
            (verdict,) = again.about(TEXT)
            assert again.state == "budget_used_up"
        assert len(script.asked) == calls
    assert verdict.confidence_score == 0.96
    assert "budget is used up" in verdict.reason


def test_retries_are_paid_for_too() -> None:
    with endpoint(503, 503, HARMFUL) as (script, url):
        verdict = ask(url, retries=5, calls_per_day=2)
    assert len(script.asked) == 2
    assert "budget is used up" in verdict.reason


def test_a_new_day_begins_with_nothing_used_and_a_damaged_file_too(tmp_path: Path) -> None:
    now = [datetime(2026, 1, 1, 23, 59, tzinfo=UTC)]
    file = tmp_path / "budget.json"
    today: Callable[[], datetime] = lambda: now[0]  # noqa: E731
    budget = DailyBudget(1, 0, file, today)
    assert (budget.take(10), budget.take(10)) == (True, False)
    now[0] += timedelta(minutes=2)
    assert not budget.state.used_up
    assert budget.take(10)
    assert DailyBudget(1, 0, file, today).state.used_up
    file.write_text("{")
    assert not DailyBudget(1, 0, file, today).state.used_up
