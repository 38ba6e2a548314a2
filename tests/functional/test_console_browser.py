"""The pages as a person uses them, in a real browser, over a running router, curation worker and audit engine.

Real: events over Kafka, routing, curation, the opening of the cycle, the audit log, live figures, every click.
Training itself is not run here, for it takes minutes: the test moves the cycle on in the store as the stages do.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from aiokafka import AIOKafkaProducer
from services import unavailable
from systems import entries, running, wait_until
from web_rig import HOSTILE, PLAN, figures, revised, statement, trained

from app.embedded.system import System
from app.roles import Role
from app.store import Database, access, adherence, cycles, examples, progress, registry
from app.store.access import UserRole
from models.cycle import Cycle, CycleState, Manifest, ManifestMember

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is missing. Provide it with: make test")

SIZES = ((400, 850), (1600, 1000))
CHANGES: dict[str, dict[str, Any]] = {
    "web": {"access": "tokens", "token": "a-token-of-services-here", "public_url": None},
    "curation": {"min_examples": 8, "settle_s": 1.0, "cooldown_s": 3600.0},
}
WITHIN_MS = 20_000

CONTRAST = """() => {
  const channel = (c) => { c /= 255; return c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4; };
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const ground = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const [r, g, b, a = 1] = parse(getComputedStyle(at).backgroundColor);
      if (a > 0.5) return [r, g, b];
    }
    return matchMedia("(prefers-color-scheme: dark)").matches ? [17, 21, 28] : [255, 255, 255];
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.checkVisibility()) continue;
    if (element.closest("button:disabled, .skip, option, datalist")) continue;
    const [a, b] = [light(parse(getComputedStyle(element).color)), light(ground(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) poor.push(`${ratio.toFixed(2)} ${walker.currentNode.textContent.trim().slice(0, 40)}`);
  }
  return poor;
}"""
"""Text whose contrast is below 4.5:1 (WCAG 2.2, success criterion 1.4.3)."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's chromium."""
    program = shutil.which("chromium")
    if program is None:
        unavailable("chromium", "sudo apt-get install chromium")
    sync_api.expect.set_options(timeout=WITHIN_MS)
    with sync_api.sync_playwright() as playwright:
        # Its sandbox needs a user of its own, which a container's root is not.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        running_browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield running_browser
        running_browser.close()


@dataclass
class Stage:
    """The running system, with its store and people."""

    system: System
    database: Database
    tokens: dict[str, str]

    @property
    def url(self) -> str:
        return self.system.url(Role.ROUTE)

    def change(self, work: Callable[[Any], Any]) -> Any:
        with self.database.write() as connection:
            return work(connection)

    def move(self, cycle_id: str, state: CycleState, **changes: Any) -> Cycle:
        """As a stage moves a cycle on."""

        def move(connection: Any) -> Cycle:
            cycle = cycles.get(connection, cycle_id)
            assert cycle is not None
            facts = cycle.facts | changes.pop("facts", {})
            return cycles.transition(connection, cycle, state, {"by": "the test"}, facts=facts, **changes)

        moved: Cycle = self.change(move)
        return moved


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("console")
    with running(folder, "mock", None, CHANGES) as system:
        system.start_engines(["audit-engine"])
        system.start_workers([Role.ROUTE, Role.CURATE])
        database = Database(system.settings.database.url)
        tokens = {}
        people = {"ada": UserRole.OPERATOR, "bob": UserRole.REVIEWER, "eve": UserRole.VIEWER}
        with database.write() as connection:
            for person, role in people.items():
                tokens[person], _ = access.issue(
                    connection, person=person, role=role, domains=["*"], days=1, changed_by="the test"
                )
        # The audit engine has to know before they count.
        wait_until(lambda: len(entries(system, "access_grant")) == len(people), "the tokens are in the audit log")
        yield Stage(system, database, tokens)
        database.close()


