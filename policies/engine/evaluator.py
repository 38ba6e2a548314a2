"""Puts the evaluators together: texts in, decisions out. Knows nothing of HTTP."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from policies.constitution import Constitution
from policies.engine import combine, exemplars, rules
from policies.engine.combine import Calibration, Findings, Verdict
from policies.engine.config import EngineConfig
from policies.engine.embedding import SentenceEncoder, Vectors, relevance
from policies.engine.reading import Judged, Reading


class Encoder(Protocol):
    """What turns texts into vectors; `name` tells one make of vectors from another."""

    name: str

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Vectors of shape (n, width), in the order of the texts."""


@dataclass(frozen=True, slots=True)
class AuthoredReport:
    """How the calibration does on the constitution's own pairs, cross-validated; shares in 0..1."""

    benign_below_threshold: float
    lookalike_denied: float
    harmful_given_below_threshold: float
    harmful_given_denied: float
    harmful_refused_below_threshold: float
    kind_accuracy: float


class PolicyEvaluator:
    """The fitted evaluators of one constitution. `evaluate` may be called from several threads; calls queue up."""

    def __init__(
        self,
        constitution: Constitution,
        config: EngineConfig,
        encoder: Encoder,
        heads: exemplars.Heads,
        calibration: Calibration,
        report: AuthoredReport,
    ) -> None:
        self.constitution = constitution
        self.calibration = calibration
        self.report = report
        self._config = config
        self._encoder = encoder
        self._heads = heads
        self._rules = rules.PrincipleRules(constitution)
        self._lock = threading.Lock()

    @classmethod
    def load(cls, constitution: Constitution, config: EngineConfig) -> PolicyEvaluator:
        """Load the encoder, embed the exemplars (or read the cache), fit and calibrate the heads.

        Takes seconds; call it off the event loop. Raises EncoderUnavailableError.
        """
        return cls.fit(constitution, config, SentenceEncoder.load(config.encoder))

    @classmethod
    def fit(cls, constitution: Constitution, config: EngineConfig, encoder: Encoder) -> PolicyEvaluator:
        """As `load`, with an encoder at hand."""
        requests = exemplars.request_set(constitution)
        answers = exemplars.answer_set(constitution)
        request_vectors, answer_vectors = exemplars.cached_vectors(
            encoder.encode, requests, answers, constitution.digest, encoder.name, config.cache_dir
        )
        heads = exemplars.fit_heads(requests, request_vectors, answers, answer_vectors)
        scored = exemplars.held_out(requests, request_vectors, answers, answer_vectors)
        calibration, report = _calibrated(constitution, config, requests, answers, scored)
        return cls(constitution, config, encoder, heads, calibration, report)

    @property
    def policy_version(self) -> str:
        """Version of the constitution with the head of its digest."""
        return f"{self.constitution.version}+{self.constitution.digest[:12]}"

    def evaluate(self, texts: Sequence[Judged]) -> list[Verdict]:
        """Judge texts together; their vectors are made in shared batches. Order is kept."""
        readings = [Reading.of(text) for text in texts]
        wanted = list(dict.fromkeys(piece for reading in readings for piece in reading.pieces()))
        if not wanted:
            return []
        with self._lock:
            vectors = self._encoder.encode(wanted)
        found = self._found(wanted, vectors)
        return [self._verdict(reading, found) for reading in readings]

    def _found(self, pieces: list[str], vectors: Vectors) -> dict[str, _Piece]:
        """All heads over all pieces at once, which costs less than choosing."""
        logits = self._heads.request_logits(vectors)
        shares = self._heads.principle_shares(vectors)
        kinds = self._heads.kind_probabilities(vectors)
        return {
            piece: _Piece(vectors[i], float(logits[i]), shares[i].tolist(), (*kinds[i].tolist(),))
            for i, piece in enumerate(pieces)
        }

    def _verdict(self, reading: Reading, found: dict[str, _Piece]) -> Verdict:
        if reading.prompt is None:
            worst, kinds, evidence = self._worst_request(reading, found)
        else:
            worst = max((found[piece] for piece in reading.request), key=lambda piece: piece.harm_logit)
            kinds, evidence = self._kind(reading, found)
        findings = Findings(
            harm_logit=worst.harm_logit,
            principle_shares=worst.principle_shares,
            kinds=kinds,
            refusal_evidence=evidence,
            degenerate=reading.wording.degenerate,
            relevance=None if reading.prompt is None else _relevance(reading, found),
            asked_by_rule=self._rules.asked(reading.answer if reading.prompt is None else reading.prompt),
            given_by_rule=frozenset() if reading.prompt is None else self._rules.given(reading.answer),
            injection=reading.injection,
        )
        return combine.decide(findings, self.constitution.principles, self.calibration, self._config.combine)

    def _worst_request(self, reading: Reading, found: dict[str, _Piece]) -> tuple[_Piece, Sequence[float], float]:
        """The piece that most asks for harm, a refusal counting for what it is only in its own piece."""

        def of(text: str) -> tuple[float, _Piece, float]:
            piece = found[text]
            evidence = 0.0 if reading.injection else rules.refusal_evidence(text)
            given = combine.given_by_request(self._adjusted(piece.kinds, evidence), evidence)
            return self.calibration.harm(piece.harm_logit) * given, piece, evidence

        _, worst, evidence = max((of(text) for text in reading.request), key=lambda entry: entry[0])
        return worst, worst.kinds, evidence

    def _kind(self, reading: Reading, found: dict[str, _Piece]) -> tuple[Sequence[float], float]:
        """What the answer does, and the evidence of refusal.

        A refusal in its opening is believed, unless the answer speaks to its judge or gives in further on. Else the
        part counts that complies most.
        """
        opening, evidence = found[reading.opening].kinds, reading.wording.refusal
        refuses = self._adjusted(opening, evidence)[exemplars.REFUSAL] >= 0.5
        if not reading.parts or (reading.believed and refuses):
            return opening, evidence
        most = max(reading.parts, key=lambda part: self._complies(found[part].kinds, rules.refusal_evidence(part)))
        return found[most].kinds, rules.refusal_evidence(most)

    def _complies(self, kinds: Sequence[float], evidence: float) -> float:
        return self._adjusted(kinds, evidence)[exemplars.COMPLIANCE]

    def _adjusted(self, kinds: Sequence[float], evidence: float) -> tuple[float, float, float]:
        return combine.answer_kinds(kinds, evidence, self._config.combine.refusal_rule_weight)


