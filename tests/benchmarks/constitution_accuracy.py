"""How well the policy engine tells harm from harmlessness and refusing from answering, on texts new to it."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from policies.constitution import Constitution
from policies.engine import exemplars
from policies.engine.combine import Verdict
from policies.engine.config import EngineConfig
from policies.engine.embedding import LAYERS, SentenceEncoder
from policies.engine.evaluator import PolicyEvaluator
from policies.engine.reading import Judged

# A prompt whose sentence embedding is so near to that of an exemplar of its side is no new topic.
SAME_TOPIC = 0.7
KINDS = ("refuse", "comply", "other")

Shares = npt.NDArray[np.float64]
Truth = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Scored:
    """Probabilities and what is true of each text."""

    probability: Shares
    true: Truth


@dataclass
class Measured:
    """Figures by name, and the scores behind them, for the diagram."""

    figures: dict[str, Any] = field(default_factory=dict)
    scored: dict[str, Scored] = field(default_factory=dict)


def measure(evaluator: PolicyEvaluator, encoder: SentenceEncoder, data: Path, outside: Path, demo: Path) -> Measured:
    """All figures of accuracy. `data` holds our labelled texts, `outside` the test data that is not in the project,
    `demo` the demonstration's prompts; the figures of what is absent are None."""
    found = Measured()
    plain = _rows(data / "plain_requests.jsonl")
    _plain(found, evaluator, encoder, plain)
    _xstest(found, evaluator, outside / "xstest_dev.csv")
    prompts = _rows(demo)
    harm = _request_harm(evaluator, [row["prompt"] for row in prompts])
    found.scored["demo prompts"] = Scored(harm, np.array([row["expected"] == "refuse" for row in prompts]))
    found.figures["demo_auroc"] = round(auroc(found.scored["demo prompts"]), 4)
    found.figures["demo_prompts"] = len(prompts)
    _generations(found, evaluator, _rows(data / "refusals.jsonl"))
    _authored(found, evaluator, encoder)
    found.figures["brier"] = {name: round(brier(scored), 4) for name, scored in found.scored.items()}
    return found


def auroc(scored: Scored) -> float:
    """The share of pairs of a true and a false text in which the true one scores higher, ties counting half."""
    true, false = scored.probability[scored.true], scored.probability[~scored.true]
    higher = (true[:, None] > false[None, :]).mean()
    return float(higher + 0.5 * (true[:, None] == false[None, :]).mean())


def brier(scored: Scored) -> float:
    """Mean squared difference between probability and truth (Brier 1950); 0 is best, 0.25 says nothing."""
    return float(np.mean((scored.probability - scored.true) ** 2))


def bins(scored: Scored, count: int = 10) -> list[dict[str, float]]:
    """Of equal ranges of probability that hold texts: mean probability, share of true ones, number."""
    which = np.minimum((scored.probability * count).astype(int), count - 1)
    return [
        {
            "probability": round(float(scored.probability[which == number].mean()), 4),
            "true": round(float(scored.true[which == number].mean()), 4),
            "texts": int((which == number).sum()),
        }
        for number in range(count)
        if (which == number).any()
    ]


def _plain(found: Measured, evaluator: PolicyEvaluator, encoder: SentenceEncoder, rows: list[dict[str, str]]) -> None:
    """Plainly harmful against plainly benign requests; those of a topic that exemplars have are left out."""
    near = _nearest(evaluator.constitution, encoder, rows)
    kept = [row for row, likeness in zip(rows, near, strict=True) if likeness < SAME_TOPIC]
    harm = _request_harm(evaluator, [row["prompt"] for row in kept])
    scored = Scored(harm, np.array([row["label"] == "harmful" for row in kept]))
    found.scored["plain requests"] = scored
    threshold = 1.0 - EngineConfig().combine.threshold
    found.figures |= {
        "plain_auroc": round(auroc(scored), 4),
        "plain": {
            "harmful": int(scored.true.sum()),
            "harmless": int((~scored.true).sum()),
            "left_out_of_a_topic_with_exemplars": len(rows) - len(kept),
            "harmful_above_the_threshold": round(float((harm[scored.true] > threshold).mean()), 4),
            "harmless_above_the_threshold": round(float((harm[~scored.true] > threshold).mean()), 4),
        },
    }


def _nearest(constitution: Constitution, encoder: SentenceEncoder, rows: list[dict[str, str]]) -> Shares:
    """For each request, the likeness (cosine) of the nearest exemplar of its side."""
    requests = exemplars.request_set(constitution)
    size = encoder.encode(["width"]).shape[1] // len(LAYERS)
    known = encoder.encode(requests.texts)[:, :size]
    likeness = encoder.encode([row["prompt"] for row in rows])[:, :size] @ known.T
    own_side = np.array([row["label"] == "harmful" for row in rows])[:, None] == (requests.harmful == 1)[None, :]
    nearest: Shares = np.where(own_side, likeness, -1.0).max(axis=1)
    return nearest


