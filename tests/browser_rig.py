"""A real browser before a real running system, for tests of the pages: chromium, the system, its people and tokens.

Plain functions; `conftest.py` puts this folder on the path, so a test says `from browser_rig import Stage, opened`.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer
from services import unavailable
from systems import entries, wait_until

from app.embedded.system import System
from app.roles import Role
from app.store import Database, access, adherence
from app.store.access import UserRole
from app.store.tables import adherence_history

WITHIN_MS = 60_000
SIZES = ((400, 850), (1600, 1000))
PEOPLE = {"ada": UserRole.OPERATOR, "bob": UserRole.REVIEWER, "eve": UserRole.VIEWER}

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

LIVE_BAR = """() => {
  window.liveBar = [];
  new MutationObserver(() => {
    const bar = document.getElementById("bar");
    const label = document.querySelector("label[for=bar]");
    if (!bar || !label) return;
    const seen = `${label.textContent.split(":")[0]} ${bar.value}`;
    if (window.liveBar.at(-1) !== seen) window.liveBar.push(seen);
  }).observe(document.getElementById("main"), { childList: true, subtree: true, attributes: true });
}"""
"""Notes what the progress bar shows from now on, in `liveBar`. A page that is loaded anew has no such notes."""


@contextmanager
def chromium(sync_api: Any) -> Iterator[Any]:
    """Debian's chromium, driven by Playwright; the test is skipped where there is none."""
    program = shutil.which("chromium")
    if program is None:
        unavailable("chromium", "sudo apt-get install chromium")
    sync_api.expect.set_options(timeout=WITHIN_MS)
    with sync_api.sync_playwright() as playwright:
        # Its sandbox needs a user of its own, which a container's root is not.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        yield browser
        browser.close()


@dataclass
class Stage:
    """The running system, with its store and people."""

    system: System
    database: Database
    tokens: dict[str, str]
    pictures: Path

    @classmethod
    def of(cls, system: System, folder: Path) -> Stage:
        """Give each of the people a token, once the engines and a router run.

        Pictures go to $FLYWHEEL_TEST_SCREENSHOTS, for people to look at, else to `folder`.
        """
        database = Database(system.settings.database.url)
        tokens = {}
        with database.write() as connection:
            for person, role in PEOPLE.items():
                tokens[person], _ = access.issue(
                    connection, person=person, role=role, domains=["*"], days=1, changed_by="the test"
                )
        # The audit engine has to know before they count.
        wait_until(lambda: len(entries(system, "access_grant")) == len(PEOPLE), "the tokens are in the audit log")
        return cls(system, database, tokens, Path(os.environ.get("FLYWHEEL_TEST_SCREENSHOTS") or folder))

    @property
    def url(self) -> str:
        return self.system.url(Role.ROUTE)

    def look(self, work: Callable[[Any], Any]) -> Any:
        with self.database.read() as connection:
            return work(connection)

    def produce(self, values: list[bytes]) -> None:
        """Write events to the router's topic."""

        async def send() -> None:
            bootstrap = self.system.stack.broker.bootstrap
            async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer:
                for value in values:
                    await producer.send_and_wait("otel-audit-events", value)

        # In a thread: Playwright has a loop of its own in this one.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(asyncio.run, send()).result(60)

    def told(self, event_type: str) -> list[dict[str, Any]]:
        """The bodies of the audit log's entries of a type."""
        return [entry["body"] for entry in entries(self.system, event_type)]


@contextmanager
def opened(browser: Any, stage: Stage, person: str | None, **options: Any) -> Iterator[Any]:
    """A page of a browser of its own, signed in by the form. Whatever its scripts complain of fails the test."""
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


def portray(page: Any, folder: Path, name: str) -> None:
    """Take pictures of a page at every size, light and dark: no wider than its window, and with contrast enough."""
    for scheme in ("dark", "light"):
        page.emulate_media(color_scheme=scheme)
        for width, height in SIZES:
            page.set_viewport_size({"width": width, "height": height})
            wide = page.evaluate("() => document.documentElement.scrollWidth - innerWidth")
            assert wide <= 0, f"{name} is {wide} px too wide at {width} px"
            page.screenshot(path=folder / f"{name}-{width}-{scheme}.png", full_page=True)
        assert page.evaluate(CONTRAST) == [], f"{name} in {scheme}"


def adherence_over_time(connection: Any) -> None:
    """Evaluations of the hours before the test, which no running system can make within it."""
    now = datetime.now(UTC)
    for model, base in (("translator", 0.93), ("summarizer", 0.985)):
        told = [adherence.Observation(f"t-{model}", 0, n, model, "default", n % 20 != 0, 1.0) for n in range(200)]
        adherence.observe(connection, told, 500.0)
        rows = []
        for minute in range(170, 0, -1):
            wave = ((minute * 7919) % 13 - 6) / 900
            at = (now - timedelta(minutes=minute)).strftime("%Y-%m-%dT%H:%M")
            rows.append({"model_id": model, "domain": "default", "span": 1, "minute": at, "evaluations": 3 * minute,
                         "mean": base + wave + minute / 20000})  # fmt: skip
        connection.execute(adherence_history.insert(), rows)
