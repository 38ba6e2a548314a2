"""The fuzzer of `fuzz_routing.py` led by coverage, where atheris is installed (`pip install atheris`).

    python tests/fuzz_coverage.py -max_total_time=600      # further arguments are libFuzzer's

A finding ends the run with its traceback; libFuzzer writes the input to a file, and the same command with that file's
name runs it again. An input is four bytes that choose headers and limits, then the message.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import atheris  # type: ignore[import-not-found]

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[1])]

with atheris.instrument_imports(include=["agents.routing"]):
    import fuzz_checks
    import fuzz_routing
    from fuzz_cases import Case, Maker
    from fuzz_words import CONTENT_TYPES, ENCODINGS, OWNERS

SEEDS = 2_000
HEADERS = {"content-type": CONTENT_TYPES, "content-encoding": ENCODINGS, "flywheel-owner": OWNERS}


def case_of(data: bytes) -> Case:
    """The case that an input stands for."""
    chosen = zip(HEADERS.items(), data, strict=False)
    return Case(data[4:], {name: choices[at] for (name, choices), at in chosen if at < len(choices)})


def input_of(case: Case) -> bytes:
    """An input that stands for a case, as far as one can."""
    chosen = [
        choices.index(case.headers[name]) if case.headers.get(name) in choices else 255
        for name, choices in HEADERS.items()
    ]
    return bytes([*chosen, 0]) + (case.value or b"")


def test_one_input(data: bytes) -> None:
    """Run one input; what it raises is the finding."""
    fuzz_checks.run_case(case_of(data), random.Random(data[3] if len(data) > 3 else 0))


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Break a message with its structure in mind, or as libFuzzer would, or put another in its place."""
    draw = random.Random(seed)
    kind = draw.random()
    if kind < 0.5:
        return bytes(atheris.Mutate(data, max_size))
    if kind < 0.9:
        return (data[:4] + Maker(draw).break_bytes(data[4:]))[:max_size]
    return input_of(Maker(draw).case())[:max_size]


def main() -> None:
    """Fill a corpus with cases of every form, and begin."""
    with tempfile.TemporaryDirectory() as corpus:
        for number in range(SEEDS):
            case, _ = fuzz_routing.case_of(0, number)
            if len(case.value or b"") < 20_000:
                Path(corpus, str(number)).write_bytes(input_of(case))
        again = len(sys.argv) > 1 and Path(sys.argv[-1]).is_file()
        more = ["-timeout=2", "-max_len=20000", *([] if again else [corpus])]
        atheris.Setup([*sys.argv, *more], test_one_input, custom_mutator=mutate)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
