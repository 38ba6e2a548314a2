"""How large a demo is, and the settings it runs with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.embedded.stack import BrokerKind


@dataclass(frozen=True, slots=True)
class DemoOptions:
    """What the command line asked for."""

    broker: BrokerKind
    full: bool
    keep: bool
    seed: int
    prompts: Path | None
    as_json: bool


@dataclass(frozen=True, slots=True)
class DemoSize:
    """How many prompts of each kind, and how long everything takes."""

    harmful: int
    benign: int
    held_out: int
    epochs: int
    new_tokens: int
    min_examples: int
    batch_size: int
    learning_rate: float
    in_context_examples: int

    @classmethod
    def of(cls, full: bool) -> DemoSize:
        """The short demo, or all authored prompts."""
        if full:
            return cls(
                10_000,
                10_000,
                10_000,
                epochs=10,
                new_tokens=48,
                min_examples=96,
                batch_size=128,
                learning_rate=5e-3,
                in_context_examples=4,
            )
        return cls(
            160,
            40,
            40,
            epochs=3,
            new_tokens=32,
            min_examples=48,
            batch_size=96,
            learning_rate=1e-2,
            # Four of them cost three and a half times what the bare prompts do, two a third more.
            in_context_examples=2,
        )


def demo_changes(size: DemoSize, suite: Path) -> dict[str, dict[str, Any]]:
    """What the demo changes in the settings, section by section. All else is the specification's default."""
    return {
        "kafka": {"linger_ms": 20},
        "curation": {
            "min_examples": size.min_examples,
            "settle_s": 3.0,
            "cooldown_s": 0.0,
            # The demo's held-out prompts are of other topics than the training ones; the file says which.
            "held_out_share": 0.0,
        },
        "generation": {"max_new_tokens": size.new_tokens, "prompt_tokens": 256, "batch_size": 16},
        "revision": {"max_new_tokens": size.new_tokens},
        "evaluation": {
            "suites": (suite,),
            "max_new_tokens": size.new_tokens,
            "public_prompts": 0,
            "in_context_examples": size.in_context_examples,
        },
        "training": {
            "epochs": size.epochs,
            "batch_size": size.batch_size,
            "learning_rate": size.learning_rate,
            "max_tokens": 256,
            "poll_s": 0.3,
        },
        "privacy": {"cycle_targets": (8.0,)},
        # One cycle may spend the whole budget here, and nobody sits by to approve it.
        "gate": {"bounds": {"fast_lane_epsilon": 8.0}},
        "monitoring": {"interval_s": 5.0},
        "log": {"format": "json"},
    }
