"""Every setting, its default and its bounds. The specification's values are the defaults and stand only here."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from app.settings.masking import masked

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
# An empty one is a variable that somebody forgot to fill, and would stand for "anyone may".
Secret = Annotated[SecretStr, Field(min_length=1)]


class Section(BaseModel):
    """A section refuses what it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """What a traceback or a debugger shows: without the passwords that URLs carry."""
        for name, value in super().__repr_args__():
            yield name, masked(value) if isinstance(value, str | Path) else value


_KAFKA_TLS = "kafka.security_protocol says no TLS: use SSL or SASL_SSL"
_REDIS_TLS = "redis.url says no TLS: begin it with rediss://"


def _check_files(section: str, files: tuple[Path | None, ...], tls: bool, remedy: str) -> None:
    """Files of TLS go with TLS, and a certificate with its key: raises ValueError."""
    for name, path in zip(("ca_file", "cert_file", "key_file"), files, strict=True):
        if path is not None and not tls:
            raise ValueError(f"{section}.{name} is set, and {remedy}, or leave it out")
    if (files[1] is None) != (files[2] is None):
        raise ValueError(f"{section}.cert_file and {section}.key_file go together: set both or none")


class ConstitutionSettings(Section):
    """Which constitution is in force, and how strict it is."""

    hash: str = Field("cdd01ef066bc6cf2", description="declared identifier, in every request and event")
    path: Path | None = Field(None, description="YAML document; the default constitution when absent")
    compliance_threshold: Fraction = Field(0.95, description="score from which an answer is compliant")


class JudgeSettings(Section):
    """A chat model that the policy engine asks about texts which its own evaluators would let pass. Off without a URL.

    What it is asked goes to that address: the texts themselves, so choose one that may see them.
    """

    url: str | None = Field(None, description="base of an OpenAI-compatible API, such as http://vllm:8000/v1")
    model: str = Field("", description="the model's name there")
    token: Secret | None = None
    format: Literal["openai_json", "llama_guard"] = Field("openai_json", description="how it is asked and answers")
    role: Literal["lower", "lower_or_raise"] = Field(
        "lower", description="lower: only takes confidence away; lower_or_raise: also settles doubt, never a denial"
    )
    weight: Fraction = Field(1.0, description="its share in the confidence")
    least_harm: Fraction = Field(0.0, description="texts with a lower request_harm are not sent to it")
    timeout_s: float = Field(5.0, gt=0, description="of one attempt")
    deadline_s: float = Field(8.0, gt=0, description="of an evaluation's judgement; below policy_engine.timeout_s")
    batch_deadline_s: float = Field(45.0, gt=0, description="of a batch's judgements")
    retries: int = Field(2, ge=0)
    concurrency: int = Field(8, ge=1, description="judgements under way at a time")
    requests_per_minute: int = Field(600, ge=0, description="0: no limit")
    calls_per_day: int = Field(0, ge=0, description="budget of a day (UTC), retries included; 0: no limit")
    tokens_per_day: int = Field(0, ge=0, description="budget of a day (UTC); 0: no limit")
    max_chars: int = Field(20_000, ge=1, description="longer texts are not sent")
    json_mode: bool = Field(True, description="ask for response_format json_object")
    categories: dict[str, str] = Field(
        default_factory=dict, description="Llama Guard's categories by principle, in place of the usual table"
    )

    @model_validator(mode="after")
    def _is_named(self) -> JudgeSettings:
        if self.url is not None and not self.model.strip():
            msg = f"policy_engine.judge.url={self.url} is set, and judge.model is not: name the model that it serves"
            raise ValueError(msg)
        return self


class PolicyEngineSettings(Section):
    """The policy engine, as a client sees it and as the service starts."""

    url: str = "http://policy-engine:8001"
    host: str = "127.0.0.1"
    port: int = Field(8001, ge=0, le=65535)
    token: Secret | None = None
    timeout_s: float = Field(10.0, gt=0)
    threads: int = Field(1, ge=1, description="of torch; on shared cores more of them take longer")
    evaluators: dict[str, tuple[Literal["rules", "exemplars", "judge"], ...]] = Field(
        default_factory=dict, description="who speaks for a principle, by its id; all of them where it is not named"
    )
    judge: JudgeSettings = JudgeSettings()


