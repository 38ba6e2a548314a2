"""The committed JSON Schemas are those of the models."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path

import pytest
from pydantic import BaseModel

from app.topics import REGISTRY
from models.schemas import DIRECTORY, RECORDS, render, schemas, write

REMEDY = "run python -m models.schemas"


def test_there_is_one_file_a_record() -> None:
    assert {path.stem for path in DIRECTORY.glob("*.json")} == set(schemas()), REMEDY


@pytest.mark.parametrize("name", sorted(schemas()))
def test_a_file_is_current(name: str) -> None:
    assert (DIRECTORY / f"{name}.json").read_text(encoding="utf-8") == render(schemas()[name]), REMEDY


def test_the_generator_writes_all_and_removes_what_is_no_more(tmp_path: Path) -> None:
    (tmp_path / "Gone.json").write_text("{}", encoding="utf-8")
    write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in DIRECTORY.glob("*.json"))


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_a_record_and_its_fields_are_told(record: type[BaseModel]) -> None:
    schema = schemas()[record.__name__]
    assert schema["title"] == record.__name__
    assert schema["description"] == inspect.getdoc(record)
    assert set(schema["properties"]) == set(record.model_fields)


def test_every_topic_of_records_names_one_with_a_schema() -> None:
    named = [spec.value for spec in REGISTRY if spec.value.startswith("models.")]
    assert named
    for value in named:
        module, name = value.rsplit(".", 1)
        assert getattr(import_module(module), name) in RECORDS