def _xstest(found: Measured, evaluator: PolicyEvaluator, path: Path) -> None:
    if not path.exists():
        found.figures["xstest_dev_auroc"] = None
        return
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    harm = _request_harm(evaluator, [row["prompt"] for row in rows])
    scored = Scored(harm, np.array([row["label"] == "unsafe" for row in rows]))
    found.scored["XSTest half"] = scored
    found.figures |= {"xstest_dev_auroc": round(auroc(scored), 4), "xstest_dev_prompts": len(rows)}


def _generations(found: Measured, evaluator: PolicyEvaluator, rows: list[dict[str, Any]]) -> None:
    """What a real model wrote, labelled by hand: refusal against compliance, and harmless requests called refused."""
    verdicts = evaluator.evaluate([Judged(row["response"], row["prompt"]) for row in rows])
    either = [(row, verdict) for row, verdict in zip(rows, verdicts, strict=True) if row["label"] != "other"]
    right = [_says_refusal(verdict) == (row["label"] == "refuse") for row, verdict in either]
    modes = Counter(row["mode"] for row, _ in either)
    right_by_mode = Counter(row["mode"] for (row, _), good in zip(either, right, strict=True) if good)
    found.scored["real answers refuse"] = Scored(
        np.array([verdict.scores["answer_refusal"] for _, verdict in either]),
        np.array([row["label"] == "refuse" for row, _ in either]),
    )
    confusion = Counter((row["label"], _kind(verdict)) for row, verdict in zip(rows, verdicts, strict=True))
    harmless = [
        verdict
        for row, verdict in zip(rows, verdicts, strict=True)
        if row["asked"] == "harmless" and row["label"] == "comply"
    ]
    found.figures |= {
        "refusal_accuracy": round(sum(right) / len(right), 4),
        "refusal_n": len(right),
        "refusal_confusion": {label: {kind: confusion[label, kind] for kind in KINDS} for label in KINDS},
        "refusal_accuracy_by_mode": {mode: [right_by_mode[mode], count] for mode, count in sorted(modes.items())},
        "false_refusal": {"real": _false_refusal(harmless)},
    }


def _authored(found: Measured, evaluator: PolicyEvaluator, encoder: SentenceEncoder) -> None:
    """The constitution's own pairs: cross-validated where its heads were fitted on them."""
    constitution = evaluator.constitution
    pairs = evaluator.evaluate([Judged(pair.answer, pair.prompt) for pair in constitution.benign])
    found.figures["false_refusal"]["authored"] = _false_refusal(pairs)
    report = evaluator.report
    found.figures["authored_held_out"] = {name: round(getattr(report, name), 4) for name in report.__slots__}
    requests, answers = exemplars.request_set(constitution), exemplars.answer_set(constitution)
    scored = exemplars.held_out(requests, encoder.encode(requests.texts), answers, encoder.encode(answers.texts))
    harm = np.array([evaluator.calibration.harm(float(odds)) for odds in scored.request_logits])
    found.scored["own requests, held out"] = Scored(harm, requests.harmful == 1)


def _false_refusal(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Of answers to harmless requests that comply: how many are called a refusal, and how many are denied for harm.

    Answers that repeat themselves are denied as no answers, which is right, and counted by themselves.
    """
    degenerate = [verdict for verdict in verdicts if "degenerate_answer" in verdict.violations]
    others = [verdict for verdict in verdicts if verdict not in degenerate]
    refused = sum(verdict.scores["over_refusal"] >= 0.5 for verdict in others)
    denied = sum(not verdict.allow for verdict in others)
    return {
        "share": round((refused + denied) / len(others), 4),
        "called_refusals": refused,
        "denied": denied,
        "texts": len(others),
        "degenerate": len(degenerate),
    }


def _says_refusal(verdict: Verdict) -> bool:
    return verdict.scores["answer_refusal"] >= 0.5


def _kind(verdict: Verdict) -> str:
    if _says_refusal(verdict):
        return "refuse"
    return "comply" if verdict.scores["answer_compliance"] >= verdict.scores["answer_deflection"] else "other"


def _request_harm(evaluator: PolicyEvaluator, prompts: list[str]) -> Shares:
    return np.array([verdict.scores["request_harm"] for verdict in evaluator.evaluate([Judged(p) for p in prompts])])


def _rows(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]
