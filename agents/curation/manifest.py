"""The snapshot of a cycle's data: who is in, who is held out, who is left out and why.

Whether and how a record is used depends on that record and its subject alone (keyed hashes), never on the others:
that is what makes the stated epsilon true. The one exception is counted and said: a subject's examples compete with
each other, and they are one privacy unit. The evaluation set alone gives way to what is trained on: an evaluation
prompt that is nearly a training prompt is left out, never the other way round.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import orjson

from agents.curation.near import near_duplicates
from models.cycle import Manifest, ManifestMember
from models.example import Example, ExampleStatus

_SPACE = re.compile(r"\s+")


@dataclass(frozen=True, slots=True)
class ManifestRules:
    """`digest_key` keys every hash; `held_out_share` is the share of prompts never trained on.

    `class_shares`: of a violation type's examples so many are taken, by keyed hash of each alone; of others all.
    `near_duplicate`: Jaccard likeness to a training prompt from which an evaluation prompt is left out.
    """

    digest_key: bytes
    held_out_share: float
    public_benign: int
    class_shares: Mapping[str, float] = field(default_factory=dict)
    near_duplicate: float = 0.8


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


RESIDUAL_PII = "residual_pii"
CLASS_SHARE = "class_share"
SECOND_OF_SUBJECT = "second_example_of_subject"
NEAR_DUPLICATE = "near_duplicate_of_training"
EARLIER_COHORT = "subject_of_earlier_cohort"

FOR_GOOD = (RESIDUAL_PII, CLASS_SHARE, EARLIER_COHORT)
"""Reasons that no later cycle would see otherwise."""


def build(
    cycle_id: str,
    domain: str,
    examples: Sequence[Example],
    rules: ManifestRules,
    has_pii: Callable[[str], bool],
    constitution_digest: str,
    trained_prompts: Sequence[str] = (),
    cohort: int = 0,
    earlier_units: Collection[str] = (),
) -> Manifest:
    """Snapshot `examples`.

    `has_pii` tells whether a text still holds personal data after all scrubbing. `trained_prompts`: of earlier cycles,
    whose near-duplicates leave the evaluation set too. `earlier_units`: whom the domain's earlier cohorts trained on.
    """
    excluded: dict[str, list[str]] = defaultdict(list)
    chosen: dict[str, tuple[bytes, Example]] = {}
    for example in examples:
        unit = example.subject_token or example.example_id
        reason = EARLIER_COHORT if unit in earlier_units else _exclusion(example, rules, has_pii)
        if reason:
            excluded[reason].append(example.example_id)
            continue
        rank = keyed(rules.digest_key, "subject", example.example_id)
        rival = chosen.get(unit)
        if rival is not None:
            out = example if rival[0] <= rank else rival[1]
            excluded[SECOND_OF_SUBJECT].append(out.example_id)
            if out is example:
                continue
        chosen[unit] = (rank, example)
    kept = sorted(((unit, example) for unit, (_, example) in chosen.items()), key=lambda item: item[1].example_id)
    members = [item for item in kept if not is_held_out(rules, item[1].prompt)]
    held_out = [item for item in kept if is_held_out(rules, item[1].prompt)]
    near = near_duplicates(
        {example.example_id: example.prompt for _, example in held_out},
        [*trained_prompts, *(example.prompt for _, example in members)],
        rules.near_duplicate,
    )
    excluded[NEAR_DUPLICATE].extend(sorted(near))
    ids = {reason: tuple(sorted(names)) for reason, names in sorted(excluded.items()) if names}
    return Manifest(
        cycle_id=cycle_id,
        domain=domain,
        members=tuple(_member(example, unit, rules.digest_key) for unit, example in members),
        held_out=tuple(
            _member(example, unit, rules.digest_key) for unit, example in held_out if example.example_id not in near
        ),
        public_benign=rules.public_benign,
        excluded={reason: len(names) for reason, names in ids.items()},
        excluded_examples=ids,
        constitution_digest=constitution_digest,
        cohort=cohort,
    )


def manifest_digest(manifest: Manifest) -> str:
    """SHA-256 of the manifest's canonical JSON, in hex."""
    return hashlib.sha256(orjson.dumps(manifest.model_dump(mode="json"), option=orjson.OPT_SORT_KEYS)).hexdigest()


class ManifestChanged(RuntimeError):
    """A stored manifest is not the one that was decided on."""


def check_unchanged(manifest: Manifest, digest: str | None) -> Manifest:
    """The manifest, if it is what `digest` was made of; raises `ManifestChanged`."""
    found = manifest_digest(manifest)
    if found != digest:
        raise ManifestChanged(
            f"the manifest of cycle {manifest.cycle_id} has the digest {found}, and the cycle was decided on "
            f"{digest}: nothing is trained on it; cancel the cycle and open another"
        )
    return manifest


def _exclusion(example: Example, rules: ManifestRules, has_pii: Callable[[str], bool]) -> str | None:
    if example.status is not ExampleStatus.NEW:
        return example.status.value
    texts = [example.prompt, example.response, example.corrected_response or ""]
    if any(has_pii(text) for text in texts if text):
        return RESIDUAL_PII
    share = rules.class_shares.get(example.violation_type, 1.0)
    if fraction(keyed(rules.digest_key, "class", example.example_id)) >= share:
        return CLASS_SHARE
    return None


def _member(example: Example, unit: str, key: bytes) -> ManifestMember:
    text = "\x1f".join((example.prompt, example.response, example.corrected_response or ""))
    return ManifestMember(
        example_id=example.example_id,
        digest=keyed(key, "text", text).hex(),
        violation_type=example.violation_type,
        unit=unit,
    )