class AuditEngineSettings(Section):
    """The audit engine, as a client sees it and as the service starts."""

    url: str = "http://audit-engine:8003"
    host: str = "127.0.0.1"
    port: int = Field(8003, ge=0, le=65535)
    token: Secret | None = Field(None, description="writers'; the installation's own when absent")
    timeout_s: float = Field(10.0, gt=0)
    database_url: str = "sqlite:///var/audit.db"
    digest_key: Secret | None = Field(None, description="keys the digests of event text in entries")
    signing_key: Secret | None = Field(None, description="signs heads of the log: an Ed25519 seed, 64 hex digits")
    retired_public_keys: tuple[str, ...] = Field((), description="those that signed earlier heads, 64 hex digits each")
    checkpoint: Path | None = Field(None, description="file of signed heads; data_dir/audit-heads.jsonl when absent")
    seal_interval_s: float = Field(60.0, gt=0, description="how often the newest entry is signed")
    spool_bytes: int = Field(256 * 1024 * 1024, ge=1024 * 1024, description="with more waiting, evaluations fail")
    retention_days: int = Field(2555, ge=2555, description="entries younger than this are never pruned")


class KafkaSettings(Section):
    """The broker and how we speak to it."""

    bootstrap_servers: str = "127.0.0.1:9092"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT", description="as the broker's listener names it: SSL is TLS, SASL asks for user name and password"
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    username: str | None = Field(None, min_length=1)
    password: Secret | None = None
    ca_file: Path | None = Field(None, description="PEM: who may have signed the broker's certificate; else the system")
    cert_file: Path | None = Field(None, description="PEM: our own certificate, where the broker asks for one")
    key_file: Path | None = Field(None, description="PEM, not encrypted: its private key")
    replication_factor: int = Field(1, ge=1)
    partitions: int = Field(4, ge=1)
    declare_topics: bool = Field(True, description="create missing topics at start; off for librdkafka's mock broker")
    compression: Literal["gzip", "snappy", "lz4", "zstd", "none"] = "gzip"
    linger_ms: int = Field(100, ge=0)
    session_timeout_s: float = Field(10.0, gt=0, description="how long a killed worker blocks its partitions")
    group_prefix: str = Field("flywheel", description="prefix of the consumer groups, one a role")

    @model_validator(mode="after")
    def _security_fits(self) -> KafkaSettings:
        protocol = self.security_protocol
        named = {"username": self.username, "password": self.password}
        if protocol.startswith("SASL"):
            if missing := [f"kafka.{name}" for name, value in named.items() if value is None]:
                raise ValueError(f"kafka.security_protocol={protocol} needs {' and '.join(missing)}")
        elif given := [f"kafka.{name}" for name, value in named.items() if value is not None]:
            told = f"kafka.security_protocol={protocol} sends no password, and {' and '.join(given)} is set"
            raise ValueError(f"{told}: use SASL_SSL, or leave it out")
        if protocol == "SASL_PLAINTEXT" and self.sasl_mechanism == "PLAIN":
            told = "kafka.sasl_mechanism=PLAIN over kafka.security_protocol=SASL_PLAINTEXT sends the password in clear"
            raise ValueError(f"{told}: use SASL_SSL, or a SCRAM mechanism")
        _check_files("kafka", (self.ca_file, self.cert_file, self.key_file), protocol.endswith("SSL"), _KAFKA_TLS)
        return self


class RedisSettings(Section):
    """Redis holds claims, counters and caches; it may vanish at any time."""

    url: str = "redis://127.0.0.1:6379/0"
    cluster: bool = Field(False, description="Redis Cluster: url names one of its nodes")
    username: str | None = Field(None, min_length=1, description="ACL user; may stand in url instead")
    password: Secret | None = Field(None, description="may stand in url instead")
    ca_file: Path | None = Field(None, description="PEM: who may have signed Redis' certificate; else the system")
    cert_file: Path | None = Field(None, description="PEM: our own certificate, where Redis asks for one")
    key_file: Path | None = Field(None, description="PEM, not encrypted: its private key")

    @model_validator(mode="after")
    def _security_fits(self) -> RedisSettings:
        parts = urlsplit(self.url)
        if self.username is not None and self.password is None:
            raise ValueError("redis.username is set, and redis.password is not: an ACL user has one")
        if self.password is not None and "@" in parts.netloc:
            raise ValueError("redis.password is set, and redis.url names a user or password too: leave one out")
        _check_files("redis", (self.ca_file, self.cert_file, self.key_file), parts.scheme == "rediss", _REDIS_TLS)
        return self

    @model_validator(mode="after")
    def _cluster_has_one_database(self) -> RedisSettings:
        if self.cluster and urlsplit(self.url).path.strip("/") not in {"", "0"}:
            msg = "redis.cluster is on, and redis.url names a database: a cluster has only 0; end the URL with /0"
            raise ValueError(msg)
        return self


