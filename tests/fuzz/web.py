"""The web API and the console: every route of the router's and the trainer's web, over HTTP."""

from __future__ import annotations

import html
import json
import logging
import random
import re
from collections import Counter
from urllib.parse import urlencode, urlsplit

from web_rig import HOSTILE, SERVICE_TOKEN

from app.web.guard import FORM_KEY
from app.web.sessions import SESSION_COOKIE, VISIT_COOKIE
from fuzz.frame import Case, Target, check
from fuzz.values import bytes_of
from fuzz.web_cases import BAD, JSON_BODIES, valid_case, web_case
from fuzz.web_parts import SESSION_KEY, Workers
from fuzz.wire import Answer, exchange, json_request, plain

PUBLIC = frozenset(("/health/live", "/health/ready", "/sign-in", "/sign-out"))
AWAY = re.compile(r"/dead-letters/|/health/ready|/promote")
"""What needs a broker, an adapter or the policy engine, which there are none of here."""
UNDECIDED = re.compile(r"/rollback")
"""What needs the policy engine unless it is asked for without a verdict."""
REFUSALS = frozenset((400, 401, 403, 404, 405, 409, 411, 413, 415, 422))
RAW_HTML = ("<script>fuzz", "<b id='fuzz'", "onerror=fuzz()>", HOSTILE[:20], "<img src=x")
VISIT = "visit-of-the-fuzzer"


