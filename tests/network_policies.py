"""What NetworkPolicies let through, as Kubernetes defines it: pods and namespaces by their labels, ports by number.

https://kubernetes.io/docs/concepts/services-networking/network-policies/
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Labels = Mapping[str, str]
Place = tuple[Labels, Labels]
"""The labels of a pod and of its namespace."""

OWN_NAMESPACE = "governance"


def allows(
    policies: list[dict[str, Any]],
    source: Place,
    target: Place,
    port: int,
    *,
    source_is_ours: bool = True,
    target_is_ours: bool = True,
) -> bool:
    """Whether a TCP connection may be made. The policies are of our namespace; what is not ours they do not bind."""
    out = not source_is_ours or _passes(policies, "Egress", source[0], target, port)
    into = not target_is_ours or _passes(policies, "Ingress", target[0], source, port)
    return out and into


def _passes(
    policies: list[dict[str, Any]], direction: Literal["Ingress", "Egress"], pod: Labels, other: Place, port: int
) -> bool:
    binding = [
        policy["spec"]
        for policy in policies
        if direction in policy["spec"]["policyTypes"] and _selects(policy["spec"]["podSelector"], pod)
    ]
    rules = [rule for spec in binding for rule in spec.get(direction.lower(), ())]
    return not binding or any(_fits(rule, direction, other, port) for rule in rules)


def _fits(rule: dict[str, Any], direction: str, other: Place, port: int) -> bool:
    ports = rule.get("ports")
    if ports is not None and not any(p["port"] == port and p.get("protocol", "TCP") == "TCP" for p in ports):
        return False
    peers = rule.get("from" if direction == "Ingress" else "to")
    return peers is None or any(_is_peer(peer, other) for peer in peers)


def _is_peer(peer: dict[str, Any], other: Place) -> bool:
    pod, namespace = other
    if "ipBlock" in peer:
        return False
    # Without a selector of namespaces only the policy's own counts.
    if "namespaceSelector" in peer:
        if not _selects(peer["namespaceSelector"], namespace):
            return False
    elif namespace.get("kubernetes.io/metadata.name") != OWN_NAMESPACE:
        return False
    return "podSelector" not in peer or _selects(peer["podSelector"], pod)


def _selects(selector: dict[str, Any], labels: Labels) -> bool:
    unknown = selector.keys() - {"matchLabels"}
    if unknown:
        raise ValueError(f"a selector by {', '.join(sorted(unknown))} is not understood here: extend this module")
    return labels.items() >= selector.get("matchLabels", {}).items()
