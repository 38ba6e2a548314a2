"""What functional tests share and start only once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import pytest
from benches import MODEL
from collector_parts import Rig, Topic, collector_program, running_collector
from services import REPOSITORY, unavailable


@pytest.fixture(scope="session", params=["mock", pytest.param("real", marks=pytest.mark.kafka)])
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    """The collector in front of the mock broker and of Apache Kafka, with topics of its own."""
    collector_program()
    kind: Literal["mock", "real"] = request.param
    broker = request.getfixturevalue("mock_broker" if kind == "mock" else "real_kafka")
    folder = tmp_path_factory.mktemp("collector")
    names = {signal: f"{folder.name}-{kind}-{signal}" for signal in ("logs", "traces", "metrics")}
    topics = {signal: Topic(broker.bootstrap, name, signal) for signal, name in names.items()}
    with running_collector(folder, broker.bootstrap, kind, names) as server:
        yield Rig(server, topics)
    for topic in topics.values():
        topic.close()


@pytest.fixture(scope="session")
def model_is_there() -> None:
    """The small model, made ready in this checkout's cache where it is not yet."""
    pytest.importorskip("torch", reason="torch is missing. Provide it with: make test")
    from agents.training.ml.base_model import ModelUnavailableError, locate_model

    try:
        locate_model(MODEL, REPOSITORY / "var" / "cache" / "models")
    except ModelUnavailableError as missing:
        unavailable(str(missing), "make test")
