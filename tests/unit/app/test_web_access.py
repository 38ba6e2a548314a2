"""Signing in, sessions, forms, proxies, rate limits: how the web knows who asks, and what it does not believe."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
from web_rig import SERVICE_TOKEN, Rig, form_key_in

from app.roles import Role
from app.settings import SettingsError, load_settings
from app.store import access
from app.store.access import ChangeRefused, UserRole
from app.web.guard import FORM_KEY
from app.web.identity import GRANTS_AGE_S
from app.web.limits import RateLimit
from app.web.sessions import SESSION_COOKIE, Signer

HTML = {"accept": "text/html"}


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


async def signed_in(rig: Rig, http: httpx.AsyncClient, token: str) -> None:
    page = await http.get("/sign-in", headers=HTML)
    data = {"token": token, FORM_KEY: form_key_in(page.text), "next": "/models"}
    answer = await http.post("/sign-in", data=data)
    assert (answer.status_code, answer.headers["location"]) == (303, "/models")
    cookie = answer.headers["set-cookie"]
    assert all(part in cookie for part in ("HttpOnly", "SameSite=strict", "Path=/", "Max-Age=43200"))
    assert token not in cookie


async def test_a_browser_signs_in_acts_and_signs_out(rig: Rig) -> None:
    cycle = rig.cycle("m", "d")
    token = rig.token("bob", UserRole.REVIEWER)
    async with rig.client(**HTML) as http:
        first = await http.get("/models")
        assert (first.status_code, first.headers["location"]) == (303, "/sign-in?next=/models")
        await signed_in(rig, http, token)
        page = (await http.get(f"/cycles/{cycle.cycle_id}")).text
        assert "bob" in page
        data = {FORM_KEY: form_key_in(page), "word": "approve", "comment": "looks right"}
        done = await http.post(f"/cycles/{cycle.cycle_id}/decide", data=data)
        assert (done.status_code, done.headers["location"]) == (303, f"/cycles/{cycle.cycle_id}")
        after = (await http.get(f"/cycles/{cycle.cycle_id}")).text
        assert "bob approved its plan" in after
        assert "bob approved its plan" not in (await http.get(f"/cycles/{cycle.cycle_id}")).text  # said once
        assert (await http.post("/sign-out")).status_code == 303
        assert (await http.get("/models")).status_code == 303
    [entry] = rig.entries("approval")
    assert entry["context"]["reviewer"] == "bob"


async def test_a_form_from_elsewhere_changes_nothing(rig: Rig) -> None:
    cycle = rig.cycle("m", "d")
    to = f"/cycles/{cycle.cycle_id}/decide"
    other = rig.token("eve", UserRole.REVIEWER)
    async with rig.client() as http, rig.client() as elsewhere:
        await signed_in(rig, http, rig.token("bob", UserRole.REVIEWER))
        await signed_in(rig, elsewhere, other)
        page = await http.get(f"/cycles/{cycle.cycle_id}")
        right = {FORM_KEY: form_key_in(page.text), "word": "approve"}
        hers = {FORM_KEY: form_key_in((await elsewhere.get(f"/cycles/{cycle.cycle_id}")).text), "word": "approve"}
        for data, headers in (
            ({"word": "approve"}, {}),
            (right | {FORM_KEY: "0" * 64}, {}),
            (hers, {}),  # whoever may use the server has form keys of their own, and they are worth nothing here
            (right, {"origin": "https://evil.example"}),
            (right, {"origin": "null"}),
            (right, {"sec-fetch-site": "cross-site"}),
            (right, {"sec-fetch-site": "same-site"}),
        ):
            assert (await http.post(to, data=data, headers=headers)).status_code == 403
        # A session is nothing to the API: a browser would add it to forged requests, too.
        api = f"/api/v1/cycles/{cycle.cycle_id}/decision"
        assert (await http.post(api, json={"approve": True})).status_code == 403
        assert not rig.entries("approval")
        assert (await http.post(to, data=right, headers={"origin": "http://127.0.0.1"})).status_code == 303
    assert len(rig.entries("approval")) == 1


async def test_signing_in_is_no_form_for_others_either(rig: Rig) -> None:
    token = rig.token("bob", UserRole.REVIEWER)
    async with rig.client() as http:
        key = form_key_in((await http.get("/sign-in")).text)
        assert (await http.post("/sign-in", data={"token": token})).status_code == 403
        answer = await http.post("/sign-in", data={"token": token, FORM_KEY: key}, headers={"origin": "http://evil"})
        assert answer.status_code == 403
        assert SESSION_COOKIE not in http.cookies


@pytest.mark.parametrize(
    "to", ["https://evil.example", "//evil.example", "/\\evil.example", "javascript:alert(1)", "\\\\evil", "/\n/x", ""]
)
async def test_nobody_is_led_elsewhere(rig: Rig, to: str) -> None:
    async with rig.client() as http:
        key = form_key_in((await http.get("/sign-in", params={"next": to})).text)
        data = {"token": rig.token("bob", UserRole.VIEWER), FORM_KEY: key, "next": to}
        assert (await http.post("/sign-in", data=data)).headers["location"] == "/"


async def test_a_slash_too_many_is_led_nowhere(rig: Rig) -> None:
    async with rig.client(**HTML) as http:
        answer = await http.get("/api/v1/cycles/", headers={"host": "elsewhere.example", "authorization": "Bearer x"})
    assert "location" not in answer.headers
    assert answer.status_code in {401, 404}


async def test_a_token_that_is_taken_back_ends_its_sessions(rig: Rig) -> None:
    token = rig.token("bob", UserRole.VIEWER)
    async with rig.client() as http:
        await signed_in(rig, http, token)
        assert (await http.get("/models")).status_code == 200
        with rig.database.write() as connection:
            access.take_back(connection, access.token_name(token) or "", changed_by="ada")
        await asyncio.sleep(GRANTS_AGE_S + 0.1)
        assert (await http.get("/models")).status_code == 401


async def test_sessions_are_not_made_up(rig: Rig) -> None:
    token = rig.token("bob", UserRole.OPERATOR)
    name = access.token_name(token) or ""
    right = rig.signer.new_session(name)
    body, _, mac = right.partition(".")
    for cookie in (
        "", "x", ".", f"{body}.", f"{body}.{mac[1:]}{mac[0]}", f"{body}x.{mac}",
        Signer("another key", 1.0).new_session(name), rig.signer.said(f"99999999999.{name}"),
        Signer("k", -1.0).new_session(name),
    ):  # fmt: skip
        async with rig.client() as http:
            http.cookies.set(SESSION_COOKIE, cookie)
            assert (await http.get("/models")).status_code == 401, cookie
    async with rig.client() as http:
        http.cookies.set(SESSION_COOKIE, right)
        assert (await http.get("/models")).status_code == 200


def test_sessions_end() -> None:
    signer = Signer("key", 1.0)
    assert signer.session(signer.new_session("token:x")) == "token:x"
    assert Signer("key", -0.001).session(Signer("key", -0.001).new_session("token:x")) is None


async def test_a_service_decides_on_nothing(rig: Rig) -> None:
    cycle = rig.cycle("m", "d")
    async with rig.client(authorization=f"Bearer {SERVICE_TOKEN}") as http:
        answer = await http.post(f"/api/v1/cycles/{cycle.cycle_id}/decision", json={"approve": True, "by": "bob"})
        assert answer.status_code == 403
    async with rig.client() as http:
        key = form_key_in((await http.get("/sign-in")).text)
        answer = await http.post("/sign-in", data={"token": SERVICE_TOKEN, FORM_KEY: key})
        assert answer.status_code == 403


async def test_nobody_acts_in_anothers_name(rig: Rig) -> None:
    cycle = rig.cycle("m", "d", requested_by="bob")
    to = f"/api/v1/cycles/{cycle.cycle_id}/decision"
    async with rig.client(authorization=f"Bearer {rig.token('Bob', UserRole.OPERATOR)}") as http:
        assert (await http.post(to, json={"approve": True, "by": "ada"})).status_code == 403
        refused = await http.post(to, json={"approve": True})
        assert refused.status_code == 409
        assert "requested cycle" in refused.text
    assert not rig.entries("approval")


async def test_a_trusted_proxy_names_people_and_nobody_else_does(tmp_path: Path) -> None:
    more = {"FLYWHEEL_WEB__PROXY_HEADER": "X-Forwarded-User"}
    trusted = Rig(tmp_path, more=more | {"FLYWHEEL_WEB__PROXY_ADDRESSES": '["127.0.0.0/8"]'})
    elsewhere = Rig(tmp_path, more=more | {"FLYWHEEL_WEB__PROXY_ADDRESSES": '["10.1.2.3"]'})
    with trusted.database.write() as connection:
        access.permit(connection, "ada@corp", role=UserRole.REVIEWER, domains=["d"], changed_by="tests")
    trusted.audited()
    async with trusted.client() as http:
        assert (await http.get("/review", headers={"x-forwarded-user": "ada@corp"})).status_code == 200
        assert (await http.get("/review", headers={"x-forwarded-user": "eve@corp"})).status_code == 401
        twice = [("x-forwarded-user", "ada@corp"), ("x-forwarded-user", "eve@corp")]
        assert (await http.get("/review", headers=twice)).status_code == 401
        assert (await http.get("/review")).status_code == 401
        # The browser behind the proxy can be made to ask, so forms prove themselves here too.
        cycle = trusted.cycle("m", "d")
        headers = {"x-forwarded-user": "ada@corp"}
        to = f"/cycles/{cycle.cycle_id}"
        assert (await http.post(f"{to}/decide", data={"word": "approve"}, headers=headers)).status_code == 403
        assert (await http.post(f"/api/v1{to}/decision", json={"approve": True}, headers=headers)).status_code == 403
        key = form_key_in((await http.get(to, headers=headers)).text)
        assert (await http.post(f"{to}/decide", data={FORM_KEY: key, "word": "approve"}, headers=headers)).is_redirect
    async with elsewhere.client() as http:
        assert (await http.get("/review", headers={"x-forwarded-user": "ada@corp"})).status_code == 401


async def test_guessing_is_slowed_down(tmp_path: Path) -> None:
    rig = Rig(tmp_path, more={"FLYWHEEL_WEB__FAILURES_PER_MINUTE": "3"})
    token = rig.token("bob", UserRole.VIEWER)
    async with rig.client() as http:
        for _ in range(3):
            assert (await http.get("/models", headers={"authorization": "Bearer guess"})).status_code == 401
        held = await http.get("/models", headers={"authorization": f"Bearer {token}"})
        assert held.status_code == 429
        assert int(held.headers["retry-after"]) > 0
        assert (await http.get("/health/live")).status_code == 200


async def test_one_caller_cannot_keep_the_others_out(tmp_path: Path) -> None:
    rig = Rig(tmp_path, more={"FLYWHEEL_WEB__READS_PER_MINUTE": "5", "FLYWHEEL_WEB__WRITES_PER_MINUTE": "2"})
    bob = {"authorization": f"Bearer {rig.token('bob', UserRole.OPERATOR)}"}
    ada = {"authorization": f"Bearer {rig.token('ada', UserRole.OPERATOR)}"}
    async with rig.client() as http:
        assert [(await http.get("/models", headers=bob)).status_code for _ in range(6)] == [200] * 5 + [429]
        assert (await http.get("/models", headers=ada)).status_code == 200
        turn = [await http.post("/api/v1/stop-switch", json={"halt": True}, headers=bob) for _ in range(3)]
        assert [answer.status_code for answer in turn] == [200, 200, 429]


async def test_reviews_of_a_whole_application_are_not_slowed_to_a_persons_pace(tmp_path: Path) -> None:
    rig = Rig(tmp_path, more={"FLYWHEEL_WEB__FEEDBACK_PER_MINUTE": "5", "FLYWHEEL_WEB__WRITES_PER_MINUTE": "2"})
    bob = {"authorization": f"Bearer {rig.token('bob', UserRole.REVIEWER)}"}
    review = {"target_event_id": "e1", "verdict": "no such verdict"}
    async with rig.client() as http:
        turn = [(await http.post("/api/v1/feedback", json=review, headers=bob)).status_code for _ in range(6)]
    assert turn == [422] * 5 + [429]


def test_a_bucket_fills_again() -> None:
    now = 0.0
    limit = RateLimit(60, clock=lambda: now)
    assert [limit.take("a") for _ in range(60)] == [None] * 60
    assert limit.take("a") == pytest.approx(1.0)
    now = 2.0
    assert [limit.take("a"), limit.take("a")] == [None, None]
    assert limit.is_spent("a")
    assert not limit.is_spent("b")


async def test_an_open_web_answers_to_this_machine_alone(tmp_path: Path) -> None:
    """A page whose name points here by its owner's doing (DNS rebinding) gets nothing."""
    rig = Rig(tmp_path, closed=False)
    cycle = rig.cycle("m", "d")
    async with rig.client() as http:
        for host, status in (("127.0.0.1:6066", 200), ("localhost", 200), ("[::1]:80", 200), ("evil.example", 403)):
            assert (await http.get("/api/v1/overview", headers={"host": host})).status_code == status
        to = f"/api/v1/cycles/{cycle.cycle_id}/decision"
        body = b'{"approve": true, "by": "eve"}'
        # What a page elsewhere may send without asking: no type, or one of the three simple ones.
        for headers in ({"content-type": "text/plain"}, {}):
            assert (await http.post(to, content=body, headers=headers)).status_code == 415
        cross = {"content-type": "application/json", "origin": "http://evil.example"}
        assert (await http.post(to, content=body, headers=cross)).status_code == 403
        assert not rig.entries("approval")
        assert (await http.post(to, json={"approve": True, "by": " "})).status_code == 422
        assert (await http.post(to, json={"approve": True, "by": "eve"})).status_code == 200


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"WEB__HOST": "::"}, ("web.host=::", "web.access=tokens", "web.token")),
        ({"WEB__PROXY_HEADER": "X-User"}, ("web.proxy_header=X-User", "web.proxy_addresses")),
        ({"WEB__PROXY_ADDRESSES": '["10.0.0.300"]'}, ("10.0.0.300", "10.0.0.0/24")),
        ({"WEB__PUBLIC_URL": "flywheel.example"}, ("web.public_url", "http(s)://host")),
        ({"WEBHOOK__URL": "https://hooks.example/x"}, ("webhook.url", "webhook.secret")),
        ({"WEBHOOK__URL": "https://hooks.example/x", "WEBHOOK__SECRET": "short"}, ("webhook.secret", "24 characters")),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, str], said: tuple[str, ...]) -> None:
    with pytest.raises(SettingsError) as refusal:
        load_settings({f"FLYWHEEL_{name}": value for name, value in given.items()})
    assert all(part in str(refusal.value) for part in said)