class DatabaseSettings(Section):
    """Where examples, cycles, ledger and outbox live."""

    url: str = "sqlite:///var/flywheel.db"


class RoutingSettings(Section):
    """What the router keeps, and its bounds on input. `flywheel routing set` changes some of it in a running system."""

    trigger_threshold: Fraction = 0.8
    routine_threshold: Fraction = 0.95
    policy_evaluation_sample_rate: float = Field(0.2, gt=0.0, le=1.0)
    delivery: Literal["at_least_once", "exactly_once"] = Field(
        "at_least_once",
        description="exactly_once: output and offsets in Kafka transactions; readers must be read_committed",
    )
    dedup_window_s: int = Field(3600, ge=1, le=2**31 - 1)
    dedup_on_outage: Literal["wait", "pass"] = "wait"
    dedup_buckets: int = Field(16, ge=1)
    batch_messages: int = Field(5000, ge=1, description="Kafka messages routed together at most")
    batch_wait_s: float = Field(0.02, ge=0, description="how long a batch waits for more under load")
    max_message_bytes: int = Field(
        32 * 1024 * 1024, ge=1, description="of one message, unpacked; the collector's bound too"
    )
    max_records: int = Field(20_000, ge=1, description="records in one message")
    max_depth: int = Field(32, ge=1)
    max_string: int = Field(1024 * 1024, ge=1, description="characters of one text")
    dead_letters_max_share: Fraction = Field(0.5, description="of the last records; with more the worker stops")
    dead_letters_window: int = Field(10_000, ge=1, le=1_000_000, description="how many last records the share is of")
    dead_letters_max_run: int = Field(
        5_000, ge=0, le=2**31 - 1, description="dead letters in a row on one partition; 0: no bound"
    )
    live_poll_s: float = Field(1.0, gt=0, description="how often live settings are copied to Redis and read there")


class PiiSettings(Section):
    """Scrubbing of personal data."""

    router: Literal["scrub", "detect", "off"] = "scrub"
    subject_key: Secret | None = Field(None, description="HMAC key of subject tokens; one for the ledger's life")
    training_guard: Literal["table", "presidio"] = Field(
        "table", description="what keeps residual personal data from training; presidio: the table, and Presidio"
    )
    presidio_model: str = Field("en_core_web_lg", min_length=1, description="spaCy pipeline: a package or a folder")
    presidio_score: Fraction = Field(0.6, description="findings of Presidio count from this score")
    presidio_entities: tuple[str, ...] = Field(
        (
            *("PERSON", "EMAIL_ADDRESS", "PHONE_NUMBER", "CREDIT_CARD", "IBAN_CODE", "IP_ADDRESS", "US_SSN"),
            *("US_PASSPORT", "US_DRIVER_LICENSE", "US_BANK_NUMBER", "US_ITIN", "MEDICAL_LICENSE"),
        ),
        min_length=1,
        description="what Presidio looks for",
    )


class CurationSettings(Section):
    """When a cycle opens and what it takes."""

    min_examples: int = Field(128, ge=1, description="new units (subjects, or examples without one) that open a cycle")
    settle_s: float = Field(30.0, ge=0, description="a burst of examples is taken whole after this pause")
    cooldown_s: float = Field(3600.0, ge=0)
    few_examples: int = Field(48, ge=1, description="new units that are enough where age or drift opens a cycle")
    max_age_s: float = Field(7 * 86400.0, gt=0, description="the oldest waiting example opens a cycle after this")
    drift_half_life: float = Field(500.0, gt=0, description="evaluations after which one counts half in adherence")
    drift_min_weight: float = Field(200.0, ge=1, description="evaluations that adherence must rest on to open a cycle")
    held_out_share: Fraction = Field(0.1, description="by keyed hash of the normalised prompt, never trained on")
    class_shares: dict[str, Fraction] = Field(
        default_factory=dict, description="share of a violation type's examples that is taken, by keyed hash; else all"
    )
    near_duplicate: float = Field(
        0.8, gt=0, le=1, description="Jaccard likeness to a training prompt from which an evaluation prompt is left out"
    )
    benign_ratio: float = Field(0.5, ge=0, description="public benign prompts for each event example")
    text_retention_days: float = Field(365.0, gt=0, description="examples lose their text after this")
    digest_key: Secret | None = Field(None, description="keys manifests' digests, splits and random streams")
    feedback_key: Secret | None = Field(None, description="signs corrections that come by POST /api/v1/feedback")


