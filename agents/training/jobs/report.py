"""The report of a cycle whose promotion was decided. Drawing holds the interpreter, hence a process of its own."""

from __future__ import annotations

from typing import Any

from agents.training.child import JobChannel
from agents.training.config import CycleConfig
from agents.training.report.document import gather
from agents.training.report.render import write
from app.store import Database
from app.telemetry.logs import set_up_logging


def main(specification: dict[str, Any], _channel: JobChannel) -> dict[str, Any]:
    """Write the report beside the evaluation; returns the names of its files."""
    set_up_logging("training-job")
    config = CycleConfig.model_validate(specification["config"])
    cycle_id = specification["cycle_id"]
    report = gather(
        Database(config.database_url),
        cycle_id,
        config.directory(cycle_id),
        decision=specification["decision"],
        facts=specification["facts"],
        bounds=specification["bounds"],
        threshold=config.compliance_threshold,
    )
    return {"files": [path.name for path in write(report, config.directory(cycle_id))]}


if __name__ == "__main__":
    JobChannel().run(main)
