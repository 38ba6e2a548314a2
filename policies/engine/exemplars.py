"""Heads on sentence vectors, fitted when the engine starts, on nothing but the constitution's exemplars.

Three heads: does a request ask for harm; which principle does a harmful request breach; does an answer refuse,
comply or deflect. Everything that calibrates them is cross-validated, so that an exemplar is never scored by a
head that was fitted on it.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from policies.constitution import Constitution
from policies.engine.embedding import Vectors
from policies.engine.kernel import Array, KernelHead, Labels, held_out_logits, one_thread, softmax

__all__ = [
    "COMPLIANCE",
    "DEFLECTION",
    "KINDS",
    "REFUSAL",
    "AnswerSet",
    "Array",
    "Heads",
    "HeldOut",
    "Labels",
    "RequestSet",
    "answer_set",
    "cached_vectors",
    "fit_heads",
    "held_out",
    "request_set",
]

log = logging.getLogger(__name__)

KINDS = ("refusal", "compliance", "deflection")
REFUSAL, COMPLIANCE, DEFLECTION = range(3)
# Sharpness of the heads' log-probabilities, where cross-validated log loss on the shipped exemplars is least.
HARM_SHARPNESS = 5.0
PRINCIPLE_SHARPNESS = 8.0
KIND_SHARPNESS = 8.0


@dataclass(frozen=True, slots=True)
class RequestSet:
    """The constitution's requests. `principle` is an index into its principles, -1 for benign prompts."""

    texts: tuple[str, ...]
    harmful: Labels
    principle: Labels


@dataclass(frozen=True, slots=True)
class AnswerSet:
    """The constitution's answers with their kinds; the last `len(benign)` are those of the benign pairs."""

    texts: tuple[str, ...]
    kind: Labels


def request_set(constitution: Constitution) -> RequestSet:
    """All exemplars of all principles, then the benign prompts."""
    rows: list[tuple[str, int, int]] = []
    for index, principle in enumerate(constitution.principles):
        rows += [(text, 1, index) for text in principle.exemplars.violating]
        rows += [(text, 0, index) for text in principle.exemplars.lookalike]
    rows += [(pair.prompt, 0, -1) for pair in constitution.benign]
    texts, harmful, principle_index = zip(*rows, strict=True)
    return RequestSet(texts, np.asarray(harmful), np.asarray(principle_index))


def answer_set(constitution: Constitution) -> AnswerSet:
    """Answer exemplars by kind, the principles' revision openings as refusals, the benign answers last."""
    rows = [(text, REFUSAL) for text in constitution.answers.refusal]
    rows += [(text, REFUSAL) for principle in constitution.principles for text in principle.revision_openings]
    rows += [(text, COMPLIANCE) for text in constitution.answers.compliance]
    rows += [(text, DEFLECTION) for text in constitution.answers.deflection]
    rows += [(pair.answer, COMPLIANCE) for pair in constitution.benign]
    texts, kinds = zip(*rows, strict=True)
    return AnswerSet(texts, np.asarray(kinds))


@dataclass(frozen=True, slots=True)
class Heads:
    """The fitted heads."""

    harm: KernelHead
    principle: KernelHead
    kind: KernelHead

    def request_logits(self, vectors: Vectors) -> Array:
        """Log-odds that each request asks for harm; shape (n,)."""
        return self.harm.log_odds(vectors)

    def principle_shares(self, vectors: Vectors) -> Array:
        """Given that a request asks for harm, which principle it breaches; shape (n, principles), rows sum to 1."""
        return self.principle.probabilities(vectors)

    def kind_probabilities(self, vectors: Vectors) -> Array:
        """What each answer does, in the order of KINDS; shape (n, 3), rows sum to 1."""
        return self.kind.probabilities(vectors)


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Cross-validated findings: log-odds of harm a request, probabilities of kinds an answer."""

    request_logits: Array
    kind_probabilities: Array


def fit_heads(requests: RequestSet, request_vectors: Vectors, answers: AnswerSet, answer_vectors: Vectors) -> Heads:
    """Fit all heads on all exemplars; deterministic."""
    asks_harm = requests.harmful == 1
    with one_thread():
        return Heads(
            harm=KernelHead.fit(request_vectors, requests.harmful, HARM_SHARPNESS),
            principle=KernelHead.fit(request_vectors[asks_harm], requests.principle[asks_harm], PRINCIPLE_SHARPNESS),
            kind=KernelHead.fit(answer_vectors, answers.kind, KIND_SHARPNESS),
        )


def held_out(requests: RequestSet, request_vectors: Vectors, answers: AnswerSet, answer_vectors: Vectors) -> HeldOut:
    """Score every exemplar by heads fitted on the other folds; folds are stratified and fixed."""
    with one_thread():
        harm = held_out_logits(request_vectors, requests.harmful, HARM_SHARPNESS)
        kinds = held_out_logits(answer_vectors, answers.kind, KIND_SHARPNESS)
    return HeldOut(harm[:, 1] - harm[:, 0], softmax(kinds))


def cached_vectors(
    encode: Callable[[Sequence[str]], Vectors],
    requests: RequestSet,
    answers: AnswerSet,
    digest: str,
    encoder: str,
    cache_dir: Path | None,
) -> tuple[Vectors, Vectors]:
    """Vectors of both sets, from the cache file of this constitution and encoder if there is a sound one.

    A missing, damaged or unwritable cache costs time only: it is logged and the vectors are computed.
    """
    sizes = (len(requests.texts), len(answers.texts))
    path = None if cache_dir is None else cache_dir / f"exemplars-{digest[:16]}.npz"
    if path is not None and (found := _read_cache(path, digest, encoder, sizes)) is not None:
        return found
    vectors = encode([*requests.texts, *answers.texts])
    split = vectors[: sizes[0]], vectors[sizes[0] :]
    if path is not None:
        _write_cache(path, digest, encoder, *split)
    return split


def _read_cache(path: Path, digest: str, encoder: str, sizes: tuple[int, int]) -> tuple[Vectors, Vectors] | None:
    try:
        with np.load(path, allow_pickle=False) as stored:
            fits = str(stored["digest"]) == digest and str(stored["encoder"]) == encoder
            pair = stored["requests"], stored["answers"]
    except FileNotFoundError:
        return None
    except Exception as error:  # noqa: BLE001 - a damaged archive raises many kinds, and all mean: compute anew
        log.warning("embedding cache %s is unreadable (%s); computing anew", path, type(error).__name__)
        return None
    if not fits or (len(pair[0]), len(pair[1])) != sizes:
        return None
    return pair


def _write_cache(path: Path, digest: str, encoder: str, requests: Vectors, answers: Vectors) -> None:
    """Write beside and rename, so that a reader never meets half a file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as file:
            np.savez(file, digest=digest, encoder=encoder, requests=requests, answers=answers)
        os.replace(file.name, path)  # noqa: PTH105 - the atomic rename
    except OSError as error:
        log.warning("embedding cache %s cannot be written (%s); going on without", path, error)
