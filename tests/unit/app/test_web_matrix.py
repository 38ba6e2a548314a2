"""Who may ask what: every route of every worker, by every role, in every domain, and with no, expired or forged tokens.

The routes are those of the applications themselves: one that `EXPECTED` does not name fails the test.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from web_rig import SERVICE_TOKEN, Rig, routes

from app.roles import Role
from app.store import access
from app.store.access import UserRole
from app.web.identity import Right
from models.cycle import CycleState

OWN, OTHER = "medical", "legal"
CONTENT = {"event_id": "e-{domain}", "verdict": "approve"}


@dataclass(frozen=True)
class Expected:
    """What a route asks for. `right` None: nobody is asked. `everywhere`: all domains must be the caller's.

    `of_domain`: the route is about one domain's thing, which the path or body names by `{domain}`.
    """

    right: Right | None
    everywhere: bool = False
    of_domain: bool = False
    json: dict[str, Any] | None = None
    form: dict[str, str] | None = None
    path: str | None = None


PUBLIC = Expected(None)
VIEW, REVIEW, OPERATE = Right.VIEW, Right.REVIEW, Right.OPERATE
CYCLE, BACK = "/cycles/{domain}", {"champion": "none", "comment": "why"}
HANDLE = {"verb": "dropped", "comment": "why"}
EXPECTED: dict[tuple[str, str], Expected] = {
    ("GET", "/health/live"): PUBLIC,
    ("GET", "/health/ready"): PUBLIC,
    ("GET", "/sign-in"): PUBLIC,
    ("POST", "/sign-in"): PUBLIC,
    ("POST", "/sign-out"): PUBLIC,
    ("GET", "/openapi.json"): Expected(VIEW),
    ("GET", "/stats"): Expected(VIEW, everywhere=True),
    ("GET", "/metrics"): Expected(VIEW, everywhere=True),
    ("GET", "/"): Expected(VIEW),
    ("GET", "/events"): Expected(VIEW),
    ("GET", "/api/v1/overview"): Expected(VIEW),
    ("GET", "/api/v1/cycles"): Expected(VIEW),
    ("GET", "/cycles/{cycle_id}"): Expected(VIEW, of_domain=True),
    ("GET", "/cycles/{cycle_id}/report"): Expected(VIEW, of_domain=True),
    ("GET", "/api/v1/cycles/{cycle_id}"): Expected(VIEW, of_domain=True),
    ("POST", "/cycles/{cycle_id}/decide"): Expected(REVIEW, of_domain=True, form={"word": "approve"}),
    ("POST", "/cycles/{cycle_id}/cancel"): Expected(OPERATE, of_domain=True, form={}),
    ("POST", "/api/v1/cycles/{cycle_id}/decision"): Expected(REVIEW, of_domain=True, json={"approve": True}),
    ("POST", "/api/v1/cycles/{cycle_id}/cancel"): Expected(OPERATE, of_domain=True, json={}),
    ("GET", "/review"): Expected(REVIEW),
    ("GET", "/api/v1/review"): Expected(REVIEW),
    ("POST", "/review"): Expected(REVIEW, of_domain=True, form=CONTENT),
    ("POST", "/api/v1/feedback"): Expected(
        Right.FEEDBACK, of_domain=True, json={"target_event_id": "e-{domain}", "verdict": "approve"}
    ),
    ("GET", "/dead-letters"): Expected(VIEW, everywhere=True),
    ("GET", "/api/v1/dead-letters"): Expected(VIEW, everywhere=True),
    ("GET", "/dead-letters/{partition}/{offset}"): Expected(OPERATE, everywhere=True, path="/dead-letters/x/0"),
    ("GET", "/api/v1/dead-letters/{partition}/{offset}"): Expected(
        OPERATE, everywhere=True, path="/api/v1/dead-letters/x/0"
    ),
    ("POST", "/dead-letters"): Expected(OPERATE, everywhere=True, form={"verb": "dropped"}),
    ("POST", "/api/v1/dead-letters"): Expected(OPERATE, everywhere=True, json={"verb": "dropped"}),
    ("GET", "/models"): Expected(VIEW),
    ("GET", "/api/v1/models"): Expected(VIEW),
    ("POST", "/models/rollback"): Expected(OPERATE, of_domain=True, form=BACK | {"model_id": "model-{domain}"}),
    ("POST", "/api/v1/models/{model_id:path}/rollback"): Expected(
        OPERATE, of_domain=True, json=BACK, path="/api/v1/models/model-{domain}/rollback"
    ),
    ("POST", "/models/promote"): Expected(
        OPERATE, of_domain=True, form={"version_id": "{cycle_id}", "comment": "why", "by": ""}
    ),
    ("POST", "/api/v1/models/versions/{version_id}/promote"): Expected(
        OPERATE, of_domain=True, json={"comment": "why"}, path="/api/v1/models/versions/{cycle_id}/promote"
    ),
    ("GET", "/routing"): Expected(VIEW),
    ("GET", "/api/v1/routing"): Expected(VIEW),
    ("POST", "/routing/settings"): Expected(OPERATE, everywhere=True, form={"name": "none"}),
    ("POST", "/api/v1/routing/settings/{name}"): Expected(
        OPERATE, everywhere=True, json={"value": "0.9"}, path="/api/v1/routing/settings/none"
    ),
    ("POST", "/routing/stop-switch"): Expected(OPERATE, everywhere=True, form={"act": "resume"}),
    ("POST", "/api/v1/stop-switch"): Expected(OPERATE, everywhere=True, json={"halt": False}),
    ("GET", "/audit"): Expected(VIEW),
    ("GET", "/api/v1/audit/entries"): Expected(VIEW),
    ("POST", "/audit/verify"): Expected(VIEW, everywhere=True, form={}),
    ("POST", "/api/v1/audit/verify"): Expected(VIEW, everywhere=True, json={}),
    ("GET", "/api/v1/audit/verify"): Expected(VIEW, everywhere=True),
    # Of the router and of the trainer alone.
    ("POST", "/v1/logs"): Expected(Right.INGEST),
    ("GET", "/policies/bundle.tar.gz"): Expected(Right.DECIDE),
    ("POST", "/api/v1/decisions"): Expected(Right.DECIDE, json={"action": "model_inference", "facts": {}}),
}
RIGHTS = {
    "viewer": {VIEW},
    "reviewer": {VIEW, REVIEW, Right.FEEDBACK},
    "operator": set(Right),
    "service": {VIEW, Right.FEEDBACK, Right.INGEST, Right.DECIDE},
}
WORKERS = (Role.ROUTE, Role.CURATE, Role.TRAIN, Role.MONITOR)


@dataclass(frozen=True)
class Caller:
    """Who asks: a role with its domains, or a credential that is worth nothing."""

    name: str
    token: str | None
    role: str | None = None
    domains: tuple[str, ...] | None = None


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    """A store with a cycle, an example and a model in each domain, and no limits on how often one asks."""
    often = {f"FLYWHEEL_WEB__{name}_PER_MINUTE": "1000000" for name in ("READS", "WRITES", "FAILURES")}
    made = Rig(tmp_path_factory.mktemp("matrix"), Role.CURATE, more=often)
    for domain in (OWN, OTHER):
        made.cycle(f"model-{domain}", domain, CycleState.PROMOTED)
        made.example(f"e-{domain}", domain)
    return made


@pytest.fixture(scope="module")
def callers(rig: Rig) -> list[Caller]:
    """Everybody."""
    good = rig.token("ada", UserRole.OPERATOR)
    expired = rig.token("eve", UserRole.OPERATOR, days=1e-9)
    taken = rig.token("tom", UserRole.OPERATOR)
    with rig.database.write() as connection:
        access.take_back(connection, access.token_name(taken) or "", changed_by="tests")
    found = [
        Caller("nobody", None),
        Caller("expired", expired),
        Caller("forged secret", good[:-4] + ("aaaa" if good[-4:] != "aaaa" else "bbbb")),
        Caller("forged name", "fly_" + "0" * 16 + good[20:]),
        Caller("another's name", f"{good[:4]}{taken[4:20]}{good[20:]}"),
        Caller("no token", "hunter2"),
        Caller("taken back", taken),
        Caller("service", SERVICE_TOKEN, "service"),
    ]
    for role in UserRole:
        found += [
            Caller(f"{role} of all", rig.token(f"{role}-all", role), role.value),
            Caller(f"{role} of one", rig.token(f"{role}-one", role, OWN), role.value, (OWN,)),
            Caller(f"{role} of both", rig.token(f"{role}-both", role, OWN, OTHER), role.value, (OWN, OTHER)),
        ]
    # The last of them: the audit engine takes entries in their order.
    found.append(Caller("not in the audit log", rig.token("pam", UserRole.OPERATOR, known=False)))
    return found


def expected_status(caller: Caller, wanted: Expected, domain: str) -> int | None:
    """401, 403, 404, or None where the caller gets in."""
    if wanted.right is None:
        return None
    if caller.role is None:
        return 401
    if wanted.right not in RIGHTS[caller.role]:
        return 403
    if wanted.everywhere and caller.domains is not None:
        return 403
    if wanted.of_domain and caller.domains is not None and domain not in caller.domains:
        return 404
    return None


@pytest.mark.parametrize("role", WORKERS)
def test_no_route_is_forgotten(rig: Rig, tmp_path: Path, role: Role) -> None:
    served = set(routes(Rig(tmp_path, role).app))
    assert served - set(EXPECTED) == set(), "say in EXPECTED who may ask for these"
    if role is Role.CURATE:
        assert served == {route for route in EXPECTED if route[1] not in {"/v1/logs", *_OF_TRAINER}}


_OF_TRAINER = {"/policies/bundle.tar.gz", "/api/v1/decisions"}


def test_no_expectation_is_for_a_route_that_is_gone(tmp_path: Path) -> None:
    served = {route for role in WORKERS for route in routes(Rig(tmp_path, role).app)}
    assert set(EXPECTED) - served == set()


def rig_of(rig: Rig, role: Role) -> Rig:
    """The same store and keys behind another worker's web."""
    often = {f"FLYWHEEL_WEB__{name}_PER_MINUTE": "1000000" for name in ("READS", "WRITES", "FAILURES")}
    return Rig(rig.settings.data_dir, role, database_url=rig.settings.database.url, more=often)


