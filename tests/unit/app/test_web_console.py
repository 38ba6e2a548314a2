"""What the pages and the API behind them show, to whom, and what their acts leave in the store and the audit log."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from deciding_parts import Watch, engine, opener
from loopback import serving
from web_rig import HOSTILE, Rig, figures, make_example, revised, walk

from app import wiring
from app.store import adherence, outbox, progress, registry
from app.store.access import UserRole
from app.store.adherence import Observation
from app.web.charts import adherence_line, bars
from app.web.console import promotion
from models.audit import AuditEntry
from models.cycle import CycleState
from models.decision import GateDecision
from policies.audit.config import AuditConfig
from policies.audit.service import create_audit_app
from policies.gate.interface import POLICY_UNAVAILABLE, undecided

HTML = {"accept": "text/html"}
BACK = "/api/v1/models/m/rollback"


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def bearer(rig: Rig, role: UserRole, *domains: str, person: str | None = None) -> dict[str, str]:
    return {"authorization": f"Bearer {rig.token(person or f'{role}-person', role, *domains)}"}


def visible_text(page: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", page)).split())


async def get(rig: Rig, path: str, headers: dict[str, str], status: int = 200) -> str:
    async with rig.client(**headers) as http:
        answer = await http.get(path)
    assert answer.status_code == status, answer.text[:500]
    return answer.text


# --- nothing that events say becomes a page's own --------------------------------------------------------------------


async def test_what_events_and_people_say_is_shown_as_text(rig: Rig) -> None:
    """Names, prompts, answers, targets, reasons, comments: each carries markup, and no page takes it for its own."""
    cycle = rig.cycle(HOSTILE, HOSTILE)
    example = rig.example("e1", HOSTILE, prompt=HOSTILE, response=HOSTILE, model_id=HOSTILE, violation_type=HOSTILE)
    with rig.database.write() as connection:
        revised(connection, cycle.cycle_id, example, HOSTILE)
        progress.save(connection, cycle.cycle_id, "revise", 1, 3, {HOSTILE: HOSTILE})
        adherence.observe(connection, [Observation("t", 0, 0, HOSTILE, HOSTILE, True, 1.0)], 500.0)
        failed = walk(connection, "m2", "d", CycleState.PROMOTED)
        registry.deploy(connection, "m2", None, HOSTILE)
        from app.store import approvals, cycles, live_settings, switches

        approvals.decide(connection, cycle, reviewer="bob", approved=False, comment=HOSTILE)
        live_settings.change(connection, "trigger.threshold", 0.7, changed_by=HOSTILE, comment=HOSTILE)
        switches.halt(connection, changed_by="ada", comment=HOSTILE)
        reasons = ({"code": "c", "message": HOSTILE},)
        cycles.transition(connection, cycle, CycleState.FAILED, {HOSTILE: HOSTILE}, reasons=reasons)
    me = bearer(rig, UserRole.OPERATOR)
    shown = 0
    for path in ("/", f"/cycles/{cycle.cycle_id}", f"/cycles/{failed.cycle_id}", "/review", "/models", "/routing",
                 "/audit?event_type=%3Cscript%3E", "/sign-in?next=%22%3E%3Cscript%3E", "/dead-letters"):  # fmt: skip
        page = await get(rig, path, me)
        assert re.findall(r"<script[^>]*>", page) == ['<script src="/static/live.js" defer>']
        assert "onerror=alert(1)>" not in page
        assert not re.search(r"\son\w+=|\sstyle=|javascript:", re.sub(r"&lt;.*?&gt;", "", page))
        shown += page.count("&lt;script&gt;")
    assert shown > 15
    wrong = {"accept": "text/html"} | me
    assert "<script>" not in await get(rig, "/cycles/%3Cscript%3E", wrong, 404)


async def test_pages_have_what_browsers_and_screen_readers_need(rig: Rig) -> None:
    cycle = rig.cycle("m", "d")
    rig.example("e1", "d")
    me = bearer(rig, UserRole.OPERATOR)
    for path in ("/", f"/cycles/{cycle.cycle_id}", "/review", "/models", "/routing", "/audit", "/dead-letters",
                 "/sign-in"):  # fmt: skip
        page = await get(rig, path, me)
        assert page.count("<h1>") == 1
        assert '<html lang="en">' in page
        assert all(f"<{landmark}" in page for landmark in ("header", "main", "footer"))
        assert 'class="skip" href="#main"' in page
        ids = re.findall(r'\sid="([^"]+)"', page)
        assert len(ids) == len(set(ids)), "an id stands twice"
        # Every field has a label, every label a field, every reference its target.
        fields = re.findall(r"<(?:input|select|textarea|meter|progress)\b([^>]*)>", page)
        named = {found[1] for found in (re.search(r'\sid="([^"]+)"', field) for field in fields) if found}
        labels = set(re.findall(r'<label for="([^"]+)"', page))
        assert named - labels == set()
        assert labels - named == set()
        assert all('type="hidden"' in field or 'type="checkbox"' in field or " id=" in field for field in fields)
        assert set(re.findall(r'aria-labelledby="([^"]+)"', page)) <= set(ids)
        assert not re.search(r'(?:src|href|action)="(?:https?:)?//', page)


async def test_links_lead_somewhere(rig: Rig) -> None:
    rig.cycle("m", "d", CycleState.PROMOTED)
    me = bearer(rig, UserRole.OPERATOR) | HTML
    seen: set[str] = set()
    waiting = ["/"]
    async with rig.client(**me) as http:
        while waiting:
            path = waiting.pop()
            seen.add(path)
            answer = await http.get(path)
            assert answer.status_code == 200, path
            if answer.headers["content-type"].startswith("text/html"):
                links = {html.unescape(link) for link in re.findall(r'(?:href|src)="(/[^"#]*)', answer.text)}
                waiting += sorted(links - seen - set(waiting))
    assert {"/models", "/routing", "/audit", "/review", "/static/console.css", "/openapi.json", "/?span=7d"} <= seen


# --- the overview ----------------------------------------------------------------------------------------------------


async def test_the_overview_is_limited_to_the_callers_domains(rig: Rig) -> None:
    for domain in ("medical", "legal"):
        rig.cycle(f"model-{domain}", domain)
        rig.example(f"e-{domain}", domain)
        with rig.database.write() as connection:
            adherence.observe(connection, [Observation("t", 0, len(domain), f"model-{domain}", domain, True, 1.0)], 9.0)
    limited = await get(rig, "/api/v1/overview", bearer(rig, UserRole.VIEWER, "medical"))
    assert "medical" in limited
    assert "legal" not in limited
    assert "legal" in await get(rig, "/api/v1/overview", bearer(rig, UserRole.VIEWER))
    page = await get(rig, "/", bearer(rig, UserRole.VIEWER, "medical", person="eve"))
    assert "legal" not in page
    cycles = await get(rig, "/api/v1/cycles", bearer(rig, UserRole.VIEWER, "legal", person="lea"))
    assert "medical" not in cycles


async def test_the_budget_is_that_of_the_newest_cohort(rig: Rig) -> None:
    import sqlalchemy as sa

    from app.store import tables as schema

    with rig.database.write() as connection:
        for number, (domain, cohort) in enumerate((("medical", 0), ("medical", 1), ("legal", 0))):
            cycle = walk(connection, f"m{number}", domain, CycleState.PROMOTED)
            progress.save(connection, cycle.cycle_id, "train", 40, 40, {"epsilon": 4.5 + number})
            row = {"domain": domain, "cohort": cohort, "cycle_id": cycle.cycle_id, "model_id": f"m{number}",
                   "noise_multiplier": 1.0, "sample_rate": 0.1, "steps": 1, "fence": 1, "created_at": "x"}  # fmt: skip
            connection.execute(sa.insert(schema.ledger), [row] * 3)
        opened = {"domain": "medical", "cohort": 1, "opened_by": "ada", "comment": "new people", "opened_at": "x"}
        connection.execute(sa.insert(schema.cohorts).values(**opened))
    async with rig.client(**bearer(rig, UserRole.VIEWER)) as http:
        found = (await http.get("/api/v1/overview")).json()["budgets"]
        page = (await http.get("/")).text
    assert [(one["domain"], one["cohort"], one["epsilon"], one["cycles"]) for one in found] == [
        ("legal", 0, 6.5, 1), ("medical", 1, 5.5, 1)
    ]  # fmt: skip
    assert "epsilon 6.50 of 8 spent in 1 cycle" in visible_text(page)
    assert page.count("<meter ") == 2


async def test_figures_of_all_workers_are_added_up(rig: Rig) -> None:
    from app.store import reports

    flow = {"in": 10, "routed": 6, "filtered": 2, "duplicate": 1, "sampled_out": 1, "dead_lettered": 0}
    told = flow | {"by_classification": {"audit_trail": 6}, "by_reason": {}, "rates": {"in": 2.5, "routed": 1.5}}
    with rig.database.write() as connection:
        for number in range(3):
            reports.save(connection, f"route@host:{number}", "route", {"routing": told, "lag": {"t": 4}})
        connection.exec_driver_sql(
            "UPDATE worker_reports SET reported_at = reported_at - 60 WHERE worker = 'route@host:2'"
        )
    async with rig.client(**bearer(rig, UserRole.VIEWER)) as http:
        shown = (await http.get("/api/v1/overview")).json()
    assert (shown["flow"]["records"]["in"], shown["flow"]["rates"]["in"], shown["lag"]["route"]) == (20, 5.0, 8)
    assert [one["silent"] for one in shown["workers"] if one["role"] == "route"] == [False, False, True]
    assert "silent for 60 s" in visible_text(await get(rig, "/", bearer(rig, UserRole.VIEWER, person="v")))


async def test_a_store_that_is_away_is_said(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlalchemy as sa

    from app.workers import WorkerState

    me = bearer(rig, UserRole.VIEWER)
    async with rig.client(**me | HTML) as http:
        assert (await http.get("/")).status_code == 200

        def away(self: WorkerState) -> Any:
            raise sa.exc.OperationalError("SELECT", {}, Exception("password=hunter2"))

        monkeypatch.setattr(WorkerState, "database", property(away))
        page = await http.get("/")
    assert page.status_code in {200, 503}
    assert "does not answer" in page.text or "cannot be read" in page.text
    assert "hunter2" not in page.text


def test_the_line_of_adherence() -> None:
    points = [("2026-03-02T09:00", 1.0), ("2026-03-02T09:05", 0.8), ("2026-03-02T09:10", 0.9)]
    line = adherence_line(points, 0.95)
    assert line is not None
    assert (line.points, line.low, line.threshold_y) == ("0.0,0.0 300.0,100.0 600.0,50.0", 0.8, 25.0)
    assert adherence_line(points[:1], 0.95) is None
    low = adherence_line([("2026-03-02T09:00", 0.37), ("2026-03-02T09:05", 0.5)], 0.95)
    assert low is not None
    assert low.low == 0.3


def test_bars_take_whatever_is_compared() -> None:
    found = bars({"base": 0.2, "in_context": 0.5, "candidate": 0.97, "n": 120, "interval": {"base": [0.1, 0.3]}})
    assert [(bar.name, bar.width, bar.low, bar.high) for bar in found] == [
        ("base", 20.0, 10.0, 30.0), ("in_context", 50.0, 50.0, 50.0), ("candidate", 97.0, 97.0, 97.0)
    ]  # fmt: skip
    assert bars(None) == bars({}) == bars({"n": 1}) == []


# --- a cycle ---------------------------------------------------------------------------------------------------------


async def test_a_cycle_shows_how_it_came_to_where_it_is(rig: Rig) -> None:
    cycle = rig.cycle("m", "d", CycleState.PROMOTED)
    text = visible_text(await get(rig, f"/cycles/{cycle.cycle_id}", bearer(rig, UserRole.VIEWER)))
    for said in ("awaiting approval", "training", "evaluating", "promoted", "epsilon target 4", "left out",
                 "residual pii 1", "Adherence on harmful prompts", "97.0 %", "92.0 % to 99.0 %", "0.947 times",
                 "Privacy statement", "3.97"):  # fmt: skip
        assert said.lower() in text.lower(), said


async def test_event_text_is_for_those_with_the_right(rig: Rig) -> None:
    cycle = rig.cycle("m", "d")
    example = rig.example("e1", "d", prompt="a prompt nobody else may see", response="an answer")
    with rig.database.write() as connection:
        revised(connection, cycle.cycle_id, example, "a better answer")
    path = f"/cycles/{cycle.cycle_id}"
    for role, sees in ((UserRole.VIEWER, False), (UserRole.REVIEWER, True), (UserRole.OPERATOR, True)):
        for prefix in ("", "/api/v1"):
            shown = await get(rig, prefix + path, bearer(rig, role, "d"))
            assert ("a prompt nobody else may see" in shown) == sees
            assert ("a better answer" in shown) == sees


async def test_approving_rejecting_cancelling(rig: Rig) -> None:
    ada = bearer(rig, UserRole.OPERATOR, person="ada")
    async with rig.client(**ada) as http:
        mine = rig.cycle("a", "d", requested_by="Ada")
        assert (await http.post(f"/api/v1/cycles/{mine.cycle_id}/decision", json={"approve": True})).status_code == 409
        theirs = rig.cycle("b", "d")
        to = f"/api/v1/cycles/{theirs.cycle_id}"
        said = await http.post(f"{to}/decision", json={"approve": False, "comment": "too few examples"})
        assert said.json() == {"said": f"ada rejected its plan of {theirs.cycle_id}."}
        shown = (await http.get(to)).json()
        assert [(one["reviewer"], one["approved"], one["comment"]) for one in shown["approvals"]] == [
            ("ada", False, "too few examples")
        ]
        early = rig.cycle("c", "d", CycleState.REVISING)
        refused = await http.post(f"/api/v1/cycles/{early.cycle_id}/decision", json={"approve": True})
        assert (refused.status_code, "no plan yet" in refused.text) == (409, True)
        assert (await http.post(f"{to}/cancel", json={"comment": "no longer needed"})).status_code == 200
        assert (await http.get(to)).json()["cycle"]["state"] == "cancelled"
        assert (await http.post(f"{to}/cancel", json={})).status_code == 409
    ended = rig.entries("optimization_cycle")[-1]
    assert ended["context"] == {"cancelled_by": "ada", "comment": "no longer needed"}


async def test_the_requester_is_told_that_somebody_else_decides(rig: Rig) -> None:
    cycle = rig.cycle("a", "d", requested_by="ada")
    page = await get(rig, f"/cycles/{cycle.cycle_id}", bearer(rig, UserRole.OPERATOR, person="Ada"))
    assert "somebody else decides" in page
    assert 'value="approve"' not in page


async def test_the_report_is_served_apart(rig: Rig) -> None:
    cycle = rig.cycle("m", "d", CycleState.PROMOTED)
    folder = rig.settings.training.artifacts / cycle.cycle_id
    path = f"/cycles/{cycle.cycle_id}"
    me = bearer(rig, UserRole.VIEWER)
    assert "/report" not in await get(rig, path, me)
    await get(rig, f"{path}/report", me, 404)
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("<h1>Report</h1>")
    assert f"{path}/report" in await get(rig, path, me)
    async with rig.client(**me) as http:
        answer = await http.get(f"{path}/report")
    assert answer.text == "<h1>Report</h1>"
    assert "sandbox" in answer.headers["content-security-policy"]
    assert "script-src" not in answer.headers["content-security-policy"]


# --- review ----------------------------------------------------------------------------------------------------------


async def test_the_queue_holds_what_nobody_has_spoken_on(rig: Rig) -> None:
    for number, priority in enumerate((1, 3, 2)):
        rig.example(f"e{number}", "d", priority=priority)
    rig.example("other", "other-domain")
    rig.example("shared", "d")
    with rig.database.write() as connection:
        copy = make_example("shared", "d").model_copy(update={"example_id": "ex-copy"})
        from app.store import examples

        row = {"feedback_id": "f", "target_event_id": "e0", "verdict": "approve", "signed": True, "reviewer_id": "x",
               "corrected_response": None}  # fmt: skip
        examples.insert(
            connection, [copy.model_copy(update={"identity": copy.identity.model_copy(update={"id": "2"})})]
        )
        examples.add_feedback(connection, [row])
    async with rig.client(**bearer(rig, UserRole.REVIEWER, "d")) as http:
        found = (await http.get("/api/v1/review")).json()
        assert [item["event_id"] for item in found["items"]] == ["e1", "e2"]
        assert (await http.get("/api/v1/review", params={"limit": 1})).json()["more"] is True


async def test_a_review_is_signed_in_the_reviewers_name_and_leaves_the_queue(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []

    class Producer:
        async def send_and_wait(self, topic: str, value: bytes, **_: Any) -> None:
            import orjson

            sent.append(orjson.loads(value))

    from agents.curation.signature import is_signed

    rig.example("e1", "d")
    console_feedback = rig.state.snapshots["feedback"].__self__  # type: ignore[attr-defined]
    monkeypatch.setattr(console_feedback, "_producer", Producer())
    token = rig.token("bob", UserRole.REVIEWER, "d")
    async with rig.client(authorization=f"Bearer {token}") as http:
        form = rig.form("bob", token, event_id="e1", verdict="correct", corrected_response="No; ask ada@example.org")
        http.cookies.update(form["cookies"])
        assert (await http.post("/review", data=form["data"])).status_code == 303
        assert (await http.get("/api/v1/review")).json()["items"] == []
        foreign = {"target_event_id": "elsewhere", "verdict": "approve"}
        assert (await http.post("/api/v1/feedback", json=foreign)).status_code == 404
        stolen = {"target_event_id": "e1", "verdict": "approve", "reviewer_id": "ada"}
        assert (await http.post("/api/v1/feedback", json=stolen)).status_code == 403
    [event] = sent
    assert (event["reviewer_id"], event["corrected_response"]) == ("bob", "No; ask [EMAIL]")
    assert is_signed(wiring.feedback_key(rig.settings), event)


# --- models, routing -------------------------------------------------------------------------------------------------


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Watch:
    """The gate's real policies, before watchers that a test holds in its hands."""
    watch = Watch()
    monkeypatch.setattr(promotion, "decision_context", opener(watch))
    return watch


