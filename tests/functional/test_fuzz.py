"""Every fuzz target for some cases (`fuzz.short`), what it has found again, and whether it is blind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fuzz import corpus, short, targets
from fuzz.frame import Target, replay, run

TORCH = {"policy-engine", "checkpoints"}

pytestmark = pytest.mark.timeout(short.SECONDS + 600)


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.torch] if name in TORCH else []) for name in targets.NAMES],
)
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    if request.param in TORCH:
        pytest.importorskip("torch")
        pytest.importorskip("opacus")
    with targets.make(request.param, tmp_path_factory.mktemp(request.param)) as made:
        yield made


def test_nothing_gets_past_it(target: Target) -> None:
    # The same cases every time: whether a change lands must not hang on what is drawn. The long form draws others.
    result = run(target, short.SECONDS, short.SEED, most_cases=short.most(target.short_cases))
    assert not result.findings, f"seed {short.SEED}: {result}"
    assert not result.unreached, f"seed {short.SEED}: {result}"


def test_what_it_has_found_stays_mended(target: Target) -> None:
    for one in corpus.kept(target.name):
        result = replay(target, one.case)
        assert not result.findings, f"{one.name} ({one.found}): {result}"
        assert list(result.outcomes) == [one.outcome], f"{one.name} ({one.found}): {result}"


# --- a fault in the product is found ------------------------------------------------------------------------------


def _raise(*_: Any, **__: Any) -> Any:
    raise KeyError("a fault that was put in")


FAULTS: dict[str, list[tuple[str, str, Any]]] = {
    "policy-engine": [("policies.engine.decisions.PolicyEngine", "_decision", _raise)],
    "audit-engine": [
        ("policies.audit.store.AuditStore", "prepare", _raise),
        ("policies.audit.chain", "redact", lambda value, key, *, depth=0: value),  # event text is kept
    ],
    "web": [
        ("app.web.console.overview", "read_overview", _raise),
        ("app.web.sessions.Signer", "form_is_ours", lambda *_: True),  # any page's form counts
        ("app.web.identity.Identity", "may", lambda *_: True),
        ("app.web.guard.Guard", "refuse_other_origin", lambda *_: None),  # any site's form counts
    ],
    "settings": [
        ("app.settings.load", "hide_password", lambda text: text),
        ("app.settings.load", "_is_secret", lambda kind: False),
        ("app.settings.load", "_is_no_text", lambda text: False),
    ],
    "documents": [
        ("policies.yaml_text", "_SENSELESS", ()),
        ("policies.gate.cases", "_NOT_THERE", ()),
    ],
    "checkpoints": [
        ("agents.training.ml.checkpoint", "_moments", lambda *_: []),
        ("agents.training.ml.lora", "check_adapter_files", lambda *_: None),
    ],
    "cli": [("app.cli.output", "printable", lambda text: text), ("app.store.cycles", "list_cycles", _raise)],
}


def test_a_fault_that_is_put_in_is_found(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    for where, name, fault in FAULTS[target.name]:
        with monkeypatch.context() as patch:
            patch.setattr(f"{where}.{name}", fault)
            found = any(replay(target, one.case).findings for one in corpus.kept(target.name))
            if not found:
                ran = run(target, short.SECONDS, 7, most_cases=target.short_cases, most_findings=1)
                found = bool(ran.findings)
        assert found, f"{where}.{name} was broken, and nothing was found"
