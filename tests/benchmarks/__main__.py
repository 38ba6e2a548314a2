"""`make bench`: measures, prints a table and writes `var/bench/routing.json`. See README.md."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import delivery, overhead
from benchmarks.cases import CASES, SCRUBBED, Sizes, fill_input, tell_outcome
from benchmarks.messages import Form
from benchmarks.profiling import ProfileKind
from benchmarks.run import OURS, run
from benchmarks.stage import REPOSITORY, Stage, open_stage
from benchmarks.suite import Options, run_suite

RESULT = REPOSITORY / "var" / "bench" / "routing.json"
_SIZES = Sizes()
_NONE = "none"


def main(arguments: list[str] | None = None) -> int:
    """Run what the arguments ask for; 1 where counts at the output topics were wrong."""
    asked = _parser().parse_args(arguments)
    asked.events = asked.events or (overhead.EVENTS if asked.telemetry else _SIZES.events)
    with open_stage() as stage:
        if asked.telemetry:
            return 0 if overhead.measure(stage, asked.events, asked.telemetry, asked.out)["counts_exact"] else 1
        if asked.delivery:
            form = Form((asked.cases or CASES)[0])
            return 0 if delivery.measure(stage, asked.events, asked.delivery, form, asked.out)["counts_exact"] else 1
        if asked.profile:
            profile(stage, (asked.cases or CASES)[0], asked.events, ProfileKind(asked.profile))
            return 0
        return 0 if run_suite(stage, _options(asked), asked.out) else 1


def profile(stage: Stage, case: str, count: int, kind: ProfileKind) -> None:
    """Run ours once over a case's input and print where its time went."""
    form = Form.JSON_BODY if case == SCRUBBED else Form(case)
    changes = {"pii": {"router": "scrub"}} if case == SCRUBBED else {}
    outcome = run(stage, OURS, fill_input(stage, form, count), changes, kind)
    print(outcome.profile)
    tell_outcome(f"{case}, while it was looked at", outcome)


def _options(asked: argparse.Namespace) -> Options:
    return Options(
        cases=tuple(asked.cases),
        sizes=Sizes(
            asked.events, asked.baseline_events, asked.specification_events, asked.repeat, asked.baseline_repeat
        ),
        only_ours=asked.only_ours,
        latency={"both": ("single", "otlp"), "off": ()}.get(asked.latency, (asked.latency,)),
        memory=asked.full or asked.memory,
        claims=asked.full or asked.claims,
        startup=asked.full or asked.startup,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make bench", description="The routing benchmark.")
    add = parser.add_argument
    add("--cases", type=_cases, default=list(CASES), help=f"of {','.join(CASES)}, or {_NONE}; all by default")
    add(
        "--events",
        type=_count,
        help=f"of the reference mix, for ours: {_SIZES.events}, with --telemetry {overhead.EVENTS}",
    )
    add("--baseline-events", type=_count, default=_SIZES.baseline_events, help="for a baseline")
    add("--specification-events", type=_count, default=_SIZES.specification_events, help="for the slowest baseline")
    add("--repeat", type=_count, default=_SIZES.repeat, help="runs of ours a case; figures are medians")
    add("--baseline-repeat", type=_count, default=_SIZES.baseline_repeat, help="runs of each baseline a case")
    add("--only-ours", action="store_true", help="no baselines, so no ratios")
    add("--latency", choices=("single", "otlp", "both", "off"), default="single", help="form of the steady stream")
    add("--memory", action="store_true", help="peak memory over 10,000 and 2,000,000 events")
    add("--claims", action="store_true", help="cost a record beside 0 and 5,000,000 claims")
    add("--startup", action="store_true", help="from process start to first routed batch")
    add("--telemetry", nargs="?", const=15, type=_count, help="only what metrics and traces cost, over so many pairs")
    add("--delivery", nargs="?", const=5, type=_count, help="only what exactly-once costs, first case, so many pairs")
    add("--full", action="store_true", help="all of the last three")
    add("--profile", nargs="?", const="sample", choices=[kind.value for kind in ProfileKind], help="ours, first case")
    add("--out", type=Path, default=RESULT, help="where the JSON document goes")
    return parser


def _cases(text: str) -> list[str]:
    if text == _NONE:
        return []
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in CASES:
            raise argparse.ArgumentTypeError(f"{name!r} is no case: use some of {', '.join(CASES)}")
    return names


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: use a whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