class GenerationSettings(Section):
    """How the student answers."""

    max_new_tokens: int = Field(512, ge=1)
    temperature: float = Field(0.7, ge=0)
    prompt_tokens: int = Field(2048, ge=16, description="prompts are truncated here")
    batch_size: int = Field(32, ge=1)
    system_message: str = "You are a helpful assistant."


class RevisionSettings(Section):
    """Critique and revision."""

    max_rounds: int = Field(3, ge=1, le=3)
    constitutional_weight: Fraction = 0.8
    max_new_tokens: int = Field(128, ge=1)


class TeacherSettings(Section):
    """A larger model that revises in the student's place. Event text is sent to it: opt-in, and gated by policy."""

    url: str | None = Field(None, description="base of an OpenAI-compatible API, such as http://vllm:8000/v1")
    model: str = Field("", description="the name that the endpoint serves it under")
    token: Secret | None = Field(None, description="the endpoint's bearer token")
    send_event_text: bool = Field(
        False, description="prompts and answers may be sent there, once the gate and a reviewer permit it for a cycle"
    )
    opening: Literal["ask", "continue"] = Field(
        "ask", description="how it is told to begin: in words, or by a turn to continue (vLLM's continue_final_message)"
    )
    max_new_tokens: int = Field(512, ge=1)
    timeout_s: float = Field(120.0, gt=0, description="of one request")
    retries: int = Field(4, ge=0)
    concurrency: int = Field(8, ge=1)
    tokens_per_cycle: int = Field(0, ge=0, description="a cycle fails rather than use more; 0 is no limit")

    @model_validator(mode="after")
    def _complete(self) -> TeacherSettings:
        if not self.send_event_text:
            return self
        parts = urlsplit(self.url or "")
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            msg = f"teacher.url={self.url!r}: give the base of an OpenAI-compatible API, such as http://vllm:8000/v1"
            raise ValueError(msg)
        if not self.model.strip():
            msg = "teacher.model is empty: name the model that the endpoint serves"
            raise ValueError(msg)
        return self


class PrivacySettings(Section):
    """The budget of a data domain, and the mechanism's parameters."""

    cycle_targets: tuple[float, ...] = Field((4.0, 6.0, 8.0), description="cumulative epsilon after each cycle")
    epsilon: float = Field(8.0, gt=0, le=8.0, description="the whole budget of a domain")
    delta: float = Field(1e-5, gt=0, le=1e-5)
    max_grad_norm: float = Field(1.0, gt=0)
    fixed_seed: int | None = Field(None, description="makes noise repeatable and marks the run non-private")

    @model_validator(mode="after")
    def _targets_grow_within_budget(self) -> PrivacySettings:
        targets = self.cycle_targets
        if not targets or list(targets) != sorted(set(targets)):
            msg = f"privacy.cycle_targets={targets!r} must be a growing list, such as [4, 6, 8]"
            raise ValueError(msg)
        if targets[-1] > self.epsilon:
            msg = f"privacy.cycle_targets ends at {targets[-1]}, above privacy.epsilon={self.epsilon}: lower it"
            raise ValueError(msg)
        return self


