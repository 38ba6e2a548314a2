"""Logistic heads on sentence vectors, fitted when the engine starts, on nothing but the constitution's exemplars.

Three heads: does a request ask for harm; which principle does a harmful request breach; does an answer refuse,
comply or deflect. Everything that calibrates them is cross-validated, so that an exemplar is never scored by a
head that was fitted on it.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from policies.constitution import Constitution
from policies.engine.embedding import Vectors

log = logging.getLogger(__name__)

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

KINDS = ("refusal", "compliance", "deflection")
REFUSAL, COMPLIANCE, DEFLECTION = range(3)
FOLDS = 5
# Inverse strengths of the L2 penalty, from cross-validation on the shipped exemplars; both lie on a plateau.
HARM_C = 3.0
PRINCIPLE_C = 10.0
KIND_C = 100.0


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
class LinearHead:
    """Weights (classes, width) and bias (classes,) of a fitted logistic head; one row for two classes."""

    weights: Array
    bias: Array

    @classmethod
    def of(cls, fitted: Any) -> LinearHead:
        """Take the numbers out of a fitted scikit-learn LogisticRegression."""
        return cls(np.asarray(fitted.coef_, dtype=np.float64), np.asarray(fitted.intercept_, dtype=np.float64))

    def logits(self, vectors: Vectors) -> Array:
        """Log-odds or unnormalised log-probabilities; shape (n, classes)."""
        scores: Array = vectors @ self.weights.T + self.bias
        return scores

    def probabilities(self, vectors: Vectors) -> Array:
        """Softmax over classes; shape (n, classes), rows sum to 1."""
        scores = self.logits(vectors)
        if scores.shape[1] == 1:
            scores = np.hstack([np.zeros_like(scores), scores])
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares: Array = odds / odds.sum(axis=1, keepdims=True)
        return shares


@dataclass(frozen=True, slots=True)
class Heads:
    """The fitted heads."""

    harm: LinearHead
    principle: LinearHead
    kind: LinearHead

    def request_logits(self, vectors: Vectors) -> Array:
        """Log-odds that each request asks for harm; shape (n,)."""
        return self.harm.logits(vectors)[:, 0]

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
    with _one_thread():
        return Heads(
            harm=LinearHead.of(_head(HARM_C).fit(request_vectors, requests.harmful)),
            principle=LinearHead.of(_head(PRINCIPLE_C).fit(request_vectors[asks_harm], requests.principle[asks_harm])),
            kind=LinearHead.of(_head(KIND_C).fit(answer_vectors, answers.kind)),
        )


def held_out(requests: RequestSet, request_vectors: Vectors, answers: AnswerSet, answer_vectors: Vectors) -> HeldOut:
    """Score every exemplar by heads fitted on the other folds; folds are stratified and fixed."""
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    def predict(head: Any, vectors: Vectors, labels: Labels, method: str) -> Array:
        smallest = int(np.bincount(labels).min())
        folds = StratifiedKFold(min(FOLDS, smallest), shuffle=True, random_state=0)
        scores: Array = cross_val_predict(head, vectors, labels, cv=folds, method=method)
        return scores

    with _one_thread():
        return HeldOut(
            predict(_head(HARM_C), request_vectors, requests.harmful, "decision_function"),
            predict(_head(KIND_C), answer_vectors, answers.kind, "predict_proba"),
        )


def _one_thread() -> AbstractContextManager[Any]:
    """Fits this small lose more to threads that wait for each other than they gain: on two busy cores 3.4 s of
    processor time became 0.06 s with one."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    limits: AbstractContextManager[Any] = threadpool_limits(limits=1)
    return limits


def _head(inverse_penalty: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=inverse_penalty, class_weight="balanced", max_iter=1000)


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