@dataclass(frozen=True, slots=True)
class _Piece:
    """What the heads say of one piece of text."""

    vector: Vectors
    harm_logit: float
    principle_shares: list[float]
    kinds: tuple[float, ...]


def _relevance(reading: Reading, found: dict[str, _Piece]) -> float:
    return relevance(found[reading.whole_prompt].vector, found[reading.whole_answer].vector)


def _calibrated(
    constitution: Constitution,
    config: EngineConfig,
    requests: exemplars.RequestSet,
    answers: exemplars.AnswerSet,
    scored: exemplars.HeldOut,
) -> tuple[Calibration, AuthoredReport]:
    """Pair held-out requests with held-out answers, set the operating points and report what comes of them.

    Benign prompts keep their own answers. The principles' requests go with answers of one kind, dealt in turn.
    """
    weight = config.combine.refusal_rule_weight
    kinds = np.asarray(
        [
            combine.answer_kinds(row, rules.refusal_evidence(text), weight)
            for row, text in zip(scored.kind_probabilities, answers.texts, strict=True)
        ]
    )
    logits = scored.request_logits
    benign = np.flatnonzero(requests.principle == -1)
    lookalike = np.flatnonzero((requests.harmful == 0) & (requests.principle >= 0))
    violating = np.flatnonzero(requests.harmful == 1)
    calibration = combine.calibrate(logits[benign], logits[lookalike], config.combine)

    first_benign = len(answers.texts) - len(constitution.benign)
    own_answers = np.arange(first_benign, len(answers.texts))
    complying = np.flatnonzero(answers.kind[:first_benign] == exemplars.COMPLIANCE)
    refusing = np.flatnonzero(answers.kind == exemplars.REFUSAL)

    def below(level: float, chosen: exemplars.Labels, with_answers: exemplars.Labels) -> float:
        dealt = with_answers[np.arange(len(chosen)) % len(with_answers)]
        pairs = zip(logits[chosen], kinds[dealt, exemplars.COMPLIANCE], strict=True)
        return float(np.mean([combine.confidence_of(calibration.harm(float(z)), float(c)) < level for z, c in pairs]))

    threshold, deny = config.combine.threshold, config.combine.deny_below
    return calibration, AuthoredReport(
        benign_below_threshold=below(threshold, benign, own_answers),
        lookalike_denied=below(deny, lookalike, complying),
        harmful_given_below_threshold=below(threshold, violating, complying),
        harmful_given_denied=below(deny, violating, complying),
        harmful_refused_below_threshold=below(threshold, violating, refusing),
        kind_accuracy=float(np.mean(kinds.argmax(axis=1) == answers.kind)),
    )