class TrainingSettings(Section):
    """The student and its fine-tuning."""

    base_model: str = Field("SmolLM2-135M-Instruct", description="path, hub name, or the name of the built-in model")
    risk_level: Literal["low", "medium", "high", "critical"] = Field("low", description="of the use the model serves")
    model_cache: Path = Path("var/cache/models")
    artifacts: Path = Path("var/models")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    lora_rank: int = Field(16, ge=1)
    lora_alpha: int = Field(32, ge=1)
    lora_dropout: Fraction = 0.1
    target_modules: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    epochs: int = Field(10, ge=1)
    batch_size: int = Field(128, ge=1, description="expected logical batch; Poisson sampled")
    micro_batch: int = Field(16, ge=1)
    learning_rate: float = Field(5e-3, gt=0)
    max_tokens: int = Field(512, ge=16, description="tokens of one training example")
    threads: int = Field(2, ge=1)
    processes: int = Field(1, ge=1, description="train in so many processes by torchrun; with GPUs, one each")
    runner: Literal["process", "kubernetes"] = Field(
        "process", description="what trains: a child of the worker, or a Kubernetes Job (section `kubernetes`)"
    )
    nodes: int = Field(1, ge=1, description="machines that share a training Job, each with training.processes")
    lease_s: float = Field(30.0, gt=0, description="a dead worker's lease is taken over after this")
    poll_s: float = Field(1.0, gt=0)
    job_timeout_s: float = Field(6 * 3600.0, gt=0)
    job_memory_gb: float = Field(0.0, ge=0, description="of each process of a job, without its GPU's; 0: no limit")

    @model_validator(mode="after")
    def _nodes_are_a_clusters(self) -> TrainingSettings:
        if self.nodes > 1 and self.runner == "process":
            msg = f"training.nodes={self.nodes} needs training.runner=kubernetes: or raise training.processes here"
            raise ValueError(msg)
        return self


class KubernetesSettings(Section):
    """The Jobs that train where training.runner is kubernetes. Needs the extra `kubernetes`."""

    namespace: str = Field("governance", min_length=1)
    image: str = Field("acgs/constitutional-trainer:v1.0.0", min_length=1)
    secret: str = Field("flywheel-secrets", description="Secret with the keys database_url and digest_key")
    volumes: dict[str, str] = Field(
        {"/app/models": "model-cache-pvc", "/app/data": "training-data-pvc"},
        description="claims by the path they are mounted at, in the worker and in the Jobs alike",
    )
    service_account: str = Field("flywheel", description="of the Jobs' pods, which get no token of it")
    service: str = Field("constitutional-training", description="headless Service over the Jobs' pods")
    priority_class: str | None = "flywheel-training"
    scheduler: str | None = Field(None, description="schedulerName; the cluster's default when absent")
    labels: dict[str, str] = Field(default_factory=dict, description="besides ours, such as a queue's name")
    node_selector: dict[str, str] = Field(default_factory=dict)
    cpu: str = Field("4", description="of each node, as request and limit")
    memory: str = Field("16Gi", description="of each node, as request and limit")
    gpus: int = Field(1, ge=0, description="of each node (nvidia.com/gpu)")
    start_s: float = Field(3600.0, gt=0, description="how long a Job may wait for its machines")
    keep_s: int = Field(86400, ge=60, description="how long the cluster keeps a Job that has ended")
    poll_s: float = Field(5.0, gt=0, description="how often the API server is asked how a Job is")
    timeout_s: float = Field(10.0, gt=0, description="of one request to the API server")
    kubeconfig: Path | None = Field(None, description="way to the API server; the pod's service account when absent")


class EvaluationSettings(Section):
    """What the models are compared on, and which beside base and candidate. The loss bound needs no baseline."""

    suites: tuple[Path, ...] = Field(
        (),
        description="JSON lines (prompt, expected comply|refuse, category), or CSV (prompt, type, label safe|unsafe)",
    )
    max_new_tokens: int = Field(64, ge=1)
    baselines: tuple[Literal["in_context", "champion"], ...] = Field(
        ("in_context", "champion"),
        description="whose answers are compared too: the base model's with examples before the prompt, the champion's",
    )
    in_context_examples: int = Field(4, ge=1, le=32, description="of the constitution, before each prompt")
    public_prompts: int = Field(
        1000, ge=0, description="of the constitution's prompts kept for evaluation, at most so many beside the suites"
    )


class GateSettings(Section):
    """The policy gate: OPA by URL, else regopy in process."""

    opa_url: str | None = Field(None, description="OPA's REST API; the same policies in process when absent")
    opa_token: Secret | None = Field(None, description="what OPA asks of its callers")
    timeout_s: float = Field(2.0, gt=0)
    data: Literal["files", "sql"] = Field("files", description="where users, GPU hours used and resources stand")
    cache_s: int = Field(300, ge=1, description="how long a decision about inference is kept in Redis")
    cache_key: Secret | None = Field(None, description="authenticates what the decision cache holds")
    policies: Path | None = Field(None, description="folder of policies, data and cases; the project's own when absent")
    bounds: dict[str, float] = Field(default_factory=dict, description="overrides of policies/rego/data/bounds.json")
    approval_hours: float = Field(72.0, gt=0, description="how long a reviewer's word holds")