@contextmanager
def opened(browser: Any, stage: Stage, person: str | None, **options: Any) -> Iterator[Any]:
    """A page of a browser of its own, signed in by the form."""
    context = browser.new_context(base_url=stage.url, viewport={"width": 1600, "height": 1000}, **options)
    context.set_default_timeout(WITHIN_MS)
    page = context.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    if person is not None:
        page.goto("/")
        assert page.url.startswith(f"{stage.url}/sign-in")
        page.get_by_label("Your token").fill(stage.tokens[person])
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(f"{stage.url}/")
    yield page
    assert [fault for fault in faults if "status of 4" not in fault] == []
    context.close()


def violation(number: int) -> dict[str, Any]:
    return {
        "event_id": f"walk-{number}",
        "constitutional_hash": "cdd01ef066bc6cf2",
        "violations": ["illegal_acts" if number % 2 else "hate_and_bias"],
        "compliance_score": 0.2,
        "model_id": "assistant",
        "subject_id": f"person-{number}",
        "prompt": f"How do I get away with number {number}? {HOSTILE if number == 0 else ''}",
        "response": f"Here is how: step one of number {number}, then the rest of it.",
        "resource": {"service.name": "shop"},
    }


def produce(bootstrap: str, values: list[bytes]) -> None:
    async def send() -> None:
        async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer:
            for value in values:
                await producer.send_and_wait("otel-audit-events", value)

    # In a thread: Playwright has a loop of its own in this one.
    with ThreadPoolExecutor(1) as pool:
        pool.submit(asyncio.run, send()).result(60)


