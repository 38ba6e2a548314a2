"""The component by which the trainer has Jobs train: its rights, its network, and what a Job of it asks for."""

from __future__ import annotations

from pathlib import Path

import kubernetes_validate
import pytest
from deployment import Document, containers, draw_secrets, named, of_kind, pods, render, settings_of
from network_policies import allows
from services import REPOSITORY

from agents.training.cluster.manifest import APP, MEETING_PORT, Run, first_host
from agents.training.cluster.manifest import render as render_job
from app.cluster import check_cluster, cluster_config
from app.settings import Settings
from models.cycle import Cycle

COMPONENT = "training-jobs"
KUBERNETES_VERSION = "1.33"
GOVERNANCE = {"kubernetes.io/metadata.name": "governance"}


@pytest.fixture(scope="module", params=["dev", "production"])
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def plain(overlay: str, tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    return render(overlay, tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def documents(overlay: str, tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    return render(overlay, tmp_path_factory.mktemp("jobs"), COMPONENT)


@pytest.fixture(scope="module")
def settings(documents: list[Document], tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """What the trainer starts with."""
    (trainer,) = [c for c in containers(documents) if c.workload == "constitutional-trainer"]
    return settings_of(trainer, draw_secrets(tmp_path_factory.mktemp("installation") / "secrets"))


@pytest.fixture(scope="module")
def job(settings: Settings) -> Document:
    """A Job that this trainer would make."""
    text = (REPOSITORY / "models" / "examples" / "Cycle.awaiting_approval.json").read_text()
    run = Run(Cycle.model_validate_json(text), 3, settings.training.artifacts / "c" / "jobs" / "3.json", 600.0)
    return render_job(run, cluster_config(settings))


def test_manifests_and_job_are_valid(documents: list[Document], job: Document) -> None:
    for document in [*documents, job]:
        if document["kind"] not in {"ScaledObject", "ServiceMonitor"}:
            kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
    assert all(d["metadata"]["namespace"] == "governance" for d in of_kind(documents, "Role", "RoleBinding", "Service"))


def test_the_trainer_alone_gets_a_token_and_may_do_with_jobs_what_it_does(
    documents: list[Document], plain: list[Document]
) -> None:
    with_token = {
        n: t["spec"]["serviceAccountName"]
        for n, t in pods(documents).items()
        if t["spec"]["automountServiceAccountToken"]
    }
    assert with_token == {"constitutional-trainer": "constitutional-trainer"}
    assert not any(t["spec"]["automountServiceAccountToken"] for t in pods(plain).values())
    assert not of_kind(plain, "Role", "RoleBinding")
    assert not of_kind(documents, "ClusterRole", "ClusterRoleBinding")
    (role,) = of_kind(documents, "Role")
    assert role["rules"] == [
        {"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["create", "get", "list", "delete"]}
    ]
    (binding,) = of_kind(documents, "RoleBinding")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert [(s["name"], s["namespace"]) for s in binding["subjects"]] == [("constitutional-trainer", "governance")]


def test_the_trainers_settings_are_fit_for_jobs(documents: list[Document], settings: Settings) -> None:
    assert settings.training.runner == "kubernetes"
    check_cluster(settings)
    (trainer,) = [c for c in containers(documents) if c.workload == "constitutional-trainer"]
    assert settings.kubernetes.image == trainer.image
    # One folder under one name on both sides.
    claims = {v["name"]: v.get("persistentVolumeClaim", {}).get("claimName") for v in trainer.pod["spec"]["volumes"]}
    mounted = {m["mountPath"]: claims[m["name"]] for m in trainer.raw["volumeMounts"] if claims[m["name"]]}
    assert settings.kubernetes.volumes == mounted


def test_what_a_job_names_is_there(documents: list[Document], job: Document, tmp_path: Path) -> None:
    pod = job["spec"]["template"]["spec"]
    assert job["metadata"]["namespace"] == "governance"
    named(documents, "ServiceAccount", pod["serviceAccountName"])
    named(documents, "PriorityClass", pod["priorityClassName"])
    drawn = {path.name for path in draw_secrets(tmp_path / "secrets").iterdir()}
    for volume in pod["volumes"]:
        if "persistentVolumeClaim" in volume:
            named(documents, "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])
        if "secret" in volume:
            assert volume["secret"]["secretName"] == "flywheel-secrets"
            assert {item["key"] for item in volume["secret"]["items"]} <= drawn
    service = named(documents, "Service", pod["subdomain"])
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert labels.items() >= service["spec"]["selector"].items()
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert [port["port"] for port in service["spec"]["ports"]] == [MEETING_PORT]


def test_a_job_reaches_the_store_and_its_own_machines_and_nothing_else(
    documents: list[Document], job: Document, settings: Settings, overlay: str
) -> None:
    policies = of_kind(documents, "NetworkPolicy")
    here = (job["spec"]["template"]["metadata"]["labels"], GOVERNANCE)
    of_data = ({"app": "postgres"}, {"kubernetes.io/metadata.name": "data"})
    store = (pods(documents)["postgres"]["metadata"]["labels"], GOVERNANCE) if overlay == "dev" else of_data
    assert allows(policies, here, store, 5432, target_is_ours=overlay == "dev")
    assert allows(policies, here, here, MEETING_PORT)
    assert allows(policies, here, here, 41234)
    assert APP in first_host("x", cluster_config(settings))
    for name, template in pods(documents).items():
        there = (template["metadata"]["labels"], GOVERNANCE)
        for container in template["spec"]["containers"]:
            for port in container.get("ports", ()):
                if name != "postgres":
                    assert not allows(policies, here, there, port["containerPort"]), name
        assert not allows(policies, there, here, MEETING_PORT), name
    server = ({}, {"kubernetes.io/metadata.name": "elsewhere"})
    for name, template in pods(documents).items():
        speaks = allows(policies, (template["metadata"]["labels"], GOVERNANCE), server, 6443, target_is_ours=False)
        assert speaks is (name == "constitutional-trainer"), name
    assert not allows(policies, here, server, 6443, target_is_ours=False)