async def test_rolling_back_goes_to_what_served_before(rig: Rig, gate: Watch) -> None:
    with rig.database.write() as connection:
        first = walk(connection, "m", "d", CycleState.PROMOTED)
        second = walk(connection, "m", "d", CycleState.PROMOTED)
    async with rig.client(**bearer(rig, UserRole.OPERATOR, "d", person="ada")) as http:
        [model] = (await http.get("/api/v1/models")).json()
        assert (model["champion"], model["back_to"]) == (second.cycle_id, first.cycle_id)
        assert (await http.get("/api/v1/overview")).json()["champions"] == 1
        assert [version["adherence"] for version in model["versions"]] == [0.97, 0.97]
        stale = await http.post(BACK, json={"champion": first.cycle_id, "comment": "why"})
        assert stale.status_code == 409
        assert gate.asked == [], "what is not there to be rolled back is nothing to ask about"
        back = {"champion": second.cycle_id, "comment": "it refuses everything"}
        assert (await http.post(BACK, json=back)).status_code == 200
        [model] = (await http.get("/api/v1/models")).json()
        assert (model["champion"], model["back_to"]) == (first.cycle_id, None)
        assert (await http.post(BACK, json={"champion": first.cycle_id, "comment": "still"})).status_code == 200
        [model] = (await http.get("/api/v1/models")).json()
        assert (model["champion"], model["can_step_back"]) == (None, False)
        assert (await http.post(BACK, json={"champion": "", "comment": "more"})).status_code == 409
        overview = (await http.get("/api/v1/overview")).json()
        assert (overview["champions"], overview["cycles_by_state"]) == (0, {"promoted": 2})
    told = [entry["context"] for entry in rig.entries("deployment")][-2:]
    assert [one["reason"] for one in told] == ["rolled back by ada: it refuses everything", "rolled back by ada: still"]
    decided = [entry.context["decision"] for entry in gate.entries]
    assert [one["decision_id"] for one in decided] == [one["decision_id"] for one in told]
    assert gate.decisions() == [("model_rollback", True)] * 2


