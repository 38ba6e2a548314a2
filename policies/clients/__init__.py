"""HTTP clients of the policy engine and the audit engine."""

from policies.clients.audit_client import (
    AuditClient,
    AuditClientError,
    AuditConflict,
    AuditRefused,
    AuditUnavailable,
    SyncAuditClient,
)
from policies.clients.policy_client import (
    VALIDATION_ERROR,
    PolicyEngineClient,
    PolicyEngineRefused,
    PolicyEngineUnavailable,
    is_compliant,
)
from policies.clients.spool import Spool, SpoolFull, SpoolUnavailable
from policies.clients.spooling import SpoolingAudit

__all__ = [
    "VALIDATION_ERROR",
    "AuditClient",
    "AuditClientError",
    "AuditConflict",
    "AuditRefused",
    "AuditUnavailable",
    "PolicyEngineClient",
    "PolicyEngineRefused",
    "PolicyEngineUnavailable",
    "Spool",
    "SpoolFull",
    "SpoolUnavailable",
    "SpoolingAudit",
    "SyncAuditClient",
    "is_compliant",
]
