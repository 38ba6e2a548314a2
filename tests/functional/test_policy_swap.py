"""Policies are put in force while decisions flow: each decision is by one whole bundle, or it is none."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from gate_parts import edit, opa_program, opa_server, write_small_policies
from typer.testing import CliRunner

from app.cli.main import cli
from app.embedded.run_directory import RunDirectory
from app.settings import Settings
from app.settings.sections import GateSettings
from app.wiring import policy_bundle
from models.decision import GateDecision
from policies.constitution import load_constitution
from policies.gate import (
    BundleSource,
    OpaConfig,
    OpaEngine,
    PolicyBundle,
    RegopyEngine,
    load_bundle,
    write_archive,
)
from policies.gate.bundle import CASES

SWAPS = 12
WITHIN_S = 30.0
# By the old bundle at least 1 is enough, by the new one at most 10 is: each tells them, and a mixture of them, apart.
AMOUNTS = {0.5: {"old": False, "new": True}, 5.0: {"old": True, "new": True}, 100.0: {"old": True, "new": False}}
NO_DECISION = {"policy_revision", "policy_unavailable"}


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    """Policies in an old, a new and a failing version."""
    found = {name: write_small_policies(tmp_path / name) for name in ("old", "new", "failing")}
    for name in ("new", "failing"):
        edit(found[name] / "small.rego", ">=", "<=")
        edit(found[name] / "data" / "small.json", '{"amount": 1}', '{"amount": 10}')
    edit(found["new"] / CASES, "beyond: [0.5], at: [1]", "beyond: [10.5], at: [10]")
    edit(found["new"] / "small_test.rego", "0.5", "10.5")
    return found


def judge(decisions: Iterable[tuple[float, GateDecision]], bundles: dict[str, PolicyBundle]) -> Counter[str]:
    """How many decisions were taken by which bundle; fails where one is by none of them, or not what it decides."""
    revisions = {(bundle.bundle_revision, bundle.data_revision): name for name, bundle in bundles.items()}
    taken: Counter[str] = Counter()
    for amount, decision in decisions:
        if not decision.conclusive:
            assert not decision.allow
            assert decision.reasons[0].code in NO_DECISION, decision
            taken["none"] += 1
            continue
        name = revisions.get((str(decision.bundle_revision), str(decision.data_revision)))
        assert name is not None, f"decided by a mixture: {decision}"
        assert decision.allow is AMOUNTS[amount][name], decision
        taken[name] += 1
    return taken


def pack(folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("FLYWHEEL_GATE__POLICIES", str(folder))
    return CliRunner().invoke(cli, ["policy", "bundle", "--out", str(out)]).exit_code


async def test_opa_swaps_bundles_while_it_decides(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = opa_program()
    archive = tmp_path / "served" / "bundle.tar.gz"
    constitution = load_constitution()
    bundles = {
        name: policy_bundle(Settings(gate=GateSettings(policies=folders[name])), constitution)
        for name in ("old", "new")
    }
    write_archive(bundles["old"], archive)
    decisions: list[tuple[float, GateDecision]] = []
    pinned: list[tuple[float, GateDecision]] = []
    with RunDirectory.create(tmp_path / "run") as run, opa_server(run, archive, program) as server:
        free = OpaEngine(OpaConfig(server.url, timeout_seconds=WITHIN_S))
        new = bundles["new"]
        by_new = OpaEngine(OpaConfig(server.url, None, WITHIN_S, bundle_revision=new.bundle_revision,
                                     data_revision=new.data_revision))  # fmt: skip
        stop = asyncio.Event()

        async def ask(engine: OpaEngine, into: list[tuple[float, GateDecision]]) -> None:
            while not stop.is_set():
                into += [(amount, await engine.decide("sell", {"stock": {"amount": amount}})) for amount in AMOUNTS]

        async def in_force(name: str) -> None:
            wanted = bundles[name].data_revision
            async with asyncio.timeout(WITHIN_S):
                while (await free.decide("sell", {})).data_revision != wanted:
                    pass

        asking = [asyncio.create_task(ask(free, decisions)) for _ in range(4)]
        asking.append(asyncio.create_task(ask(by_new, pinned)))
        for swap in range(SWAPS):
            name = ("new", "old")[swap % 2]
            assert await asyncio.to_thread(pack, folders[name], archive, monkeypatch) == 0
            await in_force(name)
        before = archive.read_bytes()
        assert await asyncio.to_thread(pack, folders["failing"], archive, monkeypatch) == 1
        assert archive.read_bytes() == before
        stop.set()
        await asyncio.gather(*asking)
        await free.aclose()
        await by_new.aclose()
    taken = judge(decisions, bundles)
    assert taken["old"] > 0 < taken["new"]
    taken = judge(pinned, bundles)
    assert taken["old"] == 0
    assert taken["new"] > 0 < taken["none"]


def test_regopy_swaps_bundles_while_it_decides(folders: dict[str, Path], tmp_path: Path) -> None:
    current = tmp_path / "current"

    def turn_to(name: str) -> None:
        link = tmp_path / "next"
        link.symlink_to(folders[name], target_is_directory=True)
        link.replace(current)

    turn_to("old")
    source = BundleSource(current)
    engine = RegopyEngine(source.bundle)
    bundles = {name: load_bundle(folders[name]) for name in ("old", "new")}
    stop = threading.Event()

    def ask(_: int) -> list[tuple[float, GateDecision]]:
        found: list[tuple[float, GateDecision]] = []
        while not stop.is_set():
            found += [(amount, engine.decide_now("sell", {"stock": {"amount": amount}})) for amount in AMOUNTS]
        return found

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(ask, thread) for thread in range(3)]
        try:
            for swap in range(SWAPS):
                name = ("new", "failing", "old", "failing")[swap % 4]
                before = source.bundle
                turn_to(name)
                engine.swap(source.refresh())
                assert source.bundle == (before if name == "failing" else bundles[name])
                assert (source.error is None) is (name != "failing")
        finally:
            stop.set()
        decisions = [pair for future in asking for pair in future.result(timeout=WITHIN_S)]
    taken = judge(decisions, bundles)
    assert taken["old"] > 0 < taken["new"]
    assert taken["none"] == 0