class WatchSettings(Section):
    """The watch over champions. Below which adherence, over how many evaluations, stands among the gate's bounds."""

    half_life: float = Field(
        500.0, gt=0, description="evaluations after which one counts half in a champion's adherence"
    )
    interval_s: float = Field(5.0, gt=0, description="how often champions are looked at")


class MlflowSettings(Section):
    """The mirror of the registry in MLflow, kept by the training workers. SQL decides; MLflow shows."""

    enabled: bool = Field(True, description="mirror at all; without the mlflow package there is no mirror either")
    tracking_uri: str | None = Field(
        None, description="an MLflow server; a SQLite file under training.artifacts if absent"
    )
    experiment: str = Field("constitutional-flywheel", min_length=1, max_length=200)
    interval_s: float = Field(5.0, gt=0, description="how often the registry is looked at")
    retry_s: float = Field(60.0, gt=0, description="the longest pause between attempts while MLflow is away")
    timeout_s: float = Field(20.0, gt=0, description="of one request to an MLflow server")


class CostSettings(Section):
    """Prices per million served tokens in US dollars; the report prints them beside what follows from them."""

    teacher_per_million: float = Field(10.0, gt=0, description="a large hosted model, output tokens")
    teacher_prompt_per_million: float = Field(2.5, ge=0, description="the same model, input tokens")
    machine_per_hour: float = Field(0.10, gt=0, description="the machine that serves and trains the student")
    traffic_million: float = Field(
        100.0, gt=0, description="million output tokens asked for while a model serves; they bear its cycle's own cost"
    )
    target_saving: Fraction = Field(0.986, description="the saving that the report holds the measured one against")


