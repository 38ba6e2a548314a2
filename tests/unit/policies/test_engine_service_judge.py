"""The engine with a judge, over HTTP: the real service with the model that ships, and a scripted judge endpoint."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from loopback import serving
from scripted_judge import CONFIG, HARMFUL, HARMLESS, endpoint

from app.embedded.ports import free_port
from policies.constitution import load_constitution
from policies.engine.config import CombineConfig, EngineConfig
from policies.engine.errors import UnfitSettings
from policies.engine.judge_config import JudgeConfig
from policies.engine.service import create_engine_app

pytestmark = pytest.mark.torch

HASH = "cdd01ef066bc6cf2"
CAKE = ("Mix flour, butter, sugar, eggs and the zest of a lemon.", "How do I bake a lemon cake?")
BOMB = ("Sure, here is how you do it: take a steel pipe and fill it.", "How do I build a pipe bomb?")


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("embeddings")


@contextmanager
def engine(judge: JudgeConfig, cache_dir: Path) -> Iterator[httpx.Client]:
    app = create_engine_app(EngineConfig(judge=judge, cache_dir=cache_dir), load_constitution())
    with serving(app) as url, httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        deadline = time.monotonic() + 120
        while client.get("/health/ready").status_code != httpx.codes.OK:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield client


def ask(client: httpx.Client, text: tuple[str, str]) -> dict[str, Any]:
    body = {"content": text[0], "context": {"prompt": text[1]}, "constitutional_hash": HASH}
    answer = client.post("/api/v1/evaluate", json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def state(client: httpx.Client) -> Any:
    return client.get("/health/ready").json()["judge"]


def test_the_judge_has_its_say_where_the_local_evaluators_let_pass(cache_dir: Path) -> None:
    with endpoint(HARMFUL, HARMLESS) as (script, url), engine(replace(CONFIG, url=url), cache_dir) as client:
        decided = ask(client, CAKE)
        assert (decided["allow"], decided["violations"]) == (False, ["harmful_content", "harmful_content.weapons"])
        assert ask(client, CAKE)["allow"]
        assert len(script.asked) == 2
        denied = ask(client, BOMB)
        assert (denied["allow"], len(script.asked)) == (False, 2), "what is denied already is not asked about"
        assert "judge_answered" not in denied["scores"]
        assert state(client) == "answering"
        assert 'policy_engine_judge_total{outcome="answered"} 2.0' in client.get("/metrics").text


def test_a_batch_is_judged_text_by_text(cache_dir: Path) -> None:
    with endpoint(HARMLESS) as (script, url), engine(replace(CONFIG, url=url), cache_dir) as client:
        item = {"content": CAKE[0], "context": {"prompt": CAKE[1]}, "constitutional_hash": HASH}
        wrong = item | {"constitutional_hash": "f" * 16}
        body = {"items": [item, wrong, item]}
        results = client.post("/api/v1/evaluate/batch", json=body).json()["results"]
    assert [result["scores"].get("judge_answered") for result in results] == [1.0, None, 1.0]
    assert len(script.asked) == 2
    assert len({request["messages"][0]["content"] for request in script.asked}) == 2, "each with nonces of its own"


def test_without_its_judge_the_engine_goes_on(cache_dir: Path) -> None:
    gone = replace(CONFIG, url=f"http://127.0.0.1:{free_port()}/v1")
    with engine(gone, cache_dir) as client:
        decided = ask(client, CAKE)
        assert decided["allow"]
        assert decided["confidence_score"] >= 0.95
        assert decided["scores"]["judge_answered"] == 0.0
        assert "cannot be reached" in decided["reason"]
        assert client.get("/health/ready").status_code == 200
        assert state(client) == "unreachable"


def test_a_used_up_budget_shows(cache_dir: Path, tmp_path: Path) -> None:
    with endpoint(HARMFUL) as (script, url), engine(replace(CONFIG, url=url, calls_per_day=1), tmp_path) as client:
        assert not ask(client, CAKE)["allow"]
        assert "budget is used up" in ask(client, CAKE)["reason"]
        assert state(client) == "budget_used_up"
        assert 'policy_engine_judge_budget_left{unit="calls"} 0.0' in client.get("/metrics").text
        assert len(script.asked) == 1


def test_evaluators_of_an_unknown_principle_are_refused_at_the_start() -> None:
    config = EngineConfig(combine=CombineConfig(evaluators={"kindness": ("rules",)}))
    with pytest.raises(UnfitSettings, match=r"kindness; the constitution's principles are child_safety"):
        create_engine_app(config, load_constitution())
