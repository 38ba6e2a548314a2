"""The engine's own Prometheus metrics, each service instance with its own registry."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class EngineMetrics:
    """What the service counts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.evaluations = Counter(
            "policy_engine_evaluations", "Texts judged, by result", ["result"], registry=self.registry
        )
        self.violations = Counter("policy_engine_violations", "Violation codes given", ["code"], registry=self.registry)
        self.seconds = Histogram(
            "policy_engine_request_seconds",
            "Seconds from an accepted request to its verdicts",
            ["endpoint"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.waiting = Gauge("policy_engine_waiting_texts", "Texts waiting for the model", registry=self.registry)
        self.ready = Gauge("policy_engine_ready", "1 once the heads are fitted", registry=self.registry)
        self.load_seconds = Gauge(
            "policy_engine_load_seconds", "Seconds from start to fitted heads", registry=self.registry
        )
        self.judge = Counter(
            "policy_engine_judge",
            "Texts for the judge model, by what came of it: answered, or what kept the answer away",
            ["outcome"],
            registry=self.registry,
        )
        self.judge_budget_left = Gauge(
            "policy_engine_judge_budget_left",
            "What may still be spent on the judge today (UTC), where there is a limit",
            ["unit"],
            registry=self.registry,
        )

    def judged(self, allow: bool, codes: list[str]) -> None:
        """Count one decision."""
        self.evaluations.labels("allow" if allow else "deny").inc()
        for code in codes:
            self.violations.labels(code).inc()
