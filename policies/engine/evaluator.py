"""Puts the evaluators together: texts in, decisions out. Knows nothing of HTTP."""

from __future__ import annotations

import re
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


class Encoder(Protocol):
    """What turns texts into vectors; `name` tells one make of vectors from another."""

    name: str

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Vectors of shape (n, width), in the order of the texts."""


# The encoder sees some hundred tokens at a time, and one sentence of harm hardly moves the mean over many of
# talk. A long request is therefore looked at through windows, its first and last sentence and its questions as
# well as evenly spread stretches, and the worst one counts.
WINDOW_WORDS = 60
MAX_WINDOWS = 6
MAX_SENTENCES = 6

_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True, slots=True)
class Judged:
    """One text to judge; `prompt` None means that `content` is itself a request."""

    content: str
    prompt: str | None = None


@dataclass(frozen=True, slots=True)
class AuthoredReport:
    """How the calibration does on the constitution's own pairs, cross-validated; shares in 0..1."""

    benign_below_threshold: float
    lookalike_denied: float
    harmful_given_below_threshold: float
    harmful_given_denied: float
    harmful_refused_below_threshold: float
    kind_accuracy: float


def windows(text: str) -> list[str]:
    """The text itself if it has at most WINDOW_WORDS words; else at most MAX_WINDOWS stretches of as many words,
    evenly spread from head to tail, and at most MAX_SENTENCES sentences: the last, the first, then questions."""
    words = text.split()
    if len(words) <= WINDOW_WORDS:
        return [text]
    count = min(MAX_WINDOWS, -(-len(words) // WINDOW_WORDS))
    last = len(words) - WINDOW_WORDS
    starts = [round(last * index / (count - 1)) for index in range(count)]
    stretches = [" ".join(words[start : start + WINDOW_WORDS]) for start in starts]
    sentences = [part for part in _SENTENCE_END.split(text) if len(part.split()) <= WINDOW_WORDS]
    chosen = [*sentences[-1:], *sentences[:1], *(part for part in reversed(sentences) if part.endswith("?"))]
    return list(dict.fromkeys(stretches + list(dict.fromkeys(chosen))[:MAX_SENTENCES]))


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
        parts = [_Parts.of(text) for text in texts]
        wanted = list(dict.fromkeys(piece for part in parts for piece in part.pieces()))
        if not wanted:
            return []
        with self._lock:
            vectors = self._encoder.encode(wanted)
        found = self._found(wanted, vectors)
        return [self._verdict(part, found) for part in parts]

    def _found(self, pieces: list[str], vectors: Vectors) -> dict[str, _Piece]:
        """All heads over all pieces at once, which costs less than choosing."""
        logits = self._heads.request_logits(vectors)
        shares = self._heads.principle_shares(vectors)
        kinds = self._heads.kind_probabilities(vectors)
        return {
            piece: _Piece(vectors[i], float(logits[i]), shares[i].tolist(), (*kinds[i].tolist(),))
            for i, piece in enumerate(pieces)
        }

    def _verdict(self, part: _Parts, found: dict[str, _Piece]) -> Verdict:
        worst = max((found[window] for window in part.request), key=lambda piece: piece.harm_logit)
        wording = rules.inspect(part.content)
        findings = Findings(
            harm_logit=worst.harm_logit,
            principle_shares=worst.principle_shares,
            kinds=found[part.opening].kinds,
            refusal_evidence=wording.refusal,
            degenerate=wording.degenerate,
            relevance=None if part.prompt is None else relevance(found[part.prompt].vector, found[part.content].vector),
        )
        return combine.decide(findings, self.constitution.principles, self.calibration, self._config.combine)


@dataclass(frozen=True, slots=True)
class _Piece:
    """What the heads say of one piece of text."""

    vector: Vectors
    harm_logit: float
    principle_shares: list[float]
    kinds: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class _Parts:
    """A text cut into the pieces that get a vector."""

    content: str
    opening: str
    request: list[str]
    prompt: str | None

    @classmethod
    def of(cls, text: Judged) -> _Parts:
        content = " ".join(text.content.split())
        prompt = None if text.prompt is None else " ".join(text.prompt.split())
        return cls(content, rules.opening(content), windows(content if prompt is None else prompt), prompt)

    def pieces(self) -> list[str]:
        return [self.opening, *self.request] + ([self.prompt, self.content] if self.prompt is not None else [])


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
