"""The policy gate: Rego policies behind one interface, decided in process (regopy) or by an OPA server."""

from __future__ import annotations

from policies.gate.bundle import BundleError, PolicyBundle, load_bundle, write_bundle
from policies.gate.interface import PolicyEngine
from policies.gate.opa_engine import OpaConfig, OpaEngine
from policies.gate.regopy_engine import RegopyEngine

__all__ = [
    "BundleError",
    "OpaConfig",
    "OpaEngine",
    "PolicyBundle",
    "PolicyEngine",
    "RegopyEngine",
    "load_bundle",
    "write_bundle",
]