class WebTarget(Target):
    """Nobody gets in without a credential, nothing is changed by what is refused, nothing that is shown runs."""

    name = "web"
    short_cases = 2000
    hang_s = 20.0
    memory_mb = 400

    def start(self) -> None:
        """Serve both workers."""
        for name in ("uvicorn", "aiokafka"):
            logging.getLogger(name).setLevel(logging.CRITICAL if name == "aiokafka" else logging.WARNING)
        self.web = Workers(self.folder, self.stack)
        # JSON before forms: the stop switch is turned on by one and off by the other.
        ordered = sorted(self.web.routes, key=lambda one: (one[2] not in JSON_BODIES, one))
        self._first = [valid_case(*route, caller) for caller in ("operator", "nobody") for route in ordered]
        self._first += [valid_case("train", "POST", "/sign-in", "nobody") | {"form_key": "forged"}]
        self.secrets = (
            SERVICE_TOKEN, SESSION_KEY, "planted-token-of-audit",
            *(token for name, token in self.web.tokens.items() if name not in {"basic", "secret"}),
        )  # fmt: skip

    def first(self) -> list[Case]:
        """Every route as it is meant to be asked: by somebody who may, and by nobody."""
        return self._first

    def case(self, draw: random.Random) -> Case:
        """A request to any route, by anybody."""
        return web_case(draw, self.web.routes)

    def run(self, case: Case) -> str:
        """Send it."""
        web = self.web
        sent = self._filled(case)
        route = case["route"].partition(" ")[2]
        before, reviews, records = web.commits(), len(web.reviews.events), len(web.records.values)
        until = b"data: " if route == "/events" else None
        answer = exchange(web.ports[case["worker"]], sent, until=until)
        changed = web.commits() != before
        published = len(web.reviews.events) - reviews + len(web.records.values) - records
        as_routed = sent["method"] == case["route"].partition(" ")[0] and _is_path(case["target"])
        check(answer.status != 500, f"{case['route']}: status 500")
        self._says_nothing(answer, sent)
        if answer.status == 0:
            check(not plain(sent), "a whole request got no answer")
            return "connection closed"
        if answer.status >= 400:
            unserved = AWAY.search(sent["target"]) or UNDECIDED.search(sent["target"])
            away = answer.status == 503 and unserved is not None
            told = f"{case['route']}: status {answer.status}: {answer.text[:400]}"
            check(answer.status in REFUSALS or away, told)
            check(not changed and published == 0, f"refused with {answer.status}, and changed all the same")
            self._refusal(sent, answer)
        else:
            self._may(case, sent, answer, changed or published > 0)
            if published and route == "/api/v1/feedback":
                self._published(sent)
        return f"{case['route'] if plain(sent) and as_routed else 'odd'} {answer.status // 100}xx"

    def _filled(self, case: Case) -> Case:
        """The case with the names of things, credentials and proofs that are known only now."""
        web, names, tokens = self.web, self.web.names, self.web.tokens
        caller = case["caller"]
        sent = {**case, "headers": [list(pair) for pair in case["headers"]]}
        sent["target"] = names.fill(case["target"], tokens).replace(" ", "%20").replace("<", "%3C").replace("'", "%27")
        sent["body"] = [[names.fill(text, tokens), times] for text, times in case["body"]]
        cookies = dict(case.get("cookies", {}))
        if caller != "nobody":
            if case["means"] == "session":
                cookies.setdefault(SESSION_COOKIE, web.session(caller))
            else:
                scheme = "" if caller == "basic" else "Bearer "
                sent["headers"].append(["Authorization", f"{scheme}{tokens[caller]}"])
        if "form" in case:
            fields = {name: names.fill(value, tokens) for name, value in case["form"].items()}
            cookies.setdefault(VISIT_COOKIE, VISIT)
            proof = self._proof(case)
            if proof is not None:
                fields[FORM_KEY] = proof
            sent["headers"].append(["Content-Type", "application/x-www-form-urlencoded"])
            if case.get("origin") is not None:
                sent["headers"].append(["Origin", case["origin"]])
            text = urlencode({name.encode("utf-8", "replace"): value.encode("utf-8", "replace")
                              for name, value in fields.items()})  # fmt: skip
            sent["body"] = [[text, 1]]
        if cookies:
            sent["headers"].append(["Cookie", "; ".join(f"{name}={value}" for name, value in cookies.items())])
        return sent

    def _proof(self, case: Case) -> str | None:
        signer = self.web.rig.signer
        caller = self.web.keys.get(case["caller"]) or "service"
        if case["target"].startswith("/sign-in"):
            caller = ""
        kind = case["form_key"]
        if kind == "none":
            return None
        if kind == "forged":
            return "0" * 64
        return signer.form_key(VISIT, "token:0000000000000000" if kind == "others" else caller)

    def _says_nothing(self, answer: Answer, sent: Case) -> None:
        """No secret, and no markup of anybody's that a browser would take for ours."""
        shown = "\n".join(f"{name}: {value}" for name, value in answer.headers.items() if name != "set-cookie")
        text = shown + "\n" + answer.body.decode("utf-8", "replace")
        self.unsaid(text, "the answer")
        if "text/html" in answer.headers.get("content-type", "") and not sent["target"].endswith("/report"):
            for markup in RAW_HTML:
                check(markup not in text, f"markup of an outsider is on the page: {markup}")
        check("x-injected" not in answer.headers, "a header was injected")
        if answer.status and answer.body != b"Invalid HTTP request received.":
            check(answer.headers.get("x-content-type-options") == "nosniff", "an answer without the headers")

    def _refusal(self, sent: Case, answer: Answer) -> None:
        if sent["method"] == "HEAD" or answer.body.startswith(b"Invalid HTTP request"):
            return
        kind = answer.headers.get("content-type", "")
        if kind.startswith("text/html"):
            check(b"<main" in answer.body or b"<h1" in answer.body, "a page that says nothing")
        elif kind.startswith("application/json") and not sent["target"].startswith("/v1/logs"):
            detail = json.loads(answer.body)["detail"]
            check(len(detail) > 0, "a refusal says nothing")
            check(len(str(detail)) < 20_000, f"a refusal says too much: {len(str(detail))} characters")

    def _may(self, case: Case, sent: Case, answer: Answer, changed: bool) -> None:
        """Whoever has no credential gets a page to sign in, and a form that proves nothing changes nothing."""
        path = urlsplit(sent["target"]).path
        own = any(name.lower() == "authorization" for name, _ in case["headers"])
        public = path in PUBLIC or path.startswith("/static")
        if case["caller"] in BAD and not public and not own and "cookies" not in case:
            led = answer.headers.get("location", "")
            check(
                answer.status == 303 and led.startswith("/sign-in"), f"{case['caller']} got {answer.status} of {path}"
            )
        if answer.status == 303:
            to = answer.headers.get("location", "")
            check(to.startswith("/") and not to.startswith(("//", "/\\")), f"led elsewhere: {to}")
        check(not changed or case["caller"] != "viewer" or own, "a viewer changed something")
        if not changed or case["means"] != "session" or own:
            return
        check("form" in case and case["form_key"] == "own", "changed by a session without the form's proof")
        check(case.get("origin") in (None, "http://127.0.0.1"), f"changed by a page of {case.get('origin')}")

    def _published(self, sent: Case) -> None:
        """What was taken is what was sent."""
        event = self.web.reviews.events[-1]
        asked = json.loads(bytes_of(sent["body"]))
        check(event["target_event_id"] == asked["target_event_id"].strip(), "a review of another answer")
        check(event["verdict"] == asked["verdict"], "another verdict")

    def settle(self) -> None:
        """The pages work, a review is taken, and there is something new to decide on."""
        web, token = self.web, self.web.tokens["operator"]
        for port in web.ports.values():
            for path in (
                "/",
                "/models",
                "/review",
                "/routing",
                "/audit",
                "/dead-letters",
                f"/cycles/{web.names.cycles[0]}",
            ):
                page = exchange(port, json_request("GET", path, token))
                check(page.status == 200, f"{path} is answered {page.status} {page.text[:300]}")
        before = len(web.reviews.events)
        said = {"target_event_id": web.names.events[0], "verdict": "approve"}
        taken = exchange(web.ports["train"], json_request("POST", "/api/v1/feedback", token, json.dumps(said)))
        check(taken.status == 202 and len(web.reviews.events) == before + 1, f"a review: {taken.text[:300]}")
        page = exchange(web.ports["train"], json_request("GET", "/review", token)).body.decode()
        check(html.escape(HOSTILE[:20], quote=False)[:12] in page or "nothing" in page.lower(), "the queue is gone")
        web.more_things()

    def unreached(self, outcomes: Counter[str]) -> set[str]:
        """Every route got through to (what needs a broker excepted), and every route refused something."""
        routes = {f"{method} {path}" for _, method, path in self.web.routes}
        served = {route for route in routes if any(outcomes[f"{route} {kind}xx"] for kind in (2, 3))}
        refused = {route for route in routes if outcomes[f"{route} 4xx"]}
        needs_more = {route for route in routes if AWAY.search(route.partition(" ")[2])}
        asked = {route for route in needs_more if outcomes[f"{route} 4xx"] + outcomes[f"{route} 5xx"]}
        never = {f"{route}: never served" for route in routes - served - needs_more}
        never |= {f"{route}: never asked" for route in needs_more - asked - served}
        open_routes = {f"GET {path}" for path in PUBLIC} | {"POST /sign-out"}
        return never | {f"{route}: never refused" for route in routes - refused - needs_more - open_routes}


def _is_path(target: str) -> bool:
    return target.startswith("/")
