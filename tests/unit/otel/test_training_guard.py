"""The guard on training data: the table alone, or Presidio besides; asked for and missing, nothing is trained."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import faust
import pytest
from services import unavailable

from app import wiring
from app.roles import Role
from app.settings import Settings, SettingsError, load_settings
from app.workers import WorkerState, add_training
from otel import guard

MAIL = "write to ada@example.com"
NAME = "My name is Margaret Hamilton and I live in Boston."


def settings(folder: Path, **pii: str) -> Settings:
    given = {f"FLYWHEEL_PII__{name.upper()}": value for name, value in pii.items()}
    return load_settings({"FLYWHEEL_DATA_DIR": str(folder), **given})


def test_the_table_is_the_default(tmp_path: Path) -> None:
    has_pii = wiring.training_guard(settings(tmp_path))
    assert [has_pii(text) for text in (MAIL, NAME, "[EMAIL] asked what the time is")] == [True, False, False]


def test_the_table_guards_whatever_the_router_does(tmp_path: Path) -> None:
    assert wiring.training_guard(settings(tmp_path, router="off"))(MAIL)


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The packages that are found; those that tests need are, whatever this machine has."""
    found: set[str] = set()
    monkeypatch.setattr(guard.importlib.util, "find_spec", lambda name: object() if name in found else None)
    return found


@pytest.mark.parametrize(
    ("packages", "model", "told"),
    [
        ((), "en_core_web_lg", r"presidio-analyzer is not installed: pip install .*\.\[presidio\]"),
        (("presidio_analyzer",), "en_core_web_lg", "'en_core_web_lg' is neither an installed package nor a folder"),
        (("presidio_analyzer",), "/no/such/folder", "'/no/such/folder' is neither"),
    ],
)
def test_a_guard_that_is_missing_stops_the_trainer(
    tmp_path: Path, installed: set[str], packages: tuple[str, ...], model: str, told: str
) -> None:
    installed.update(packages)
    asked = settings(tmp_path, training_guard="presidio", presidio_model=model)
    app: Any = faust.App("trainer", broker="memory://")
    for start in (
        lambda: wiring.check_training_guard(asked),
        lambda: wiring.training_guard(asked),
        lambda: add_training(app, asked, WorkerState(asked, Role.TRAIN)),
    ):
        with pytest.raises(SettingsError, match=f"pii.training_guard=presidio: .*{told}.*pii.training_guard=table"):
            start()
    assert not app.agents, "an agent is there although its guard is not"


def test_what_is_there_passes_the_check(tmp_path: Path, installed: set[str]) -> None:
    wiring.check_training_guard(settings(tmp_path))
    installed.update(("presidio_analyzer", "some_pipeline"))
    for model in ("some_pipeline", str(tmp_path)):
        wiring.check_training_guard(settings(tmp_path, training_guard="presidio", presidio_model=model))


def test_an_unknown_guard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"pii\.training_guard"):
        settings(tmp_path, training_guard="none")


@pytest.fixture
def pipeline(tmp_path: Path) -> str:
    """A spaCy pipeline that knows one name by a rule: enough to see that findings come through."""
    if importlib.util.find_spec("presidio_analyzer") is None:
        unavailable("presidio-analyzer", guard.INSTALL, may_be_missing=True)
    import spacy  # type: ignore[import-not-found]

    made = spacy.blank("en")
    made.add_pipe("entity_ruler").add_patterns([{"label": "PERSON", "pattern": "Margaret Hamilton"}])
    made.to_disk(tmp_path / "pipeline")
    return str(tmp_path / "pipeline")


def test_presidio_finds_names_and_the_table_still_guards(tmp_path: Path, pipeline: str) -> None:
    asked = settings(tmp_path, training_guard="presidio", presidio_model=pipeline)
    has_pii = wiring.training_guard(asked)
    texts = (NAME, MAIL, "password=hunter2", "call me on 450 0840", "[EMAIL] asked what the time is", "")
    assert [has_pii(text) for text in texts] == [True, True, True, True, False, False]
    wrong = settings(tmp_path, training_guard="presidio", presidio_model=pipeline, presidio_entities='["PERSONN"]')
    with pytest.raises(SettingsError, match="does not know PERSONN"):
        wiring.training_guard(wrong)
