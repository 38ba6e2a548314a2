"""A tiny adapter, a store with a cycle, a channel that listens: what tests of the evaluation job are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from evaluation_parts import STATEMENT
from sqlalchemy.engine import Connection
from transformers import LlamaForCausalLM

from agents.training.ml.lora import LoraSpec, attach_adapter, save_adapter
from app.store import Database, cycles, registry
from models.cycle import TriggerType


class Told:
    """A channel that keeps what it was told."""

    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []

    def progress(self, **fields: Any) -> None:
        self.said.append(fields)


def adapter(tiny: Path, directory: Path, seed: int) -> str:
    """A saved adapter that changes what the model says; returns its digest."""
    model = attach_adapter(LlamaForCausalLM.from_pretrained(tiny), LoraSpec(), seed=1)
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=1.0)
    return save_adapter(model, directory, base_name="tiny")


def opened(connection: Connection, model_id: str) -> str:
    """A new cycle's id."""
    made = cycles.open_cycle(
        connection, model_id=model_id, domain="d", trigger_type=TriggerType.MANUAL, requested_by="r", facts={}
    )
    assert made is not None
    return made.cycle_id


def older_champion(database: Database, tiny: Path, folder: Path) -> str:
    """Deploy another adapter for the model; returns its digest."""
    digest = adapter(tiny, folder / "champion", seed=9)
    with database.write() as connection:
        registry.add_version(connection, version("older", opened(connection, "other"), folder / "champion", digest))
        registry.deploy(connection, "m", "older", "test")
    return digest


def version(name: str, cycle_id: str, path: Path, digest: str) -> dict[str, Any]:
    return {
        "version_id": name,
        "model_id": "m",
        "cycle_id": cycle_id,
        "base_model": "tiny",
        "path": str(path),
        "digest": digest,
        "statement": STATEMENT,
    }