async def test_everybody_gets_what_is_theirs_and_nothing_else(rig: Rig, callers: list[Caller]) -> None:
    workers = {Role.CURATE: rig, Role.ROUTE: rig_of(rig, Role.ROUTE), Role.TRAIN: rig_of(rig, Role.TRAIN)}
    with rig.database.read() as connection:
        from app.store import cycles

        ids = {cycle.domain: cycle.cycle_id for cycle in cycles.list_cycles(connection)}
    asked = 0
    for (method, path), wanted in EXPECTED.items():
        role = Role.ROUTE if path == "/v1/logs" else Role.TRAIN if path in _OF_TRAINER else Role.CURATE
        worker = workers[role]
        worker.app.state.ticker.closing = True  # a stream that is let in ends at once
        async with worker.client() as http:
            for caller in callers:
                for domain in (OWN, OTHER) if wanted.of_domain else (OWN,):
                    answer = await ask(worker, http, caller, method, path, wanted, domain, ids[domain])
                    status = expected_status(caller, wanted, domain)
                    who = f"{caller.name} asks {method} {path} in {domain}: {answer.status_code} {answer.text[:200]}"
                    if status is None:
                        assert answer.status_code != 401, who
                        assert answer.status_code != 403 or wanted.right is None or "names nobody" in answer.text, who
                        # Of what is looked for in vain here, none is refused for its domain.
                        assert answer.status_code != 404 or "report" in answer.text, who
                    else:
                        assert answer.status_code == status, who
                        assert answer.headers.get("www-authenticate") == ("Bearer" if status == 401 else None), who
                    assert answer.headers["x-content-type-options"] == "nosniff"
                    asked += 1
    assert asked > 900


async def ask(
    rig: Rig, http: httpx.AsyncClient, caller: Caller, method: str, path: str, wanted: Expected, domain: str, cycle: str
) -> httpx.Response:
    """One request, with a form's proof that it came from a page, so that only who asks decides."""
    to = (wanted.path or path).replace("{cycle_id}", cycle).replace("{domain}", domain)
    headers = {} if caller.token is None else {"Authorization": f"Bearer {caller.token}"}
    more: dict[str, Any] = {}
    if wanted.form is not None:
        filled = {
            name: value.replace("{domain}", domain).replace("{cycle_id}", cycle) for name, value in wanted.form.items()
        }
        more = rig.form("matrix", caller.token, **filled)
    elif wanted.json is not None:
        more = {"json": {name: _filled(value, domain) for name, value in wanted.json.items()}}
    http.cookies.clear()
    http.cookies.update(more.pop("cookies", {}))
    return await http.request(method, to, headers=headers, **more)


def _filled(value: Any, domain: str) -> Any:
    return value.replace("{domain}", domain) if isinstance(value, str) else value
