"""The snapshot of a cycle's data: who is in, who is held out, who is left out and why.

Whether and how a record is used depends on that record and its subject alone (keyed hashes), never on the others:
that is what makes the stated epsilon true. The one exception is counted and said: a subject's examples compete with
each other, and they are one privacy unit.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import orjson

from models.cycle import Manifest, ManifestMember
from models.example import Example, ExampleStatus

_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class ManifestRules:
    """`digest_key` keys every hash; `held_out_share` is the share of prompts never trained on."""

    digest_key: bytes
    held_out_share: float
    public_benign: int


def normalise(prompt: str) -> str:
    """A prompt as the split sees it: lower case, spaces folded, outer punctuation gone."""
    return _SPACE.sub(" ", prompt).strip(" .!?\"'").casefold()


def keyed(key: bytes, purpose: str, text: str) -> bytes:
    """HMAC-SHA256 of a text for one purpose; two purposes never share a value."""
    return hmac.new(key, f"{purpose}\x1f{text}".encode(), hashlib.sha256).digest()


def fraction(digest: bytes) -> float:
    """A digest as a number in [0, 1): its first 53 bits, as many as a float holds without rounding up to 1."""
    return (int.from_bytes(digest[:7], "big") >> 3) / 2**53


def is_held_out(rules: ManifestRules, prompt: str) -> bool:
    """Whether a prompt is held out: stable over cycles, the same for every example that asks it."""
    return fraction(keyed(rules.digest_key, "split", normalise(prompt))) < rules.held_out_share


def build(
    cycle_id: str,
    domain: str,
    examples: Sequence[Example],
    rules: ManifestRules,
    has_pii: Callable[[str], bool],
    constitution_digest: str,
) -> Manifest:
    """Snapshot `examples`. `has_pii` tells whether a text still holds personal data after all scrubbing."""
    excluded: Counter[str] = Counter()
    chosen: dict[str, tuple[bytes, Example]] = {}
    for example in examples:
        reason = _exclusion(example, has_pii)
        if reason:
            excluded[reason] += 1
            continue
        unit = example.subject_token or example.example_id
        rank = keyed(rules.digest_key, "subject", example.example_id)
        rival = chosen.get(unit)
        if rival is not None:
            excluded["second_example_of_subject"] += 1
            if rival[0] <= rank:
                continue
        chosen[unit] = (rank, example)
    members: list[ManifestMember] = []
    held_out: list[ManifestMember] = []
    for unit, (_, example) in sorted(chosen.items(), key=lambda item: item[1][1].example_id):
        target = held_out if is_held_out(rules, example.prompt) else members
        target.append(_member(example, unit, rules.digest_key))
    return Manifest(
        cycle_id=cycle_id,
        domain=domain,
        members=tuple(members),
        held_out=tuple(held_out),
        public_benign=rules.public_benign,
        excluded=dict(sorted(excluded.items())),
        constitution_digest=constitution_digest,
    )


def manifest_digest(manifest: Manifest) -> str:
    """SHA-256 of the manifest's canonical JSON, in hex."""
    return hashlib.sha256(orjson.dumps(manifest.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)).hexdigest()


def _exclusion(example: Example, has_pii: Callable[[str], bool]) -> str | None:
    if example.status is not ExampleStatus.NEW:
        return example.status.value
    texts = [example.prompt, example.response, example.corrected_response or ""]
    if any(has_pii(text) for text in texts if text):
        return "residual_pii"
    return None


def _member(example: Example, unit: str, key: bytes) -> ManifestMember:
    text = "\x1f".join((example.prompt, example.response, example.corrected_response or ""))
    return ManifestMember(
        example_id=example.example_id,
        digest=keyed(key, "text", text).hex(),
        violation_type=example.violation_type,
        unit=unit,
    )
