"""The embedded collector: how it is found, and what it is told."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
import yaml

from app.embedded.collector import CONFIG_PATH, PROGRAM_NAME, CollectorServer, find_collector
from app.embedded.errors import ProgramMissing
from app.embedded.process import ManagedProcess
from app.embedded.run_directory import RunDirectory


def program(path: Path, script: str = "#!/bin/sh\n") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(script)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_the_named_program_comes_before_the_one_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_path = program(tmp_path / "bin" / PROGRAM_NAME)
    monkeypatch.setenv("PATH", str(on_path.parent))
    assert find_collector({}) == on_path
    assert find_collector({"FLYWHEEL_OTELCOL": ""}) == on_path
    named = program(tmp_path / "mine")
    assert find_collector({"FLYWHEEL_OTELCOL": str(named)}) == named


@pytest.mark.parametrize("named", ["", "/nowhere/otelcol"])
def test_a_missing_program_is_told_with_what_would_provide_it(
    named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProgramMissing) as missing:
        find_collector({"FLYWHEEL_OTELCOL": named})
    assert "docker/install/collector.sh" in str(missing.value)


def test_it_gets_addresses_of_its_own_for_all_that_the_configuration_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[ManagedProcess] = []
    monkeypatch.setattr(ManagedProcess, "start", lambda self: started.append(self))
    with RunDirectory.create(tmp_path / "run") as run:
        server = CollectorServer(run, "broker:9092", "mock", program(tmp_path / "otelcol"))
        server.start()
        (process,) = started
        given = process.program.env
    assert process.program.argv == (str(tmp_path / "otelcol"), "--config", str(CONFIG_PATH))
    assert given["KAFKA_BROKERS"] == "broker:9092"
    assert given["KAFKA_PROTOCOL_VERSION"] == "2.3.0"
    endpoints = [value for name, value in given.items() if name.endswith("_ENDPOINT")]
    assert len({endpoint for endpoint in endpoints if endpoint.startswith("127.0.0.1:")}) == 4
    assert Path(given["COLLECTOR_STORAGE"]).is_relative_to(run.data)
    # Each variable must be one that the configuration reads: a misspelt one would leave a default port.
    text = CONFIG_PATH.read_text()
    for name in given:
        assert f"${{env:{name}:-" in text, name
    assert yaml.safe_load(text)["exporters"]["kafka"]["brokers"] == "${env:KAFKA_BROKERS:-127.0.0.1:9092}"
