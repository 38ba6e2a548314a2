"""Checks a demo's result file: `python -m app.demo.check var/demo/result.json`. Exit status 1 names what is wrong."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import orjson

from app.demo.result import unaccounted

ENDED = {"promoted", "rejected"}


def problems(result: dict[str, Any]) -> list[str]:
    """What is wrong with a result, in sentences; empty when nothing is."""
    found = []
    events = result["events"]
    if unaccounted(events):
        found.append(f"{unaccounted(events)} of {events['in']} events have no outcome")
    if events["in"] != result["events_sent"]:
        found.append(f"{result['events_sent']} events were sent and {events['in']} were counted")
    if events["dead_lettered"] != result["expected_dead_letters"]:
        found.append(f"{events['dead_lettered']} dead letters, {result['expected_dead_letters']} were sent broken")
    found += [f"no event was {name}" for name in ("routed", "filtered", "duplicate", "sampled_out") if not events[name]]
    for kind in ("SUBJECT", "EMAIL"):
        if not result["routing"]["scrubbed"].get(kind):
            found.append(f"nothing of type {kind} was masked, though some was sent")
    if result["cycle"]["state"] not in ENDED:
        found.append(f"the cycle ended as {result['cycle']['state']}")
    privacy = result["privacy"]
    if privacy is None:
        found.append("nothing was trained: there is no privacy figure")
    elif not 0.0 < privacy["epsilon"] <= privacy["budget"]:
        found.append(f"epsilon {privacy['epsilon']} is not within (0, {privacy['budget']}]")
    for name in ("adherence", "over_refusal"):
        figure = result[name]
        if figure is None or not figure["n"]:
            found.append(f"{name} was not measured")
        else:
            found += _misplaced(name, figure)
    return found + _adapter(result)


def _misplaced(name: str, figure: dict[str, Any]) -> list[str]:
    wrong = []
    for model in ("base", "candidate"):
        low, high = figure["interval"][model]
        if not 0.0 <= low <= figure[model] <= high <= 1.0:
            wrong.append(f"{name} of {model}, {figure[model]}, lies outside its interval [{low}, {high}]")
    return wrong


def _adapter(result: dict[str, Any]) -> list[str]:
    """Load the adapter onto its base model, as whoever serves it would."""
    from agents.training.ml.lora import AdapterError, adapter_digest

    directory = Path(result["cycle"]["artifacts"]) / "adapter"
    try:
        digest = adapter_digest(directory)
    except AdapterError as error:
        return [f"the adapter cannot be loaded: {error}"]
    if digest != result.get("adapter_digest"):
        return [f"the adapter on disk ({digest[:12]}) is not the one that was evaluated"]
    return _reload(directory)


def _reload(directory: Path) -> list[str]:
    import torch

    from agents.training.ml.base_model import load_model, locate_model
    from agents.training.ml.lora import adapter_state, load_adapter
    from app.settings import load_settings

    training = load_settings().training
    path = locate_model(training.base_model, training.model_cache)
    base, _ = load_model(path, torch.bfloat16, torch.device("cpu"))
    state = adapter_state(load_adapter(base, directory))
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all() or not tensor.any()]
    return [f"{len(broken)} of {len(state)} reloaded adapter tensors are zero or not finite"] if broken else []


def main(arguments: list[str]) -> int:
    """Check the file named on the command line."""
    if len(arguments) != 1:
        print("usage: python -m app.demo.check RESULT.json", file=sys.stderr)
        return 2
    result = orjson.loads(Path(arguments[0]).read_bytes())
    found = problems(result)
    for problem in found:
        print(f"demo result: {problem}", file=sys.stderr)
    if not found:
        print(
            f"demo result: {result['events']['in']} events accounted for, "
            f"cycle {result['cycle']['state']}, the adapter loads"
        )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
