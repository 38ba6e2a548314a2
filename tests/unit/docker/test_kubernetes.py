"""The rendered manifests: valid by Kubernetes' own schemas, held to the specification and to what the workers say."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml
from deployment import (
    DOCKER,
    SECRETS_AT,
    Container,
    Document,
    compose_containers,
    containers,
    draw_secrets,
    named,
    of_kind,
    pods,
    render,
    settings_of,
)
from network_policies import allows

from app.roles import Role, web_port
from app.settings import Settings
from app.topics import AUDIT_EVENTS, REGISTRY

KUBERNETES_VERSION = "1.33"
CUSTOM = {"ScaledObject", "ServiceMonitor"}
STORES = {"kafka": 9092, "redis": 6379, "postgres": 5432}


@pytest.fixture(scope="module", params=["dev", "production"])
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def documents(overlay: str, tmp_path_factory: pytest.TempPathFactory) -> list[Document]:
    return render(overlay, tmp_path_factory.mktemp(overlay))


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_secrets(tmp_path_factory.mktemp("installation") / "secrets")


def ours(documents: list[Document]) -> list[Container]:
    return [container for container in containers(documents) if container.is_ours]


def test_every_manifest_is_valid(documents: list[Document]) -> None:
    checked = 0
    for document in documents:
        if document["kind"] not in CUSTOM:
            kubernetes_validate.validate(document, KUBERNETES_VERSION, strict=True)
            checked += 1
    assert checked > 40
    assert all(
        d["metadata"]["namespace"] == "governance" for d in documents if d["kind"] not in {"Namespace", "PriorityClass"}
    )


def test_a_manifest_with_a_mistake_is_not_valid(documents: list[Document]) -> None:
    wrong = named(documents, "Deployment", "router") | {"spec": {"replica": 2}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES_VERSION, strict=True)


def test_the_trainer_is_the_specifications(documents: list[Document], overlay: str) -> None:
    deployment = named(documents, "Deployment", "constitutional-trainer")
    labels = {
        "app": "constitutional-trainer",
        "app.kubernetes.io/name": "acgs-lite",
        "app.kubernetes.io/component": "constitutional-trainer",
    }
    annotations = {"acgs-lite.io/constitutional-compliance": "required"}
    template = deployment["spec"]["template"]
    for metadata in (deployment["metadata"], template["metadata"]):
        assert metadata["labels"].items() >= labels.items()
        assert metadata["annotations"].items() >= annotations.items()
    pod = template["spec"]
    (container,) = pod["containers"]
    assert container["image"] == "acgs/constitutional-trainer:v1.0.0"
    assert pod["securityContext"].items() >= {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000}.items()
    assert {
        v["name"]: v["persistentVolumeClaim"]["claimName"] for v in pod["volumes"] if "persistentVolumeClaim" in v
    } == {
        "model-cache": "model-cache-pvc",
        "training-data": "training-data-pvc",
    }
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert (mounts["model-cache"], mounts["training-data"]) == ("/app/models", "/app/data")
    assert {v["name"] for v in container["env"]} >= {
        "CONSTITUTIONAL_HASH",
        "POLICY_ENGINE_URL",
        "AUDIT_ENGINE_URL",
        "COMPLIANCE_THRESHOLD",
    }
    service = named(documents, "Service", "constitutional-trainer")["spec"]
    assert service["type"] == "ClusterIP"
    assert [(port["name"], port["port"]) for port in service["ports"]] == [("http", 8010)]
    assert {d["metadata"]["name"] for d in of_kind(documents, "PersistentVolumeClaim")} == {
        "model-cache-pvc",
        "training-data-pvc",
    }
    if overlay == "production":
        assert deployment["spec"]["replicas"] == 2
        assert container["resources"] == {
            "requests": {"cpu": "2000m", "memory": "8Gi", "nvidia.com/gpu": 1},
            "limits": {"cpu": "4000m", "memory": "16Gi", "nvidia.com/gpu": 1},
        }
        # Two replicas on two machines need disks that both can mount.
        for claim in of_kind(documents, "PersistentVolumeClaim"):
            assert claim["spec"]["accessModes"] == ["ReadWriteMany"]


def test_every_role_both_engines_and_the_migration_are_deployed(documents: list[Document]) -> None:
    commands = [container.arguments for container in ours(documents)]
    wanted = [("worker", role.value) for role in Role]
    wanted += [("policy-engine",), ("audit-engine",), ("db", "migrate"), ("topics", "create")]
    assert sorted(commands) == sorted(wanted)


def test_each_part_starts_with_settings_that_load_and_agree(documents: list[Document], secrets: Path) -> None:
    """Every variable is a known setting, every secret is mounted, addresses name Services at the ports they have."""
    services = {d["metadata"]["name"]: d["spec"]["ports"] for d in of_kind(documents, "Service")}
    for container in ours(documents):
        settings = settings_of(container, secrets)
        for url in (settings.policy_engine.url, settings.audit_engine.url, settings.gate.opa_url):
            parts = urlsplit(url or "")
            assert url is None or parts.port in {port["port"] for port in services[str(parts.hostname)]}, url
        assert settings.web.host == "0.0.0.0"  # noqa: S104 - what a pod's neighbours reach
        port = port_of(container, settings)
        assert container.ports == (() if port is None else (port,)), container.name
        (mounted,) = [v["secret"] for v in container.pod["spec"]["volumes"] if v["name"] == "secrets"]
        items = {item["path"] for item in mounted["items"]}
        for name, value in container.environment.items():
            if value.startswith(SECRETS_AT):
                assert Path(value).name in items, f"{container.name}: {name} names a secret that is not mounted"
    drawn = {path.name for path in secrets.iterdir()}
    for template in pods(documents).values():
        for volume in template["spec"]["volumes"]:
            assert {item["key"] for item in volume.get("secret", {}).get("items", ())} <= drawn


def port_of(container: Container, settings: Settings) -> int | None:
    """Where a container of ours listens, as its settings say."""
    match container.arguments:
        case ("worker", role):
            return web_port(settings, Role(role))
        case ("policy-engine",):
            assert settings.policy_engine.host == "0.0.0.0"  # noqa: S104
            return settings.policy_engine.port
        case ("audit-engine",):
            assert settings.audit_engine.host == "0.0.0.0"  # noqa: S104
            return settings.audit_engine.port
    return None


def test_the_collectors_variables_are_those_of_its_configuration(documents: list[Document]) -> None:
    known = set(re.findall(r"\$\{env:(\w+)", (DOCKER.parent / "otel" / "collector.yaml").read_text()))
    (collector,) = [c for c in containers(documents) if c.name == "otel-collector"]
    assert set(collector.environment) <= known
    ports = {int(v.rpartition(":")[2]) for k, v in collector.environment.items() if k.endswith("_ENDPOINT")}
    assert set(collector.ports) == ports


def test_every_service_leads_to_a_port_of_the_pods_it_selects(documents: list[Document]) -> None:
    for service in of_kind(documents, "Service"):
        chosen = [t for t in pods(documents).values() if matches(service["spec"]["selector"], t)]
        assert len(chosen) == 1, service["metadata"]["name"]
        declared = [port for c in chosen[0]["spec"]["containers"] for port in c.get("ports", ())]
        for port in service["spec"]["ports"]:
            target = port["targetPort"]
            assert target in {p["name"] for p in declared} | {p["containerPort"] for p in declared}
            number = next(p["containerPort"] for p in declared if target in (p["name"], p["containerPort"]))
            assert number == port["port"]


def matches(selector: dict[str, str], template: Document) -> bool:
    return bool(template["metadata"]["labels"].items() >= selector.items())


def test_every_container_is_watched_bounded_and_pinned(documents: list[Document]) -> None:
    same = {container.image.partition(":")[0]: container.image for container in compose_containers()}
    for container in containers(documents):
        assert container.image == same[container.image.partition(":")[0]], "compose has another version"
        resources = container.raw["resources"]
        assert resources["requests"].keys() >= {"cpu", "memory"}
        assert resources["limits"].keys() >= {"cpu", "memory"}
    for workload in of_kind(documents, "Deployment", "StatefulSet"):
        (container,) = workload["spec"]["template"]["spec"]["containers"]
        assert "readinessProbe" in container
        names = {port["name"] for port in container["ports"]}
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            probe = container.get(kind, {})
            for how in ("httpGet", "tcpSocket"):
                assert how not in probe or probe[how]["port"] in names


def test_nothing_runs_as_root_or_writes_to_its_root(documents: list[Document]) -> None:
    for name, template in pods(documents).items():
        pod = template["spec"]
        assert pod["serviceAccountName"] == "flywheel"
        assert pod["automountServiceAccountToken"] is False
        # Else a Service whose name begins with `flywheel` would be refused as an unknown setting.
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        mounted = {v["name"] for v in pod["volumes"]}
        for container in [*pod.get("initContainers", ()), *pod["containers"]]:
            context = container["securityContext"]
            assert context["allowPrivilegeEscalation"] is False, name
            assert context["readOnlyRootFilesystem"] is True, name
            assert context["capabilities"] == {"drop": ["ALL"]}, name
        assert not [v for v in pod["volumes"] if "hostPath" in v]
        assert "tmp" in mounted
    assert named(documents, "Namespace", "governance")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == (
        "restricted"
    )


def test_every_workload_of_ours_survives_a_drain_and_spreads(documents: list[Document]) -> None:
    budgets = {d["metadata"]["name"]: d["spec"] for d in of_kind(documents, "PodDisruptionBudget")}
    classes = {d["metadata"]["name"] for d in of_kind(documents, "PriorityClass")}
    for workload in of_kind(documents, "Deployment", "StatefulSet"):
        name = workload["metadata"]["name"]
        if name in STORES:
            continue
        template = workload["spec"]["template"]
        assert matches(budgets[name]["selector"]["matchLabels"], template)
        assert budgets[name]["maxUnavailable"] == 1
        assert template["spec"]["priorityClassName"] in classes
        (spread,) = template["spec"]["topologySpreadConstraints"]
        assert matches(spread["labelSelector"]["matchLabels"], template)
        assert template["spec"]["terminationGracePeriodSeconds"] >= 30


def test_the_trainer_may_finish_a_step_before_it_ends(documents: list[Document]) -> None:
    from agents.training.child import STOP_GRACE_S

    pod = pods(documents)["constitutional-trainer"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > 3 * STOP_GRACE_S
    assert (
        named(documents, "Deployment", "constitutional-trainer")["spec"]["strategy"]["rollingUpdate"]["maxSurge"] == 0
    )


def needed_edges(documents: list[Document], secrets: Path) -> Iterator[tuple[str, str, int]]:
    """(from, to, port) of every connection that the parts make, told by what each is configured with."""
    clients = {"FLYWHEEL_REDIS__URL_FILE": "redis", "FLYWHEEL_DATABASE__URL_FILE": "postgres"}
    for container in containers(documents):
        who, variables = container.workload, container.environment
        if not container.is_ours:
            if who == "otel-collector" and "KAFKA_BROKERS" in variables:
                yield who, "kafka", STORES["kafka"]
            continue
        settings = settings_of(container, secrets)
        for name, store in clients.items():
            if name in variables:
                yield who, store, STORES[store]
        if container.arguments[0] in {"worker", "topics"}:
            yield who, "kafka", STORES["kafka"]
        if "FLYWHEEL_AUDIT_ENGINE__DATABASE_URL_FILE" in variables:
            yield who, "postgres", STORES["postgres"]
        elif "FLYWHEEL_AUDIT_ENGINE__TOKEN_FILE" in variables:
            yield who, "audit-engine", settings.audit_engine.port
        if "FLYWHEEL_POLICY_ENGINE__TOKEN_FILE" in variables and container.arguments != ("policy-engine",):
            yield who, "policy-engine", settings.policy_engine.port
        if settings.gate.opa_url:
            yield who, "opa", int(urlsplit(settings.gate.opa_url).port or 0)
    (bundles,) = re.findall(r"url: (\S+)", named_start(documents, "ConfigMap", "opa-config")["data"]["config.yaml"])
    yield "opa", str(urlsplit(bundles).hostname), int(urlsplit(bundles).port or 0)


def named_start(documents: list[Document], kind: str, start: str) -> Document:
    (found,) = [d for d in of_kind(documents, kind) if d["metadata"]["name"].startswith(start)]
    return found


def test_the_network_lets_through_what_is_needed_and_nothing_else(
    documents: list[Document], secrets: Path, overlay: str
) -> None:
    policies = of_kind(documents, "NetworkPolicy")
    assert named(policies, "NetworkPolicy", "default-deny")["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }
    labels = {name: template["metadata"]["labels"] for name, template in pods(documents).items()}
    governance = {"kubernetes.io/metadata.name": "governance"}
    data = {"kubernetes.io/metadata.name": "data"}
    needed = set(needed_edges(documents, secrets))
    assert len(needed) >= 20
    for source in labels:
        for target, port in {(t, p) for _, t, p in needed}:
            wanted = (source, target, port) in needed
            there = target in labels
            place = (labels[target], governance) if there else ({"app": target}, data)
            open_ = allows(policies, (labels[source], governance), place, port, target_is_ours=there)
            # A store lets in all that may use it; it has nothing to ask of others.
            if source in STORES and target == source:
                continue
            assert open_ is wanted, f"{source} to {target}:{port} is {'open' if open_ else 'shut'} ({overlay})"
    other = ({"app": "stranger"}, {"kubernetes.io/metadata.name": "elsewhere"})
    for name, template in pods(documents).items():
        for container in template["spec"]["containers"]:
            for port in container.get("ports", ()):
                assert not allows(
                    policies, other, (labels[name], governance), port["containerPort"], source_is_ours=False
                )
    prometheus = ({"app": "prometheus"}, {"kubernetes.io/metadata.name": "monitoring"})
    sender = ({"app": "chat"}, {"kubernetes.io/metadata.name": "apps", "acgs-lite.io/sends-events": "true"})
    for name in ("router", "curator", "constitutional-trainer", "monitor", "policy-engine", "audit-engine", "opa"):
        (port,) = pods(documents)[name]["spec"]["containers"][0]["ports"]
        number = port["containerPort"]
        assert allows(policies, prometheus, (labels[name], governance), number, source_is_ours=False), name
        assert allows(policies, sender, (labels[name], governance), number, source_is_ours=False) is (name == "router")


def test_scaling_reads_the_groups_and_topics_that_the_workers_read(documents: list[Document], overlay: str) -> None:
    scaled = of_kind(documents, "ScaledObject")
    if overlay == "dev":
        assert not scaled
        return
    configuration = named_start(documents, "ConfigMap", "flywheel-config")["data"]
    prefix = Settings().kafka.group_prefix
    roles = {"router": Role.ROUTE, "curator": Role.CURATE}
    assert {d["spec"]["scaleTargetRef"]["name"] for d in scaled} == roles.keys()
    for document in scaled:
        name, spec = document["metadata"]["name"], document["spec"]
        # A number of replicas here and another from the autoscaler would take turns.
        assert "replicas" not in named(documents, "Deployment", name)["spec"]
        assert spec["minReplicaCount"] >= 2
        assert spec["maxReplicaCount"] <= int(configuration["FLYWHEEL_KAFKA__PARTITIONS"])
        for trigger in spec["triggers"]:
            metadata = trigger["metadata"]
            assert metadata["bootstrapServers"] == configuration["FLYWHEEL_KAFKA__BOOTSTRAP_SERVERS"]
            assert metadata["consumerGroup"] == f"{prefix}-{roles[name].value}"
            assert metadata.get("topic", AUDIT_EVENTS.name) in {spec.name for spec in REGISTRY}
            assert int(metadata["lagThreshold"]) > 0
            assert all(isinstance(value, str) for value in metadata.values())


def test_every_part_with_metrics_is_scraped_where_it_shows_them(documents: list[Document], overlay: str) -> None:
    monitors = of_kind(documents, "ServiceMonitor")
    if overlay == "dev":
        assert not monitors
        return
    scraped: dict[str, Any] = {}
    for monitor in monitors:
        (endpoint,) = monitor["spec"]["endpoints"]
        for service in of_kind(documents, "Service"):
            if service["metadata"]["labels"].items() >= monitor["spec"]["selector"]["matchLabels"].items():
                assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
                scraped[service["metadata"]["name"]] = endpoint.get("authorization")
    workers = {"router", "curator", "constitutional-trainer", "monitor"}
    assert scraped.keys() == workers | {"policy-engine", "audit-engine", "opa", "otel-collector"}
    for name, authorization in scraped.items():
        wanted = {"type": "Bearer", "credentials": {"name": "flywheel-secrets", "key": "web_token"}}
        assert authorization == (wanted if name in workers else None), name


def test_a_broken_seal_does_not_keep_evidence_out(documents: list[Document]) -> None:
    """The audit engine is then not ready, and must go on taking entries."""
    (container,) = pods(documents)["audit-engine"]["spec"]["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/health/live"


def test_the_alert_rules_are_applied_as_they_stand() -> None:
    """By the script that the manual pipes into `kubectl apply`."""
    printed = subprocess.run([DOCKER / "install" / "prometheus-rule.sh"], capture_output=True, text=True, check=True)
    rule = yaml.safe_load(printed.stdout)
    assert (rule["apiVersion"], rule["kind"]) == ("monitoring.coreos.com/v1", "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((DOCKER / "prometheus" / "rules.yaml").read_text())
    assert rule["spec"]["groups"]