def test_other_addresses_are_served_to_those_with_a_credential() -> None:
    for given in ({"WEB__ACCESS": "tokens"}, {"WEB__TOKEN": "x" * 20}):
        env = {"FLYWHEEL_WEB__HOST": "::"} | {f"FLYWHEEL_{name}": value for name, value in given.items()}
        assert not load_settings(env).web.is_open


def test_a_token_is_kept_hashed_and_counts_once_audited(rig: Rig) -> None:
    token = rig.token("bob", UserRole.REVIEWER, "d", known=False)
    name = access.token_name(token) or ""
    with rig.database.read() as connection:
        kept = connection.exec_driver_sql("SELECT group_concat(value) FROM access_grants").scalar_one()
        told = connection.exec_driver_sql("SELECT group_concat(payload) FROM outbox").scalar_one()
        assert name not in access.in_force(connection)
    secret = token[21:]
    assert secret not in kept
    assert secret not in told
    rig.audited()
    with rig.database.read() as connection:
        grant = access.in_force(connection)[name]
    assert (grant.person, grant.role, grant.domains) == ("bob", UserRole.REVIEWER, frozenset({"d"}))
    with rig.database.write() as connection:
        access.take_back(connection, name, changed_by="ada")
        assert name not in access.in_force(connection)  # at once, whatever the audit engine does
    [given, taken] = rig.entries("access_grant")
    assert (given["context"]["changed_by"], taken["context"]["value"]) == ("tests", None)