@pytest.mark.parametrize("away", ["policy_engine", "gate"])
async def test_a_rollback_may_go_ahead_without_a_verdict_once_the_audit_log_knows(
    rig: Rig, gate: Watch, away: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if away == "policy_engine":
        gate.policy_engine = False
    else:

        async def silent(action: str, facts: dict[str, Any]) -> GateDecision:
            return undecided(action, "opa", POLICY_UNAVAILABLE, f"It did not answer about {len(facts)} facts.")

        monkeypatch.setattr(gate, "decide", silent)
    with rig.database.write() as connection:
        champion = walk(connection, "m", "d", CycleState.PROMOTED).cycle_id
    back = {"champion": champion, "comment": "it is harmful"}
    async with rig.client(**bearer(rig, UserRole.OPERATOR, "d", person="ada")) as http:
        waiting = await http.post(BACK, json=back)
        assert (waiting.status_code, waiting.headers["retry-after"]) == (503, "5")
        assert "without its verdict" in waiting.json()["detail"]
        gate.audit_fails = True
        assert (await http.post(BACK, json=back | {"without_verdict": True})).status_code == 503
        assert (await http.get("/api/v1/models")).json()[0]["champion"] == champion
        assert rig.entries("deployment")[1:] == []
        gate.audit_fails = False
        done = await http.post(BACK, json=back | {"without_verdict": True})
        assert done.status_code == 200
        assert "gave no verdict" in done.json()["said"]
        assert (await http.get("/api/v1/models")).json()[0]["champion"] is None
    [entry] = gate.entries
    assert (entry.event_type, entry.model_id) == ("rollback_without_verdict", "m")
    assert entry.context["requested_by"] == "ada"
    assert entry.context["rolled_back"] == champion
    assert "decision_id" not in rig.entries("deployment")[-1]["context"]


async def test_what_the_gate_refuses_is_not_rolled_back_even_without_a_verdict(
    rig: Rig, gate: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rig.database.write() as connection:
        champion = walk(connection, "m", "d", CycleState.PROMOTED).cycle_id

    async def refuse(action: str, facts: dict[str, Any]) -> GateDecision:
        # As the policies refuse what they do not know the grounds of.
        return await engine().decide(action, facts | {"rollback": facts["rollback"] | {"trigger": "a whim"}})

    monkeypatch.setattr(gate, "decide", refuse)
    async with rig.client(**bearer(rig, UserRole.OPERATOR, "d")) as http:
        refused = await http.post(BACK, json={"champion": champion, "comment": "x", "without_verdict": True})
        assert refused.status_code == 409
        assert "named requester" in refused.json()["detail"]
        assert (await http.get("/api/v1/models")).json()[0]["champion"] == champion


async def test_a_model_of_several_domains_is_rolled_back_by_who_has_all_of_them(rig: Rig, gate: Watch) -> None:
    with rig.database.write() as connection:
        walk(connection, "m", "a", CycleState.PROMOTED)
        second = walk(connection, "m", "b", CycleState.PROMOTED)
    back = {"champion": second.cycle_id, "comment": "why"}
    for domains, status in ((("b",), 404), (("a", "b"), 200)):
        async with rig.client(**bearer(rig, UserRole.OPERATOR, *domains)) as http:
            assert (await http.post(BACK, json=back)).status_code == status
    assert len(gate.asked) == 1


async def test_bounds_of_settings_are_said_in_words(rig: Rig) -> None:
    async with rig.client(**bearer(rig, UserRole.VIEWER)) as http:
        shown = (await http.get("/api/v1/routing")).json()
    bounds = {one["name"]: one["bounds"] for one in shown["settings"]}
    assert bounds["trigger.threshold"] == "0 to 1"
    assert bounds["policy_evaluation.sample_rate"] == "above 0 to 1"
    assert bounds["constitutional_violation.sample_rate"] == "1"
    assert bounds["dedup.window_s"] == "1 or more"
    assert bounds["dedup.on_outage"] == "wait or pass"


async def test_settings_and_stop_switch_leave_their_entries(rig: Rig) -> None:
    async with rig.client(**bearer(rig, UserRole.OPERATOR, person="ada")) as http:
        to = "/api/v1/routing/settings"
        assert (await http.post(f"{to}/trigger.threshold", json={"value": "0.7", "comment": "x"})).status_code == 200
        assert (await http.post(f"{to}/trigger.threshold", json={"value": "7"})).status_code == 422
        assert (await http.post(f"{to}/trigger.treshold", json={"value": "0.7"})).status_code == 422
        assert (await http.post(f"{to}/routine.threshold", json={"value": None})).status_code == 409
        assert (await http.post("/api/v1/stop-switch", json={"halt": False})).status_code == 409
        assert (await http.post("/api/v1/stop-switch", json={"halt": True, "comment": "fire"})).status_code == 200
        shown = (await http.get("/api/v1/routing")).json()
        assert "by ada: fire" in shown["halted"]
        setting = {one["name"]: one for one in shown["settings"]}["trigger.threshold"]
        assert (setting["effect"], setting["value"]) == ("waits for the audit engine", 0.8)
        rig.audited()
        setting = (await http.get("/api/v1/routing")).json()["settings"][0]
        assert (setting["name"], setting["effect"], setting["value"]) == ("trigger.threshold", "in the audit log", 0.7)
    [changed] = rig.entries("routing_setting")
    assert (changed["context"]["changed_by"], changed["context"]["value"]) == ("ada", 0.7)
    [stopped] = rig.entries("stop_switch")
    assert stopped["context"]["changed_by"] == "ada"


# --- the audit log ---------------------------------------------------------------------------------------------------


@pytest.fixture
def audited(tmp_path: Path) -> Iterator[Rig]:
    """A rig whose audit engine is a real one, with some entries of two domains."""
    url = f"sqlite:///{tmp_path / 'audit.db'}"
    config = AuditConfig(url, b"a key of the tests, 32 bytes long", token="t" * 40, read_token="t" * 40)
    with serving(create_audit_app(config)) as engine:
        rig = Rig(tmp_path, more={"FLYWHEEL_AUDIT_ENGINE__URL": engine, "FLYWHEEL_AUDIT_ENGINE__TOKEN": "t" * 40})
        with httpx.Client(base_url=engine, headers={"authorization": "Bearer " + "t" * 40}, trust_env=False) as http:
            for number in range(120):
                domain = "medical" if number % 2 else "legal"
                entry = AuditEntry(
                    entry_id=f"entry-{number}", event_type="gate_decision" if number % 3 else "approval",
                    constitutional_hash="cdd01ef066bc6cf2", domain=domain, cycle_id=f"cycle-{domain}",
                    context={"facts": {"n": number}, "decision": {"action": "model_fine_tuning", "allow": False,
                             "lane": "slow", "engine": "regopy", "reasons": [{"code": "c", "message": "not enough"}]}},
                )  # fmt: skip
                http.post("/api/v1/log", json=entry.model_dump(exclude_none=True)).raise_for_status()
        yield rig


async def test_searching_the_log(audited: Rig) -> None:
    async with audited.client(**bearer(audited, UserRole.VIEWER)) as http:
        first = (await http.get("/api/v1/audit/entries", params={"limit": 50})).json()
        assert [entry["id"] for entry in first["entries"][:2]] == ["entry-119", "entry-118"]
        second = (await http.get("/api/v1/audit/entries", params={"limit": 100, "before": first["older"]})).json()
        assert [second["entries"][0]["id"], second["entries"][-1]["id"]] == ["entry-69", "entry-0"]
        assert second["older"] is None
        wanted = {"event_type": "approval", "domain": "legal"}
        found = (await http.get("/api/v1/audit/entries", params=wanted)).json()["entries"]
        assert {(entry["event_type"], entry["domain"]) for entry in found} == {("approval", "legal")}
    page = visible_text(await get(audited, "/audit?event_type=approval", bearer(audited, UserRole.VIEWER, person="v")))
    assert "entry-117" in page
    assert "entry-118" not in page


async def test_who_is_limited_searches_in_their_domains(audited: Rig) -> None:
    async with audited.client(**bearer(audited, UserRole.VIEWER, "medical")) as http:
        found = (await http.get("/api/v1/audit/entries", params={"limit": 1000})).json()["entries"]
        assert len(found) == 60
        assert {entry["domain"] for entry in found} == {"medical"}
        assert (await http.get("/api/v1/audit/entries", params={"domain": "legal"})).status_code == 403
        assert "legal" not in (await http.get("/audit")).text


async def test_verifying_the_log(audited: Rig) -> None:
    import asyncio

    async with audited.client(**bearer(audited, UserRole.OPERATOR, person="ada")) as http:
        assert (await http.post("/api/v1/audit/verify")).status_code == 202
        for _ in range(200):
            found = (await http.get("/api/v1/audit/verify")).json()
            if not found["running"]:
                break
            await asyncio.sleep(0.05)
        assert (found["report"]["ok"], found["report"]["entries"], found["by"]) == (True, 120, "ada")
        assert "120 entries fit together" in visible_text((await http.get("/audit")).text)


async def test_a_section_of_acts_is_there_for_who_may_act(rig: Rig) -> None:
    training, waiting = rig.cycle("m", "d", CycleState.TRAINING), rig.cycle("n", "d")
    reviewer, operator = (bearer(rig, role, "d") for role in (UserRole.REVIEWER, UserRole.OPERATOR))
    for cycle, headers, there in ((training, reviewer, 0), (training, operator, 1), (waiting, reviewer, 1)):
        page = await get(rig, f"/cycles/{cycle.cycle_id}", headers)
        assert page.count('id="decide"') == there, (cycle.state, headers)


@pytest.mark.parametrize(
    ("code", "said"), [("approval_granted", "waits for a person"), ("data_pii_scrubbed", "refused")]
)
async def test_a_cycle_shows_the_gates_decisions_with_their_facts(audited: Rig, code: str, said: str) -> None:
    cycle = audited.cycle("m", "medical")
    reasons = [{"code": "approval_independent", "message": "Another one."}, {"code": code, "message": "So it must be."}]
    decision = {"action": "model_fine_tuning", "allow": False, "lane": "slow", "engine": "opa", "reasons": reasons}
    async with httpx.AsyncClient(trust_env=False, headers={"authorization": "Bearer " + "t" * 40}) as http:
        entry = AuditEntry(
            entry_id=f"decision-{code}", event_type="gate_decision", constitutional_hash="h", cycle_id=cycle.cycle_id,
            context={"facts": {"training": {"epsilon": 3.9}}, "decision": decision},
        )  # fmt: skip
        url = audited.settings.audit_engine.url
        (await http.post(f"{url}/api/v1/log", json=entry.model_dump(exclude_none=True))).raise_for_status()
    text = visible_text(await get(audited, f"/cycles/{cycle.cycle_id}", bearer(audited, UserRole.VIEWER)))
    assert f"model fine tuning: {said}" in text
    assert "So it must be." in text
    assert "epsilon 3.9" in text


async def test_an_audit_engine_that_is_away_is_said(rig: Rig) -> None:
    cycle = rig.cycle("m", "d")
    me = bearer(rig, UserRole.VIEWER)
    assert "did not answer" in await get(rig, "/audit", me)
    assert "cannot be read now" in await get(rig, f"/cycles/{cycle.cycle_id}", me)
    await get(rig, "/api/v1/audit/entries", me, 503)


# --- the document ----------------------------------------------------------------------------------------------------


async def test_every_api_route_is_documented_with_its_credential(rig: Rig) -> None:
    async with rig.client(**bearer(rig, UserRole.VIEWER)) as http:
        document = (await http.get("/openapi.json")).json()
    operations = {
        (path, method): operation
        for path, methods in document["paths"].items()
        if path.startswith("/api/")
        for method, operation in methods.items()
    }
    assert len(operations) >= 18
    for place, operation in operations.items():
        assert operation["security"], place
        assert operation["description"], place
        [answer] = [content for status, content in operation["responses"].items() if status.startswith("2")]
        assert answer["content"]["application/json"]["schema"], place


def test_notices_wait_apart(rig: Rig) -> None:
    rig.cycle("m", "d")
    with rig.database.read() as connection:
        assert {item.channel for item in outbox.pending(connection, 1000)} == {"audit", "kafka"}
    assert figures()["adherence"]["candidate"] == 0.97