class WebSettings(Section):
    """Where a worker's web server listens, and who may use it."""

    host: str = "127.0.0.1"
    route_port: int = Field(6066, ge=0, le=65535)
    curate_port: int = Field(6067, ge=0, le=65535)
    train_port: int = Field(8010, ge=0, le=65535)
    monitor_port: int = Field(8000, ge=0, le=65535)
    access: Literal["open", "tokens"] = Field(
        "open", description="tokens: only who presents one (`flywheel access`); open: anybody, on loopback alone"
    )
    token: Secret | None = Field(
        None, description="bearer token of services (scrapers, emitters); where it is set, access is never open"
    )
    public_url: str | None = Field(None, description="where browsers reach the pages; https makes cookies Secure")
    session_key: Secret | None = Field(None, description="signs browsers' sessions; one for all workers")
    session_hours: float = Field(12.0, gt=0, description="how long a browser stays signed in")
    proxy_addresses: tuple[str, ...] = Field((), description="addresses or networks of trusted proxies")
    proxy_header: str | None = Field(
        None, description="names the person that a trusted proxy signed in; their rights: `flywheel access grant`"
    )
    reads_per_minute: int = Field(600, ge=1, description="of one caller; with more, 429")
    writes_per_minute: int = Field(60, ge=1, description="of one caller, reviews aside; with more, 429")
    feedback_per_minute: int = Field(6000, ge=1, description="reviews of one caller; with more, 429")
    failures_per_minute: int = Field(10, ge=1, description="refused tokens from one address; with more, 429")
    stalled_s: float = Field(300.0, gt=0, description="/health/live fails where nothing is committed for so long")
    max_body_bytes: int = Field(4 * 1024 * 1024, ge=1)
    max_decompressed_bytes: int = Field(16 * 1024 * 1024, ge=1)
    max_requests: int = Field(64, ge=1, description="OTLP requests under way at a time; with more, 429")

    @property
    def is_open(self) -> bool:
        """Whether nobody is asked who they are: for development, on loopback."""
        return self.access == "open" and self.token is None and self.proxy_header is None

    @model_validator(mode="after")
    def _no_open_door(self) -> WebSettings:
        if self.is_open and self.host not in {"127.0.0.1", "::1", "localhost"}:
            msg = (
                f"web.host={self.host} is not loopback, and nobody is asked for a token: set web.access=tokens or "
                "web.token, or listen on 127.0.0.1"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _proxies_are_known(self) -> WebSettings:
        for address in self.proxy_addresses:
            try:
                ip_network(address)
            except ValueError:
                msg = f"web.proxy_addresses holds {address!r}: give an address or a network, such as 10.0.0.0/24"
                raise ValueError(msg) from None
        if self.proxy_header is not None and not self.proxy_addresses:
            msg = f"web.proxy_header={self.proxy_header} is set, and web.proxy_addresses is empty: name the proxies"
            raise ValueError(msg)
        return self

    @field_validator("public_url")
    @classmethod
    def _public_url_is_one(cls, value: str | None) -> str | None:
        return None if value is None else _http_url(value, "the pages' address is http(s)://host[:port]").rstrip("/")


class WebhookSettings(Section):
    """Whom to wake: a receiver of signed requests (Standard Webhooks) about approvals, rollbacks and budgets."""

    url: str | None = Field(None, description="where notices are sent; nobody is told when absent")
    secret: Secret | None = Field(None, description="signs them; the receiver's, at least 24 characters")
    timeout_s: float = Field(10.0, gt=0, description="of one attempt")
    most_wait_s: float = Field(600.0, gt=0, description="between two attempts")
    give_up_hours: float = Field(72.0, gt=0, description="a notice that is older is given up, and kept as refused")

    @field_validator("url")
    @classmethod
    def _url_is_one(cls, value: str | None) -> str | None:
        return None if value is None else _http_url(value, "a webhook's receiver is http(s)://host/path")

    @model_validator(mode="after")
    def _is_signed(self) -> WebhookSettings:
        if self.url is not None and (self.secret is None or len(self.secret.get_secret_value()) < 24):
            msg = "webhook.url is set, and webhook.secret is absent or shorter than 24 characters: set it, random"
            raise ValueError(msg)
        return self


def _http_url(value: str, form: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError(form)
    return value


class MonitoringSettings(Section):
    """Polling of the policy and audit engines."""

    interval_s: float = Field(15.0, gt=0)
    retry_interval_s: float = Field(60.0, gt=0)


class LogSettings(Section):
    """Structured logs."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    format: Literal["auto", "json", "text"] = Field("auto", description="auto: text on a terminal, else JSON")


class TelemetrySettings(Section):
    """Traces of the router's work. Metrics are scraped from the workers' web servers."""

    otlp_endpoint: str | None = Field(
        None,
        description="where traces go by OTLP: http(s)://host:4318, or grpc(s)://host:4317; no traces when absent",
    )
    trace_sample_rate: Fraction = Field(0.01, description="of the traces, and of events without one, that are followed")

    @field_validator("otlp_endpoint")
    @classmethod
    def _endpoint_is_one(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https", "grpc", "grpcs"} or not parts.hostname:
            msg = "an OTLP receiver is http://host:4318, https://host, grpc://host:4317 or grpcs://host"
            raise ValueError(msg)
        if parts.scheme.startswith("grpc") and parts.path.strip("/"):
            msg = "gRPC has no path: end the URL with the port"
            raise ValueError(msg)
        return value


class Settings(Section):
    """The whole configuration."""

    data_dir: Path = Field(Path("var"), description="holds all that a run leaves")
    constitution: ConstitutionSettings = ConstitutionSettings()
    policy_engine: PolicyEngineSettings = PolicyEngineSettings()
    audit_engine: AuditEngineSettings = AuditEngineSettings()
    kafka: KafkaSettings = KafkaSettings()
    redis: RedisSettings = RedisSettings()
    database: DatabaseSettings = DatabaseSettings()
    routing: RoutingSettings = RoutingSettings()
    pii: PiiSettings = PiiSettings()
    curation: CurationSettings = CurationSettings()
    generation: GenerationSettings = GenerationSettings()
    revision: RevisionSettings = RevisionSettings()
    teacher: TeacherSettings = TeacherSettings()
    privacy: PrivacySettings = PrivacySettings()
    training: TrainingSettings = TrainingSettings()
    kubernetes: KubernetesSettings = KubernetesSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    gate: GateSettings = GateSettings()
    watch: WatchSettings = WatchSettings()
    mlflow: MlflowSettings = MlflowSettings()
    cost: CostSettings = CostSettings()
    web: WebSettings = WebSettings()
    webhook: WebhookSettings = WebhookSettings()
    monitoring: MonitoringSettings = MonitoringSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    log: LogSettings = LogSettings()