def test_what_cannot_be_granted(rig: Rig) -> None:
    with rig.database.write() as connection:
        good = {"person": "bob", "role": UserRole.VIEWER, "domains": ["d"], "days": 1.0, "changed_by": "ada"}
        for wrong in ({"person": " "}, {"person": "a\nb"}, {"days": 0.0}, {"days": 1000.0}, {"days": float("nan")},
                      {"domains": []}, {"domains": [" "]}, {"changed_by": ""}):  # fmt: skip
            with pytest.raises(ChangeRefused):
                access.issue(connection, **good | wrong)
        with pytest.raises(ChangeRefused, match="nothing to take back"):
            access.take_back(connection, "token:none", changed_by="ada")


@pytest.mark.parametrize("role", list(Role))
async def test_security_headers_are_on_every_answer(tmp_path: Path, role: Role) -> None:
    rig = Rig(tmp_path, role)
    async with rig.client() as http:
        for path in ("/", "/sign-in", "/static/live.js", "/nowhere", "/health/live"):
            headers = (await http.get(path)).headers
            policy = headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "unsafe-inline" not in policy
            assert "script-src 'self';" in policy
            assert headers["x-frame-options"] == "DENY"
            assert headers["cross-origin-opener-policy"] == "same-origin"


async def test_over_https_cookies_are_secure(tmp_path: Path) -> None:
    rig = Rig(tmp_path, more={"FLYWHEEL_WEB__PUBLIC_URL": "https://flywheel.example"})
    async with rig.client() as http:
        assert "Secure" in (await http.get("/sign-in")).headers["set-cookie"]


