"""The policy gate: Rego policies behind one interface, decided in process (regopy) or by an OPA server."""

from __future__ import annotations

from policies.gate.bundle import PolicyBundle, bundle_archive, load_bundle, write_archive, write_bundle
from policies.gate.check import check_bundle
from policies.gate.errors import BundleError
from policies.gate.interface import PolicyEngine
from policies.gate.opa_engine import OpaConfig, OpaEngine
from policies.gate.regopy_engine import RegopyEngine
from policies.gate.source import BundleSource

__all__ = [
    "BundleError",
    "BundleSource",
    "OpaConfig",
    "OpaEngine",
    "PolicyBundle",
    "PolicyEngine",
    "RegopyEngine",
    "bundle_archive",
    "check_bundle",
    "load_bundle",
    "write_archive",
    "write_bundle",
]