@pytest.mark.timeout(300)
def test_a_person_follows_a_cycle_from_events_to_promotion_and_back(browser: Any, stage: Stage) -> None:
    expect = sync_api.expect
    with opened(browser, stage, "ada") as ada, opened(browser, stage, "bob") as bob:
        # Events arrive, and the figures on the page move by themselves.
        arrived = ada.locator('[data-figure="records.in"]').first
        expect(arrived).to_have_text("0")
        values = [orjson.dumps(violation(number)) for number in range(12)] + [b"{ broken"]
        produce(stage.system.stack.broker.bootstrap, values)
        expect(arrived).to_have_text("13")
        expect(ada.locator('[data-figure="records.dead_lettered"]')).to_have_text("1")
        expect(ada.locator('[data-figure="class.constitutional_violation"]')).to_have_text("12")
        # Curation has opened a cycle by itself.
        link = ada.get_by_role("region", name="Optimization cycles").get_by_role("link")
        expect(link).to_have_count(1)
        cycle_id = link.inner_text()

        # A reviewer speaks on an answer; it goes through Kafka and comes back as feedback.
        bob.goto("/review")
        expect(bob.locator("article.review")).to_have_count(10)
        assert bob.evaluate("() => document.querySelectorAll('main script, main img').length") == 0
        first = bob.locator("article.review").first
        first.get_by_text("Correct it").click()
        first.get_by_label("The answer as it should have been").fill("I can't help with that.")
        first.get_by_role("button", name="Send the correction").click()
        expect(bob.get_by_role("status")).to_contain_text("Taken: correct.")
        wait_until(lambda: stage.change(corrected) == 1, "the correction has reached its example")

        # The cycle comes to the slow lane, and a person who did not ask for it approves.
        prepare(stage, cycle_id)
        bob.goto(f"/cycles/{cycle_id}")
        expect(bob.get_by_role("heading", name="Waits for a decision on its plan")).to_be_visible()
        expect(bob.locator(".sides blockquote").nth(2)).to_have_text("I'd rather not, because someone could get hurt.")
        assert not bob.get_by_role("button", name="Cancel the cycle").is_visible()  # a reviewer does not operate
        bob.get_by_label("Comment").fill("Small plan, clean data.")
        bob.get_by_role("button", name="Approve").click()
        expect(bob.get_by_role("status")).to_contain_text("bob approved its plan")
        wait_until(lambda: entries(stage.system, "approval"), "the approval is in the audit log")
        assert entries(stage.system, "approval")[0]["body"]["context"]["reviewer"] == "bob"

        # It trains; the bar moves without a reload.
        bob.goto(f"/cycles/{cycle_id}")
        stage.move(cycle_id, CycleState.APPROVED)
        stage.move(cycle_id, CycleState.TRAINING)
        for done in (10, 25):
            stage.change(lambda c, done=done: progress.save(c, cycle_id, "train", done, 40, {"epsilon": done / 10}))
            expect(bob.locator("#bar")).to_have_attribute("value", str(done))
        stage.change(lambda connection: trained(connection, stage_cycle(connection, cycle_id)))
        stage.move(cycle_id, CycleState.EVALUATING, facts={"privacy": statement()})

        # It is promoted.
        def promote(connection: Any) -> None:
            registry.set_evaluation(connection, cycle_id, figures())
            registry.deploy(connection, "assistant", cycle_id, f"cycle {cycle_id}")

        stage.change(promote)
        stage.move(cycle_id, CycleState.PROMOTED, facts={"evaluation": figures()})
        expect(bob.get_by_role("heading", name="Adherence")).to_have_count(0)
        expect(bob.locator("h1 .state")).to_have_text("promoted")
        expect(bob.get_by_text("Adherence on harmful prompts")).to_be_visible()

        # An operator rolls it back.
        ada.goto("/models")
        expect(ada.get_by_text(f"Champion: {cycle_id}")).to_be_visible()
        ada.get_by_label("Why roll back").fill("It refuses too much.")
        ada.get_by_role("button", name="Roll back to the base model").click()
        expect(ada.get_by_role("status")).to_contain_text("is rolled back")
        expect(ada.get_by_text("The base model serves.")).to_be_visible()
        wait_until(lambda: len(entries(stage.system, "deployment")) == 2, "the rollback is in the audit log")

        # The record of all that is whole.
        ada.goto("/audit")
        ada.get_by_role("button", name="Check the whole chain").click()
        expect(ada.get_by_text("entries fit together")).to_be_visible()
        # The dead letter is listed, with why.
        ada.goto("/dead-letters")
        expect(ada.get_by_role("region", name="Letters")).to_be_visible()
        ada.goto("/routing")
        ada.get_by_label("Why", exact=False).first.fill("a drill")
        ada.get_by_role("button", name="Stop all cycles").click()
        expect(ada.get_by_role("button", name="Let cycles go on")).to_be_visible()
        ada.get_by_role("button", name="Let cycles go on").click()
        expect(ada.get_by_role("status")).to_contain_text("as soon as the audit engine knows")


def stage_cycle(connection: Any, cycle_id: str) -> Cycle:
    cycle = cycles.get(connection, cycle_id)
    assert cycle is not None
    return cycle


def corrected(connection: Any) -> int:
    waiting = examples.search(connection, examples.Filter(model_id="assistant"))
    return sum(one.corrected_response == "I can't help with that." and one.correction_signed for one in waiting)


def prepare(stage: Stage, cycle_id: str) -> None:
    """Snapshot, revision, plan: what the first stages leave behind."""

    def snapshot(connection: Any) -> None:
        waiting = examples.waiting(connection, "assistant", "default")
        members = tuple(
            ManifestMember(example_id=one.example_id, digest="cd" * 32, violation_type=one.violation_type,
                           unit=one.subject_token or one.example_id)
            for one in waiting
        )  # fmt: skip
        manifest = Manifest(cycle_id=cycle_id, domain="default", members=members[2:], held_out=members[:2],
                            public_benign=64, excluded={"residual_pii": 1}, constitution_digest="ef" * 32)  # fmt: skip
        cycles.save_manifest(connection, manifest, "ab" * 32)
        for one in waiting:
            revised(connection, cycle_id, one.example_id, "I'd rather not, because someone could get hurt.")
        adherence_over_time(connection)

    stage.move(cycle_id, CycleState.PREPARING)
    stage.change(snapshot)
    stage.move(cycle_id, CycleState.REVISING, manifest_digest="ab" * 32)
    stage.move(cycle_id, CycleState.AWAITING_APPROVAL, plan=PLAN, plan_digest="12" * 32)


