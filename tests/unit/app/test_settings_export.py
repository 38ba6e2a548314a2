"""Settings as a child process gets them: in its environment, all of them, exactly."""

from __future__ import annotations

import re
from operator import attrgetter
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import settings as limits
from hypothesis import strategies as st
from pydantic import BaseModel

from app.settings import Settings, load_settings
from app.settings.export import to_environment
from app.settings.load import known_settings


@pytest.fixture(autouse=True)
def _no_file_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `flywheel.toml` in the working directory would count."""
    monkeypatch.chdir(tmp_path)


def absolute(value: Any) -> Any:
    """Settings as plain values with paths made absolute, for comparing parent and child."""
    if isinstance(value, BaseModel):
        return {name: absolute(inner) for name, inner in value}
    if isinstance(value, tuple):
        return tuple(absolute(inner) for inner in value)
    return value.absolute() if isinstance(value, Path) else value


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=40)
POSITIVE = st.floats(min_value=1e-6, max_value=1e9, allow_nan=False)


@st.composite
def changed_settings(draw: st.DrawFn) -> Settings:
    """Settings as a `flywheel.toml` could have them: every kind of value, with awkward ones."""
    targets = draw(st.lists(st.floats(0.1, 8.0), min_size=1, max_size=4, unique=True))
    values: dict[str, Any] = {
        "data_dir": draw(st.sampled_from(["var", "/srv/x y", "déjà/vu"])),
        "constitution": {"path": draw(st.none() | st.just("rules.yaml"))},
        "kafka": {"declare_topics": draw(st.booleans()), "partitions": draw(st.integers(1, 99))},
        "privacy": {"cycle_targets": sorted(targets), "fixed_seed": draw(st.none() | st.integers())},
        "training": {"target_modules": draw(st.lists(TEXT, max_size=3)), "learning_rate": draw(POSITIVE)},
        "evaluation": {"suites": draw(st.lists(st.sampled_from(["a.jsonl", "/b c.jsonl"]), max_size=2))},
        "gate": {"bounds": draw(st.dictionaries(TEXT, st.floats(allow_nan=False, allow_infinity=False), max_size=3))},
        "generation": {"system_message": draw(TEXT | st.sampled_from(["[1]", "{}", "", "null", " x "]))},
        "web": {"token": draw(st.none() | TEXT | st.sampled_from(["[1]", '{"a": 1}', "123"]))},
        "pii": {"subject_key": draw(st.none() | TEXT)},
    }
    return Settings.model_validate(values)


@limits(deadline=None, max_examples=100)
@given(parent=changed_settings())
def test_a_child_starts_with_its_parents_settings(parent: Settings) -> None:
    environment = to_environment(parent)
    assert all(re.fullmatch(r"FLYWHEEL_[A-Z0-9_]+", name) for name in environment)
    child = load_settings(environment)
    assert absolute(child) == absolute(parent)
    assert to_environment(child) == environment


def test_every_setting_with_a_value_is_exported() -> None:
    secret = {name: {"token": "hunter2"} for name in ("web", "policy_engine", "audit_engine")}
    settings = Settings.model_validate({**secret, "curation": {"digest_key": "x"}, "pii": {"subject_key": "y"}})
    expected = {
        "FLYWHEEL_" + name.upper().replace(".", "__")
        for name, _ in known_settings()
        if attrgetter(name)(settings) is not None
    }
    assert set(to_environment(settings)) == expected


def test_paths_are_exported_absolute_so_that_a_child_may_start_elsewhere(tmp_path: Path) -> None:
    environment = to_environment(load_settings({"FLYWHEEL_EVALUATION__SUITES": '["suites/own.jsonl"]'}))
    assert environment["FLYWHEEL_DATA_DIR"] == str(tmp_path / "var")
    assert orjson.loads(environment["FLYWHEEL_EVALUATION__SUITES"]) == [str(tmp_path / "suites/own.jsonl")]
