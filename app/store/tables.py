"""The schema. Migrations under `migrations/` build it; a test holds the two together."""

from __future__ import annotations

import sqlalchemy as sa

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_name)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}
metadata = sa.MetaData(naming_convention=NAMING)

# Long enough for any state of `models.cycle.CycleState`.
_STATE = sa.String(32)
_STAMP = sa.String(32)

examples = sa.Table(
    "examples",
    metadata,
    sa.Column("example_id", sa.String(64), primary_key=True),
    sa.Column("service", sa.Text, nullable=False),
    sa.Column("identity", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("event_id", sa.Text),
    sa.Column("classification", sa.String(32), nullable=False),
    sa.Column("topic", sa.Text, nullable=False),
    sa.Column("partition", sa.Integer, nullable=False),
    sa.Column("offset", sa.BigInteger, nullable=False),
    sa.Column("trace_id", sa.String(64)),
    # Of followed events alone: the spans that led here, as traceparents.
    sa.Column("trace_links", sa.String(120)),
    sa.Column("domain", sa.Text, nullable=False),
    sa.Column("model_id", sa.Text, nullable=False),
    sa.Column("subject_token", sa.Text),
    sa.Column("workload_id", sa.Text),
    sa.Column("violation_type", sa.Text, nullable=False),
    sa.Column("compliance_score", sa.Float),
    sa.Column("prompt", sa.Text, nullable=False),
    sa.Column("response", sa.Text, nullable=False),
    sa.Column("corrected_response", sa.Text),
    sa.Column("correction_signed", sa.Boolean, nullable=False, default=False),
    sa.Column("priority", sa.Integer, nullable=False, default=0),
    sa.Column("status", _STATE, nullable=False),
    sa.Column("cycle_id", sa.String(64)),
    sa.Column("created_at", _STAMP, nullable=False),
    sa.Index("ix_examples_model", "model_id", "domain", "status"),
    sa.Index("ix_examples_event", "event_id"),
    sa.Index("ix_examples_subject", "subject_token"),
    sa.Index("ix_examples_created", "created_at"),
    sa.Index("ix_examples_queue", "status", "priority", "created_at"),
    # Holds all that counting what waits looks at, so that no row with its texts is read for it.
    sa.Index("ix_examples_waiting", "status", "model_id", "domain", "subject_token", "created_at", "example_id"),
)

pending_feedback = sa.Table(
    "pending_feedback",
    metadata,
    sa.Column("feedback_id", sa.String(64), primary_key=True),
    sa.Column("target_event_id", sa.Text, nullable=False),
    sa.Column("verdict", sa.String(16), nullable=False),
    sa.Column("corrected_response", sa.Text),
    sa.Column("signed", sa.Boolean, nullable=False),
    sa.Column("reviewer_id", sa.Text),
    sa.Column("created_at", _STAMP, nullable=False),
    sa.Column("applied_at", _STAMP),
    sa.Index("ix_pending_feedback_target", "target_event_id"),
)

cycles = sa.Table(
    "cycles",
    metadata,
    sa.Column("cycle_id", sa.String(64), primary_key=True),
    sa.Column("model_id", sa.Text, nullable=False),
    sa.Column("domain", sa.Text, nullable=False),
    sa.Column("state", _STATE, nullable=False),
    sa.Column("trigger_type", sa.String(16), nullable=False),
    sa.Column("requested_by", sa.Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("plan", sa.JSON),
    sa.Column("plan_digest", sa.String(64)),
    sa.Column("manifest_digest", sa.String(64)),
    sa.Column("facts", sa.JSON, nullable=False),
    sa.Column("reasons", sa.JSON, nullable=False),
    sa.Column("created_at", _STAMP, nullable=False),
    sa.Column("updated_at", _STAMP, nullable=False),
    # One open cycle a model: a second is refused by the database, whatever the workers think.
    sa.Index(
        "uq_cycles_open_model",
        "model_id",
        unique=True,
        sqlite_where=sa.text("state NOT IN ('promoted','rejected','failed','cancelled')"),
        postgresql_where=sa.text("state NOT IN ('promoted','rejected','failed','cancelled')"),
    ),
    sa.Index("ix_cycles_state", "state"),
    sa.Index("ix_cycles_created", "created_at"),
)

cycle_events = sa.Table(
    "cycle_events",
    metadata,
    sa.Column("cycle_id", sa.String(64), sa.ForeignKey("cycles.cycle_id"), primary_key=True),
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("state", _STATE, nullable=False),
    sa.Column("detail", sa.JSON, nullable=False),
    sa.Column("created_at", _STAMP, nullable=False),
)

cycle_progress = sa.Table(
    "cycle_progress",
    metadata,
    sa.Column("cycle_id", sa.String(64), sa.ForeignKey("cycles.cycle_id"), primary_key=True),
    sa.Column("stage", _STATE, nullable=False),
    sa.Column("done", sa.Integer, nullable=False),
    sa.Column("total", sa.Integer, nullable=False),
    sa.Column("detail", sa.JSON, nullable=False),
    sa.Column("updated_at", _STAMP, nullable=False),
)

manifests = sa.Table(
    "manifests",
    metadata,
    sa.Column("cycle_id", sa.String(64), sa.ForeignKey("cycles.cycle_id"), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("document", sa.JSON, nullable=False),
    sa.Column("created_at", _STAMP, nullable=False),
)

revisions = sa.Table(
    "revisions",
    metadata,
    sa.Column("cycle_id", sa.String(64), sa.ForeignKey("cycles.cycle_id"), primary_key=True),
    sa.Column("example_id", sa.String(64), sa.ForeignKey("examples.example_id"), primary_key=True),
    sa.Column("rounds", sa.Integer, nullable=False),
    sa.Column("origin", sa.String(16), nullable=False),
    sa.Column("compliant", sa.Boolean, nullable=False),
    sa.Column("score", sa.Float, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("target_digest", sa.String(64), nullable=False),
    sa.Column("history", sa.JSON, nullable=False),
    sa.Column("created_at", _STAMP, nullable=False),
)

teacher_usage = sa.Table(
    "teacher_usage",
    metadata,
    sa.Column("cycle_id", sa.String(64), sa.ForeignKey("cycles.cycle_id"), primary_key=True),
    sa.Column("endpoint", sa.String(500), primary_key=True),
    sa.Column("model", sa.String(200), primary_key=True),
    sa.Column("requests", sa.BigInteger, nullable=False),
    # Answered requests whose endpoint did not say what they used.
    sa.Column("untold", sa.BigInteger, nullable=False),
    sa.Column("prompt_tokens", sa.BigInteger, nullable=False),
    sa.Column("completion_tokens", sa.BigInteger, nullable=False),
    sa.Column("cost", sa.Float, nullable=False),
    sa.Column("created_at", _STAMP, nullable=False),
    sa.Column("updated_at", _STAMP, nullable=False),
)

approvals = sa.Table(
    "approvals",
    metadata,
    sa.Column("approval_id", sa.String(64), primary_key=True),
    sa.Column("cycle_id", sa.String(64), sa.ForeignKey("cycles.cycle_id"), nullable=False),
    sa.Column("plan_digest", sa.String(64), nullable=False),
    sa.Column("approved", sa.Boolean, nullable=False),
    sa.Column("reviewer", sa.Text, nullable=False),
    sa.Column("comment", sa.Text, nullable=False),
    sa.Column("created_at", _STAMP, nullable=False),
    sa.Column("expires_at", _STAMP, nullable=False),
    sa.Index("ix_approvals_cycle", "cycle_id"),
)

leases = sa.Table(
    "leases",
    metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("holder", sa.Text, nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
)

ledger = sa.Table(
    "privacy_ledger",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("domain", sa.Text, nullable=False),
    sa.Column("cohort", sa.Integer, nullable=False),
    sa.Column("cycle_id", sa.String(64), sa.ForeignKey("cycles.cycle_id"), nullable=False),
    sa.Column("model_id", sa.Text, nullable=False),
    sa.Column("noise_multiplier", sa.Float, nullable=False),
    sa.Column("sample_rate", sa.Float, nullable=False),
    sa.Column("steps", sa.Integer, nullable=False),
    sa.Column("fence", sa.BigInteger, nullable=False),
    sa.Column("created_at", _STAMP, nullable=False),
    sa.Index("ix_privacy_ledger_domain", "domain", "cohort"),
    sa.Index("ix_privacy_ledger_cycle", "cycle_id", "cohort"),
)

cohorts = sa.Table(
    "cohorts",
    metadata,
    sa.Column("domain", sa.String(200), primary_key=True),
    sa.Column("cohort", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("opened_by", sa.Text, nullable=False),
    sa.Column("comment", sa.Text, nullable=False),
    sa.Column("opened_at", _STAMP, nullable=False),
)

outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("channel", sa.String(16), nullable=False),
    sa.Column("destination", sa.Text, nullable=False),
    sa.Column("key", sa.Text),
    sa.Column("payload", sa.JSON, nullable=False),
    sa.Column("created_at", _STAMP, nullable=False),
    sa.Column("delivered_at", _STAMP),
    # Why the receiver will never take it; such a message counts as dealt with, not as told.
    sa.Column("refusal", sa.Text),
    sa.Index("ix_outbox_undelivered", "delivered_at", "seq"),
    sa.Index(
        "ix_outbox_refused",
        "seq",
        sqlite_where=sa.text("refusal IS NOT NULL"),
        postgresql_where=sa.text("refusal IS NOT NULL"),
    ),
)

model_versions = sa.Table(
    "model_versions",
    metadata,
    sa.Column("version_id", sa.String(64), primary_key=True),
    sa.Column("model_id", sa.Text, nullable=False),
    sa.Column("cycle_id", sa.String(64), sa.ForeignKey("cycles.cycle_id"), nullable=False, unique=True),
    sa.Column("base_model", sa.Text, nullable=False),
    sa.Column("path", sa.Text, nullable=False),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("statement", sa.JSON, nullable=False),
    sa.Column("evaluation", sa.JSON),
    sa.Column("created_at", _STAMP, nullable=False),
    # Set while the last that happened to it is that it was rolled back: no rollback goes to such a version.
    sa.Column("rolled_back_at", _STAMP),
    sa.Column("rolled_back_reason", sa.Text),
)

deployments = sa.Table(
    "deployments",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("model_id", sa.Text, nullable=False),
    sa.Column("version_id", sa.String(64), sa.ForeignKey("model_versions.version_id")),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("created_at", _STAMP, nullable=False),
    # `seq` of the deployment that it replaced, 0 for a model's first: of two that replace the same, one gets in.
    sa.Column("previous", sa.Integer),
    sa.Column("kind", sa.String(16), nullable=False, server_default="promotion"),
    sa.Column("deployed_by", sa.Text, nullable=False, server_default=""),
    sa.Column("comment", sa.Text, nullable=False, server_default=""),
    sa.Column("decision_id", sa.String(64)),
    sa.Index("ix_deployments_model", "model_id", "seq"),
    sa.Index("uq_deployments_previous", "model_id", "previous", unique=True),
)

champion_watch = sa.Table(
    "champion_watch",
    metadata,
    sa.Column("deployment", sa.Integer, sa.ForeignKey("deployments.seq"), primary_key=True, autoincrement=False),
    # As in `adherence`, over the evaluations of this deployment's version alone.
    sa.Column("adherent", sa.Float, nullable=False),
    sa.Column("weight", sa.Float, nullable=False),
    sa.Column("evaluations", sa.BigInteger, nullable=False),
    sa.Column("updated_at", _STAMP, nullable=False),
)

alerts = sa.Table(
    "alerts",
    metadata,
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("kind", sa.String(32), nullable=False),
    sa.Column("severity", sa.String(16), nullable=False),
    sa.Column("model_id", sa.Text),
    sa.Column("summary", sa.Text, nullable=False),
    sa.Column("detail", sa.JSON, nullable=False),
    sa.Column("created_at", _STAMP, nullable=False),
)

mirrored = sa.Table(
    "mirrored",
    metadata,
    # What of the registry a mirror shows: a version by its id, or the aliases of a model by its name.
    sa.Column("kind", sa.String(16), primary_key=True),
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("state", sa.String(200), nullable=False),
    sa.Column("remote", sa.JSON, nullable=False),
    sa.Column("mirrored_at", _STAMP, nullable=False),
)

cursors = sa.Table(
    "cursors",
    metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("position", sa.Text, nullable=False),
    sa.Column("updated_at", _STAMP, nullable=False),
)


def _revisions_table(name: str) -> sa.Table:
    """Append-only: the newest revision of a name counts. `value` is JSON; NULL gives the name back."""
    return sa.Table(
        name,
        metadata,
        sa.Column("revision", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("value", sa.Text),
        sa.Column("changed_by", sa.Text, nullable=False),
        sa.Column("comment", sa.Text, nullable=False),
        sa.Column("changed_at", _STAMP, nullable=False),
        sa.Column("entry_id", sa.String(64), nullable=False),
        sa.Index(f"ix_{name}_name", "name", "revision"),
    )


live_settings = _revisions_table("live_settings")
switches = _revisions_table("switches")
user_permissions = _revisions_table("user_permissions")
access_grants = _revisions_table("access_grants")

gpu_usage = sa.Table(
    "gpu_usage",
    metadata,
    sa.Column("job_id", sa.String(64), primary_key=True),
    sa.Column("cycle_id", sa.String(64), sa.ForeignKey("cycles.cycle_id"), nullable=False),
    sa.Column("user_id", sa.Text, nullable=False),
    sa.Column("reporter", sa.String(200), nullable=False),
    sa.Column("gpus", sa.Integer, nullable=False),
    # Seconds since 1970 by the database's clock.
    sa.Column("started_at", sa.Float, nullable=False),
    sa.Column("seen_at", sa.Float, nullable=False),
    sa.Column("ended", sa.Boolean, nullable=False),
    sa.Index("ix_gpu_usage_seen", "seen_at"),
)

compute_reports = sa.Table(
    "compute_reports",
    metadata,
    sa.Column("reporter", sa.String(200), primary_key=True),
    sa.Column("gpus", sa.Integer, nullable=False),
    sa.Column("memory_gb", sa.Float, nullable=False),
    sa.Column("reported_at", sa.Float, nullable=False),
)

adherence = sa.Table(
    "adherence",
    metadata,
    sa.Column("model_id", sa.String(200), primary_key=True),
    sa.Column("domain", sa.String(200), primary_key=True),
    # An exponentially weighted mean is `adherent / weight`; both fade alike.
    sa.Column("adherent", sa.Float, nullable=False),
    sa.Column("weight", sa.Float, nullable=False),
    sa.Column("evaluations", sa.BigInteger, nullable=False),
    sa.Column("updated_at", _STAMP, nullable=False),
)

adherence_positions = sa.Table(
    "adherence_positions",
    metadata,
    sa.Column("topic", sa.String(249), primary_key=True),
    sa.Column("partition", sa.Integer, primary_key=True),
    sa.Column("next_offset", sa.BigInteger, nullable=False),
)

adherence_history = sa.Table(
    "adherence_history",
    metadata,
    sa.Column("model_id", sa.String(200), primary_key=True),
    sa.Column("domain", sa.String(200), primary_key=True),
    # Of how many minutes a row is (1, 10, 60), and the first of them, such as 2026-03-02T09:16 (UTC). The last estimate
    # within them stands.
    sa.Column("span", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("minute", sa.String(16), primary_key=True),
    sa.Column("mean", sa.Float, nullable=False),
    sa.Column("evaluations", sa.BigInteger, nullable=False),
    sa.Index("ix_adherence_history_minute", "span", "minute"),
)

worker_reports = sa.Table(
    "worker_reports",
    metadata,
    sa.Column("worker", sa.String(200), primary_key=True),
    sa.Column("role", sa.String(16), nullable=False),
    sa.Column("report", sa.JSON, nullable=False),
    # Seconds since 1970 by the database's clock.
    sa.Column("reported_at", sa.Float, nullable=False),
)