@pytest.mark.parametrize(
    "body", ['{"approve": [NaN]}', '{"approve": "\\ud800"}', '{"\\ud800": 1, "approve": true}', '{"approve": Infinity}']
)
async def test_a_refused_body_that_json_cannot_repeat_is_answered(rig: Rig, body: str) -> None:
    cycle = rig.cycle("m", "d")
    headers = {"authorization": f"Bearer {rig.token('bob', UserRole.REVIEWER)}", "content-type": "application/json"}
    async with rig.client(**headers) as http:
        answer = await http.post(f"/api/v1/cycles/{cycle.cycle_id}/decision", content=body)
    assert answer.status_code == 422
    assert all(set(fault) == {"loc", "msg", "type"} for fault in answer.json()["detail"])
    assert not rig.entries("approval")


async def test_a_browser_gets_a_page_for_a_query_that_is_refused(rig: Rig) -> None:
    token = rig.token("bob", UserRole.REVIEWER)
    async with rig.client(**HTML, authorization=f"Bearer {token}") as http:
        answer = await http.get("/audit", params={"before": "<b>x</b>"})
        assert (answer.status_code, answer.headers["content-type"]) == (422, "text/html; charset=utf-8")
        assert "before: Input should be a valid integer" in answer.text
        assert "<b>x" not in answer.text
        # What the audit engine would refuse is refused here: else it looks as if that were away.
        assert (await http.get("/api/v1/audit/entries", params={"domain": "a\nb"})).status_code == 422
