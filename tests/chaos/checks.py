"""What must hold of all that came out, once a seed's faults are over."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import httpx
import orjson
import sqlalchemy as sa
from fault_stream import INPUT, read_all
from fault_traffic import DEAD_LETTERS, NUMBER_HEADER, TOPICS, Judge
from pipelines import CURATED
from systems import lag, wait_until

from app.store.tables import cycles as opened
from app.store.tables import examples
from chaos import collected, cycles

if TYPE_CHECKING:
    from chaos.site import Site

Figures = dict[str, int]
BACK_WITHIN_S = 60.0
"""By when every worker must be at work again, unless a run says otherwise: a busy machine has a time of its own."""
WITHIN_S = 180.0
"""For what has no such bound."""


def finish(site: Site) -> Figures:
    """Let the rest flow, and check every invariant; the figures of what came out more than once."""
    sent = site.collected.finish() if site.collected else set()
    through = sa.select(examples).where(examples.c.model_id == collected.MODEL)
    wait_until(lambda: site.pipeline.count(through) >= len(sent), "what the collector took is stored", WITHIN_S)
    site.stream.finish()
    site.watch.wait_done()
    wait_until(lambda: lag(site.fleet.bootstrap, "flywheel-curate", CURATED) == 0, "curation has taken everything")
    _check_examples(site, sent)
    wait_until(lambda: _models(site) <= _opened(site), "cycles open for all models", WITHIN_S)
    site.reviewer.end_all(WITHIN_S)
    counted = site.monitored.check(WITHIN_S)
    site.fleet.stop()
    site.watch.check()
    system, bootstrap = site.system, site.fleet.bootstrap
    many = cycles.check(system, site.pipeline.database, _models(site), site.reviewer.rounds, bootstrap)
    _check_chain(site)
    return {**_check_outputs(site, sent), "cycles": many, "counted": counted}


def _models(site: Site) -> set[str]:
    """The models with examples enough for a cycle, which opens at the latest when no more come."""
    query = sa.select(examples.c.model_id, sa.func.count()).group_by(examples.c.model_id)
    with site.pipeline.database.read() as connection:
        rows = connection.execute(query).all()
    return {str(model) for model, count in rows if count >= site.system.settings.curation.min_examples}


def _opened(site: Site) -> set[str]:
    with site.pipeline.database.read() as connection:
        return {str(row.model_id) for row in connection.execute(sa.select(opened.c.model_id))}


def _check_examples(site: Site, sent: set[str]) -> None:
    found = Counter(event_id for event_id, _ in site.pipeline.stored())
    wanted = Counter(site.traffic.examples | sent | site.reviewer.asked)
    lost, more = wanted - found, found - wanted
    assert not lost, f"{len(lost)} examples are lost: {list(lost)[:3]}"
    assert not more, f"{len(more)} examples are too many: {list(more)[:3]}"


def _check_chain(site: Site) -> None:
    url = f"{site.system.settings.audit_engine.url}/api/v1/verify"
    verified = httpx.get(url, timeout=30.0, trust_env=False).json()
    assert verified["ok"], verified


def _check_outputs(site: Site, sent: set[str]) -> Figures:
    topics = dict(read_all(site.fleet.bootstrap, [INPUT, *TOPICS.values(), DEAD_LETTERS]))
    outputs = {topic: topics[topic] for topic in TOPICS.values()}
    losses = [window for window in site.windows if window.forgets]
    excuses = sum(window.repeats or window.forgets for window in site.windows)
    again = collected.check(sent, outputs, excuses)
    numbered = [message for message in topics[INPUT] if NUMBER_HEADER in dict(message.headers() or ())]
    judge = Judge(site.traffic, numbered)
    for topic, messages in outputs.items():
        topics[topic] = [message for message in messages if not collected.is_collected(orjson.loads(message.value()))]
    outcome = judge.outcome(topics)
    for telling, times in outcome.redelivered.items():
        _check_repeats(site, judge, telling, len(times))
    for telling in outcome.dead_again:
        _check_repeats(site, judge, telling, 2)
    for event_id, tellings in outcome.doubles.items():
        assert len(tellings) <= 1 + len(losses), f"{event_id}: {len(tellings)} tellings, {len(losses)} losses"
        places = [judge.place(telling) for telling in tellings]
        split = any(
            any(offset < window.seen.ends[number] for number, offset in places)
            and any(offset >= window.seen.committed[number] for number, offset in places)
            for window in losses
        )
        assert split, f"{event_id} was routed twice on one side of every loss of claims"
    return {
        "records": outcome.records,
        "redelivered": len(outcome.redelivered),
        "dead_again": len(outcome.dead_again),
        "doubles": len(outcome.doubles),
        "collected": len(sent),
        "collected_again": again,
    }


def _check_repeats(site: Site, judge: Judge, telling: int, copies: int) -> None:
    place = judge.place(telling)
    allowed = sum(window.repeats and window.holds(*place) for window in site.windows)
    assert copies <= 1 + allowed, f"telling {telling} at {place} came {copies} times; {allowed} faults excuse it"