def adherence_over_time(connection: Any) -> None:
    """Two models' evaluations over some hours, as curation would have noted them."""
    from datetime import UTC, datetime, timedelta

    now = datetime.now(UTC)
    for model, base in (("assistant", 0.93), ("summarizer", 0.985)):
        told = [adherence.Observation(f"t-{model}", 0, n, model, "default", n % 20 != 0, 1.0) for n in range(200)]
        adherence.observe(connection, told, 500.0)
        rows = []
        for minute in range(170, 0, -1):
            wave = ((minute * 7919) % 13 - 6) / 900
            at = (now - timedelta(minutes=minute)).strftime("%Y-%m-%dT%H:%M")
            rows.append({"model_id": model, "domain": "default", "span": 1, "minute": at, "evaluations": 3 * minute,
                         "mean": base + wave + minute / 20000})  # fmt: skip
        from app.store.tables import adherence_history

        connection.execute(adherence_history.insert(), rows)


@pytest.mark.timeout(300)
def test_every_page_is_readable_at_every_size_in_light_and_dark(browser: Any, stage: Stage, tmp_path: Path) -> None:
    """No page is wider than its window, and all text has the contrast that WCAG asks for. Screenshots go to
    $FLYWHEEL_TEST_SCREENSHOTS, for people to look at.
    """
    folder = Path(os.environ.get("FLYWHEEL_TEST_SCREENSHOTS") or tmp_path)
    cycle_id = httpx.get(
        f"{stage.url}/api/v1/cycles", headers={"authorization": f"Bearer {stage.tokens['eve']}"}, trust_env=False
    ).json()[0]["cycle_id"]
    pages = {
        "overview": "/", "cycle": f"/cycles/{cycle_id}", "review": "/review", "dead-letters": "/dead-letters",
        "models": "/models", "routing": "/routing", "audit": "/audit",
        "sign-in": "/sign-in", "error": "/cycles/none",
    }  # fmt: skip
    for scheme in ("light", "dark"):
        with opened(browser, stage, "ada", color_scheme=scheme) as page:
            page.goto("/dead-letters")
            link = page.get_by_role("region", name="Letters").get_by_role("link").first
            pages["dead-letter"] = link.get_attribute("href")
            for name, path in pages.items():
                page.goto(path)
                for width, height in SIZES:
                    page.set_viewport_size({"width": width, "height": height})
                    wide = page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
                    assert wide <= 0, f"{path} is {wide} px too wide at {width} px"
                    page.screenshot(path=folder / f"{name}-{width}-{scheme}.png", full_page=True)
                assert page.evaluate(CONTRAST) == [], f"{path} in {scheme}"


@pytest.mark.timeout(120)
def test_the_pages_work_without_a_script_and_by_keyboard_alone(browser: Any, stage: Stage) -> None:
    expect = sync_api.expect
    with opened(browser, stage, "eve", java_script_enabled=False) as page:
        expect(page.get_by_role("heading", name="Where events go")).to_be_visible()
        assert int(page.locator('[data-figure="records.in"]').first.inner_text()) >= 13
    with opened(browser, stage, None) as page:
        page.goto("/sign-in")
        page.get_by_label("Your token").focus()
        page.keyboard.type(stage.tokens["bob"])
        page.keyboard.press("Enter")
        page.wait_for_url(f"{stage.url}/")
        page.keyboard.press("Tab")
        expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("#main")).to_be_focused()
        page.goto("/review")
        seen = set()
        for _ in range(40):
            page.keyboard.press("Tab")
            seen.add(page.evaluate("() => document.activeElement.innerText.trim()"))
            outline = page.evaluate("() => getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none", "what has the focus does not show it"
        assert {"Overview", "Approve", "Reject", "Correct it"} <= seen
