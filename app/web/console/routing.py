"""`/routing`: settings that routers take over while they run, and the stop switch of all cycles."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.engine import Connection

from agents.routing import live
from agents.routing.live import CATALOGUE, Choice, LiveSettingError, Number
from app.live import Document, configured_values, read_copy
from app.store import live_settings, switches
from app.store.audited import ChangeRefused, Revision
from app.web.console.cycle import Done
from app.web.console.overview import Record, halted
from app.web.console.parts import Console
from app.web.identity import Identity, Right

MOST_CHANGES = 20
SMALLEST_SAID, LARGEST_SAID = 1e-9, 2**31 - 1
"""Bounds beyond these are those of number formats and not worth saying."""


class Setting(Record):
    """One live setting. `effect`: how far its newest change has come."""

    name: str
    value: Any
    configured: Any
    effect: Literal["as configured", "waits for the audit engine", "waits for the monitoring agent", "in force",
                    "in the audit log"]  # fmt: skip
    changed: str | None
    bounds: str
    meaning: str


class Change(Record):
    """One change of one name; `value` None gave it back to the configuration."""

    name: str
    value: Any
    by: str
    at: str
    comment: str
    audited: bool


class RoutingView(Record):
    """Every setting, the latest changes, and why cycles stand still, if they do."""

    settings: list[Setting]
    changes: list[Change]
    halted: str | None
    turns: list[Change]


class SettingChange(BaseModel):
    """A new value, as text; None gives the setting back to the configuration."""

    model_config = ConfigDict(extra="forbid")

    value: str | None = Field(max_length=200)
    comment: str = Field("", max_length=1000)
    by: str | None = None


class Turn(BaseModel):
    """Stop all cycles, or let them go on."""

    model_config = ConfigDict(extra="forbid")

    halt: bool
    comment: str = Field("", max_length=1000)
    by: str | None = None


def add(app: FastAPI, console: Console) -> None:
    """Add the page, its JSON, and the changes."""
    may = Depends(console.guard.needs(Right.VIEW))
    may_change = Depends(console.guard.needs(Right.OPERATE, everywhere=True))

    async def view() -> RoutingView:
        copy = await read_copy(console.settings)
        return await console.read(lambda connection: _read(console, copy, connection))

    @app.get("/routing", response_class=HTMLResponse)
    async def page(request: Request, identity: Identity = may) -> HTMLResponse:
        """Live settings and the stop switch as a page."""
        may_act = identity.may(Right.OPERATE) and identity.sees_all
        return await console.page(request, identity, "routing.html", {"r": await view(), "may_act": may_act})

    @app.get("/api/v1/routing", tags=["routing"], dependencies=[may])
    async def routing_json() -> RoutingView:
        """Live settings, their latest changes, and the stop switch."""
        return await view()

    @app.post("/routing/settings", include_in_schema=False)
    async def setting_form(request: Request, identity: Identity = may_change) -> Response:
        """Change a setting, from the page."""
        fields = await console.guard.form(request, identity)
        value = None if fields.get("act") == "unset" else fields.get("value", "")[:200]
        asked = SettingChange(value=value, comment=fields.get("comment", "")[:1000], by=fields.get("by"))
        return console.done("/routing", await _set(console, identity, fields.get("name", ""), asked))

    @app.post("/api/v1/routing/settings/{name}", tags=["routing"])
    async def setting_json(name: str, asked: SettingChange, identity: Identity = may_change) -> Done:
        """Change a live setting; routers take it over within seconds of the audit engine's having it."""
        return Done(said=await _set(console, identity, name, asked))

    @app.post("/routing/stop-switch", include_in_schema=False)
    async def turn_form(request: Request, identity: Identity = may_change) -> Response:
        """Turn the stop switch, from the page."""
        fields = await console.guard.form(request, identity)
        asked = Turn(halt=fields.get("act") == "halt", comment=fields.get("comment", "")[:1000], by=fields.get("by"))
        return console.done("/routing", await _turn(console, identity, asked))

    @app.post("/api/v1/stop-switch", tags=["routing"])
    async def turn_json(asked: Turn, identity: Identity = may_change) -> Done:
        """Stop all cycles at once, or let them go on once the audit engine knows."""
        return Done(said=await _turn(console, identity, asked))


async def _set(console: Console, identity: Identity, name: str, asked: SettingChange) -> str:
    by = identity.acting(asked.by)
    try:
        live.find(name)
        value = None if asked.value is None else live.parse(name, asked.value)
        changed = await console.write(
            lambda connection: live_settings.change(connection, name, value, changed_by=by, comment=asked.comment)
        )
    except LiveSettingError as refusal:
        raise HTTPException(422, str(refusal)) from None
    except ChangeRefused as refusal:
        raise HTTPException(409, str(refusal)) from None
    done = f"{name} is given back to the configuration" if value is None else f"{name} is set to {value}"
    return f"{done} by revision {changed.revision}, which takes effect once it is in the audit log."


async def _turn(console: Console, identity: Identity, asked: Turn) -> str:
    by = identity.acting(asked.by)
    act = switches.halt if asked.halt else switches.resume
    try:
        await console.write(lambda connection: act(connection, changed_by=by, comment=asked.comment))
    except ChangeRefused as refusal:
        raise HTTPException(409, str(refusal)) from None
    return "All cycles stand still." if asked.halt else "Cycles go on as soon as the audit engine knows."


def _read(console: Console, copy: Document | None, connection: Connection) -> RoutingView:
    changes, audited = live_settings.current(connection), live_settings.audited(connection)
    # Routers that have lost sight of the copy keep what they had, and that was audited.
    values = audited.values if copy is None else copy.values
    configured = configured_values(console.settings)
    found = []
    for name, setting in CATALOGUE.items():
        newest, default = changes.get(name), setting.read(configured)
        told = None if newest is None else f"{newest.changed_by}, {newest.changed_at[:19].replace('T', ' ')}"
        found.append(
            Setting(
                name=name,
                value=values.get(name, default),
                configured=default,
                effect=_effect(newest, copy),
                changed=told,
                bounds=_in_words(setting.kind),
                meaning=setting.meaning,
            )
        )
    return RoutingView(
        settings=found,
        changes=[_change(one) for one in live_settings.history(connection, MOST_CHANGES)],
        halted=halted(connection),
        turns=[_change(one) for one in switches.history(connection, MOST_CHANGES)],
    )


def _in_words(kind: Number | Choice) -> str:
    """What may be set, for people: smallest and largest numbers of a machine say nothing to them."""
    if isinstance(kind, Choice) or kind.low == kind.high:
        return kind.bounds
    least = "above 0" if 0 < kind.low < SMALLEST_SAID else f"{kind.low:.3g}"
    return f"{least} or more" if kind.high >= LARGEST_SAID else f"{least} to {kind.high:.10g}"


def _effect(newest: Revision | None, copy: Document | None) -> Any:
    if newest is None:
        return "as configured"
    if not newest.audited:
        return "waits for the audit engine"
    if copy is None:
        return "in the audit log"
    return "in force" if copy.revision >= newest.revision else "waits for the monitoring agent"


def _change(one: Revision) -> Change:
    return Change(
        name=one.name, value=one.value, by=one.changed_by, at=one.changed_at, comment=one.comment, audited=one.audited
    )
