"""The mirror in MLflow itself, over SQLite: what is there after it was shown, and that nothing is there twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from registry_parts import GOOD, trained

from agents.training.mirror import MirrorAway, RegistryMirror
from app.settings import Settings
from app.store import Database, mirrored, registry
from app.store.registry import Authority, Kind
from app.wiring import mlflow_mirror, mlflow_uri
from models.cycle import CycleState

pytest.importorskip("mlflow", reason="mlflow is missing. Provide it with: make test")
MODEL = "an-organisation/assistant"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """One MLflow for the tests of this file: to make its tables takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    found = Settings(data_dir=folder)
    return found.model_copy(update={"training": found.training.model_copy(update={"artifacts": folder / "models"})})


@pytest.fixture
def database(tmp_path: Path) -> Database:
    made = Database(f"sqlite:///{tmp_path / 'store.db'}")
    made.migrate()
    return made


def mirror_of(settings: Settings, database: Database) -> RegistryMirror:
    return RegistryMirror(
        lambda: database,
        lambda: mlflow_mirror(settings),
        mlflow_uri(settings),
        "worker",
        settings.training.artifacts,
        interval_s=0.1,
        retry_s=0.1,
    )


def client(settings: Settings) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=mlflow_uri(settings), registry_uri=mlflow_uri(settings))


def test_a_version_becomes_a_run_and_a_model_version_with_aliases(settings: Settings, database: Database) -> None:
    artifacts = settings.training.artifacts
    with database.write() as connection:
        first = trained(connection, artifacts, model=MODEL, state=CycleState.PROMOTED)
        second = trained(connection, artifacts, model=MODEL, state=CycleState.PROMOTED)
        waiting = trained(connection, artifacts, model=MODEL, state=CycleState.EVALUATING, evaluation=None)
    (artifacts / first / "report.md").write_text("safer, and still useful")
    mirror = mirror_of(settings, database)
    assert mirror.show_left() == 4
    api = client(settings)
    name = "an-organisation--assistant"
    model = api.get_registered_model(name)
    assert model.tags["flywheel.model_id"] == MODEL
    by_version = {one.tags["flywheel.version_id"]: one for one in api.search_model_versions(f"name='{name}'")}
    assert set(by_version) == {first, second, waiting}
    named = {alias: str(number) for alias, number in model.aliases.items()}
    assert named == {"champion": str(by_version[second].version), "candidate": str(by_version[waiting].version)}
    run = api.get_run(by_version[first].run_id)
    assert run.info.status == "FINISHED"
    assert api.get_run(by_version[waiting].run_id).info.status == "RUNNING"
    assert run.data.params["base_model"] == "small"
    assert run.data.params["privacy.epsilon"] == "4.0"
    assert run.data.metrics["evaluation.adherence.candidate"] == GOOD["adherence"]["candidate"]
    paths = {one.path for one in api.list_artifacts(run.info.run_id)}
    assert paths == {"adapter", "statement.json", "evaluation.json", "report.md"}
    assert {one.path for one in api.list_artifacts(run.info.run_id, "adapter")} == {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    }
    with database.write() as connection:
        now, target = registry.current(connection, MODEL), registry.rollback_target(connection, MODEL)
        assert now is not None
        assert target is not None
        registry.roll_back(connection, MODEL, target, "bad", Authority("a"), kind=Kind.WATCH, expected=now.seq)
        registry.set_evaluation(connection, waiting, GOOD)
    mirror.show_left()
    again = {one.tags["flywheel.version_id"]: one for one in api.search_model_versions(f"name='{name}'")}
    assert {version: one.version for version, one in again.items()} == {
        version: one.version for version, one in by_version.items()
    }
    assert again[second].tags["flywheel.status"] == "rolled_back"
    assert str(api.get_model_version_by_alias(name, "champion").version) == str(again[first].version)
    assert api.get_run(again[waiting].run_id).data.metrics["evaluation.adherence.candidate"] == 0.97


def test_a_crash_between_showing_and_noting_makes_nothing_twice(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with database.write() as connection:
        trained(connection, settings.training.artifacts, model="crashed", state=CycleState.PROMOTED)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(mirrored, "done", crash)
        with pytest.raises(KeyboardInterrupt):
            mirror_of(settings, database).show_left()
    assert mirror_of(settings, database).show_left() == 2
    api = client(settings)
    assert len(api.search_model_versions("name='crashed'")) == 1
    experiment = api.get_experiment_by_name(settings.mlflow.experiment)
    found = api.search_runs([experiment.experiment_id], "tags.`flywheel.model_id` = 'crashed'")
    assert len(found) == 1
    (point,) = api.get_metric_history(found[0].info.run_id, "evaluation.adherence.candidate")
    assert point.value == 0.97


def test_a_mirror_that_was_emptied_is_filled_anew(settings: Settings, database: Database) -> None:
    with database.write() as connection:
        first, _ = (
            trained(connection, settings.training.artifacts, model="emptied", state=CycleState.PROMOTED)
            for _ in range(2)
        )
    mirror = mirror_of(settings, database)
    mirror.show_left()
    api = client(settings)
    api.delete_registered_model("emptied")
    with database.write() as connection:
        now, target = registry.current(connection, "emptied"), registry.rollback_target(connection, "emptied")
        assert now is not None
        assert target is not None
        registry.roll_back(connection, "emptied", target, "bad", Authority("a"), kind=Kind.WATCH, expected=now.seq)
    mirror.show_left()
    mirror.show_left()
    assert api.get_model_version_by_alias("emptied", "champion").tags["flywheel.version_id"] == first


def test_a_server_that_is_away_is_told_apart_from_what_it_refuses(settings: Settings, database: Database) -> None:
    mlflow = settings.mlflow.model_copy(update={"tracking_uri": "http://127.0.0.1:9", "timeout_s": 1.0})
    away = settings.model_copy(update={"mlflow": mlflow})
    with database.write() as connection:
        trained(connection, settings.training.artifacts, model="away", state=CycleState.PROMOTED)
    with pytest.raises(MirrorAway):
        mirror_of(away, database).show_left()
