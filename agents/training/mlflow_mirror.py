"""MLflow as a mirror of the registry: a run and a model version for each version, aliases for champion and candidate.

Whatever is made carries the version's id as a tag and is looked for by it first, so a crash in between makes nothing
twice. No event text goes there: parameters and figures, the adapter, the statement, the evaluation, clean reports.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from agents.training.adapter import require_digest
from agents.training.mirror import MirrorAway, MirrorLost, VersionView

logger = logging.getLogger(__name__)

VERSION_TAG = "flywheel.version_id"
MODEL_TAG = "flywheel.model_id"
DIGEST_TAG = "flywheel.adapter_digest"
STATUS_TAG = "flywheel.status"
MAX_METRICS = 900
MAX_PARAM = 500
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_\-./ ]")
_ENDED = {"promoted": "FINISHED", "rejected": "FINISHED", "failed": "FAILED", "cancelled": "KILLED"}


class MlflowMissing(RuntimeError):
    """The `mlflow` package is not installed."""


class MlflowMirror:
    """A client of one tracking server or of a SQLite file. Not safe to share between threads."""

    def __init__(self, uri: str, experiment: str, artifacts: Path | None, timeout_s: float) -> None:
        """`artifacts`: where a mirror without a server keeps them. Raises `MlflowMissing`; nothing connects here."""
        # Before the package is imported: it reads them then. It would tell its makers of every run.
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ.setdefault("DO_NOT_TRACK", "true")
        os.environ.setdefault("MLFLOW_CONFIGURE_LOGGING", "false")
        # Who waits for a server that is away is the mirror, not each of its requests.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(math.ceil(timeout_s)))
        try:
            from mlflow import MlflowClient
            from mlflow.exceptions import MlflowException
        except ImportError as error:
            raise MlflowMissing(f"mlflow is not installed ({error}): install the train extra") from None
        self._error = MlflowException
        self._experiment = experiment
        self._artifacts = artifacts
        self._client = MlflowClient(tracking_uri=uri, registry_uri=uri)
        self._experiment_id: str | None = None

    def show_version(self, view: VersionView, remote: dict[str, Any]) -> dict[str, Any]:
        """See `agents.training.mirror.Mirror`."""
        shown: dict[str, Any] = self._asked(lambda: self._show_version(view, remote))
        return shown

    def show_aliases(self, model_id: str, named: dict[str, dict[str, Any] | None]) -> None:
        """See `agents.training.mirror.Mirror`."""
        self._asked(lambda: self._show_aliases(model_id, named))

    def _show_version(self, view: VersionView, remote: dict[str, Any]) -> dict[str, Any]:
        version = view.version
        run = self._run(view, remote)
        run_id = run.info.run_id
        if not remote:
            self._describe(run_id, view)
        if version.evaluation:
            self._measure(run_id, view)
        for report in view.reports:
            self._client.log_artifact(run_id, str(report))
        self._client.set_tag(run_id, STATUS_TAG, view.status)
        ended = _ENDED.get(view.cycle.state.value)
        if ended is not None:
            self._client.set_terminated(run_id, ended, _ms(view.cycle.updated_at))
        number = self._model_version(run, view, remote)
        name = registered_name(version.model_id)
        self._client.set_model_version_tag(name, number, STATUS_TAG, view.status)
        return {"run_id": run_id, "version": number}

    def _run(self, view: VersionView, remote: dict[str, Any]) -> Any:
        if "run_id" in remote:
            return self._client.get_run(remote["run_id"])
        experiment = self._experiment_of_ours()
        wanted = f"tags.`{VERSION_TAG}` = '{view.version.version_id}'"
        found = self._client.search_runs([experiment], filter_string=wanted, max_results=1)
        if found:
            return found[0]
        tags = {
            VERSION_TAG: view.version.version_id,
            MODEL_TAG: view.version.model_id,
            DIGEST_TAG: view.version.digest,
        }
        return self._client.create_run(
            experiment, start_time=_ms(view.cycle.created_at), tags=tags, run_name=view.version.version_id
        )

    def _describe(self, run_id: str, view: VersionView) -> None:
        version, cycle = view.version, view.cycle
        plan = {} if cycle.plan is None else cycle.plan.model_dump(mode="json")
        if cycle.plan is not None:
            plan["target_modules"] = ",".join(cycle.plan.target_modules)
        given = {
            "base_model": version.base_model,
            "model_id": version.model_id,
            "domain": cycle.domain,
            "trigger_type": cycle.trigger_type.value,
            "plan": plan,
            "privacy": {
                name: value for name, value in version.statement.items() if not isinstance(value, list | tuple)
            },
        }
        for name, value in _leaves(given):
            # A parameter is written once for all; what another attempt wrote is the same.
            self._client.log_param(run_id, name, str(value)[:MAX_PARAM])
        adapter = Path(version.path)
        require_digest(adapter, version.digest)
        self._client.log_artifacts(run_id, str(adapter), "adapter")
        self._client.log_dict(run_id, version.statement, "statement.json")

    def _measure(self, run_id: str, view: VersionView) -> None:
        from mlflow.entities import Metric

        evaluation: Mapping[str, Any] = view.version.evaluation
        # One time for all attempts: a figure that is logged again is the same point.
        evaluated = evaluation.get("evaluated_at")
        stamp = int(evaluated * 1000) if isinstance(evaluated, int | float) else _ms(view.cycle.updated_at)
        figures = {
            "evaluation": evaluation,
            "training": view.cycle.facts.get("training", {}),
            "privacy": view.version.statement,
        }
        metrics = [
            Metric(name, float(value), stamp, 0)
            for name, value in _leaves(figures)
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        ]
        self._client.log_batch(run_id, metrics=metrics[:MAX_METRICS])
        if view.is_clean:
            self._client.log_dict(run_id, dict(evaluation), "evaluation.json")

    def _model_version(self, run: Any, view: VersionView, remote: dict[str, Any]) -> str:
        if "version" in remote:
            return str(remote["version"])
        name = registered_name(view.version.model_id)
        try:
            self._client.create_registered_model(name, tags={MODEL_TAG: view.version.model_id})
        except self._error as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        run_id = run.info.run_id
        found = [one for one in self._client.search_model_versions(f"run_id = '{run_id}'") if one.name == name]
        if found:
            return str(found[0].version)
        made = self._client.create_model_version(
            name,
            source=f"{run.info.artifact_uri}/adapter",
            run_id=run_id,
            tags={VERSION_TAG: view.version.version_id, DIGEST_TAG: view.version.digest},
            description=f"{view.version.base_model} with the LoRA adapter of cycle {view.version.cycle_id}",
        )
        return str(made.version)

    def _show_aliases(self, model_id: str, named: dict[str, dict[str, Any] | None]) -> None:
        name = registered_name(model_id)
        present = self._client.get_registered_model(name).aliases
        for alias, remote in named.items():
            if remote is not None:
                self._client.set_registered_model_alias(name, alias, str(remote["version"]))
            elif alias in present:
                self._client.delete_registered_model_alias(name, alias)

    def _experiment_of_ours(self) -> str:
        if self._experiment_id is None:
            found = self._client.get_experiment_by_name(self._experiment)
            if found is None:
                location = None if self._artifacts is None else self._artifacts.absolute().as_uri()
                self._experiment_id = str(self._client.create_experiment(self._experiment, artifact_location=location))
            else:
                self._experiment_id = str(found.experiment_id)
        return self._experiment_id

    def _asked(self, work: Any) -> Any:
        try:
            return work()
        except self._error as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                self._experiment_id = None
                raise MirrorLost(_first_line(error)) from error
            self._require_answer(error)
            raise
        except OSError as error:
            self._require_answer(error)
            raise

    def _require_answer(self, error: Exception) -> None:
        """Raise `MirrorAway` where MLflow answers nothing at all: then it was not for the thing's own sake."""
        try:
            self._client.search_experiments(max_results=1)
        except Exception as away:  # noqa: BLE001 - whatever it is, it is not the thing that was shown
            raise MirrorAway(_first_line(away)) from error


def registered_name(model_id: str) -> str:
    """A model's name in MLflow, which takes no slash and no colon; the tag `flywheel.model_id` has it as it is."""
    return model_id.replace("/", "--").replace(":", "--")


def _leaves(value: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and what stands there, of nested mappings; lists and what is none are left out."""
    for key, inner in value.items():
        name = f"{path}.{_NOT_IN_NAMES.sub('_', str(key))}" if path else str(key)
        if isinstance(inner, Mapping):
            yield from _leaves(inner, name)
        elif inner is not None and not isinstance(inner, list | tuple):
            yield name[:250], inner


def _ms(stamp: str) -> int:
    return int(datetime.fromisoformat(stamp).timestamp() * 1000)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
