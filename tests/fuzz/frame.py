"""What every fuzz target shares: cases by number, bounds on time and memory, what logs may say, and the account.

A case is a JSON object, so that one which was found can be kept as a file. Case N of a seed is always the same, as long
as the code that makes it is.
"""

from __future__ import annotations

import faulthandler
import json
import random
import re
import resource
import signal
import time
import traceback
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, ClassVar

from fuzz.ear import Ear, listening

Case = dict[str, Any]

DEAF_S = 600.0
"""A case that takes so long by the clock ends the process with a traceback: it does not even let itself be stopped."""
CHECK_EVERY = 100
MOST_SHOWN = 20_000


class Broken(AssertionError):
    """A property does not hold."""


class Hung(BaseException):
    """The watchdog's; nothing that is fuzzed may catch it."""


def check(holds: bool, otherwise: str) -> None:
    """Raise `Broken` unless a property holds."""
    if not holds:
        raise Broken(otherwise)


class Target(ABC):
    """One boundary: makes cases, runs one against the real thing and holds it to what it promises.

    hang_s: CPU seconds from which a case is a finding; by the clock, a busy machine would make findings of its own.
    memory_mb: by how much a case may raise the process' resident memory at its highest.
    short_cases: how many the short form runs, about what two cores do in 20 s; enough to reach what it should.
    secrets: what may stand in no answer, message or log.
    """

    name: ClassVar[str]
    hang_s: ClassVar[float] = 5.0
    memory_mb: ClassVar[int] = 300
    short_cases: ClassVar[int] = 500
    secrets: tuple[str, ...] = ()

    def __init__(self, folder: Path) -> None:
        """`folder` is empty and the target's own."""
        self.folder = folder
        self.stack = ExitStack()

    def __enter__(self) -> Target:
        """Start what is fuzzed."""
        try:
            self.start()
        except BaseException:
            self.stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stack.close()

    def start(self) -> None:  # noqa: B027 - some have nothing to start
        """Start what is fuzzed; what has to end goes on `self.stack`."""

    @abstractmethod
    def case(self, draw: random.Random) -> Case:
        """A case, from nothing but the random stream."""

    @abstractmethod
    def run(self, case: Case) -> str:
        """Run it; returns what came of it, in a word or two. Raises `Broken`; anything else raised is a finding too."""

    def first(self) -> list[Case]:
        """Cases to begin with, so that even a short run reaches everything. Asked for once it is started."""
        return []

    def settle(self) -> None:  # noqa: B027 - some have nothing to see to
        """Now and then, and at the end: valid input is still taken. Raises `Broken`."""

    @abstractmethod
    def unreached(self, outcomes: Counter[str]) -> set[str]:
        """What a run of some seconds must have come to and has not: a fuzzer that reaches nothing finds nothing."""

    def unsaid(self, text: str, where: str) -> None:
        """Raises `Broken` where a text holds a secret."""
        for secret in self.secrets:
            check(secret not in text, f"{where} holds the secret {secret[:4]}...")


@dataclass
class Finding:
    """A case that breaks a property."""

    number: int
    case: Case
    what: str

    @property
    def kind(self) -> str:
        """What findings of one cause have in common."""
        return re.sub(r"\d+|'.*?'|\".*?\"|\[.*?\]", "", self.what)[:300]

    def __str__(self) -> str:
        return f"case {self.number}: {self.what[:3000]}\n  {json.dumps(self.case)[:MOST_SHOWN]}"


@dataclass
class Result:
    """What a run came to."""

    cases: int = 0
    seconds: float = 0.0
    outcomes: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)
    """The first of each kind."""
    kinds: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, int] = (0.0, -1)
    largest: tuple[int, int] = (0, -1)
    unreached: set[str] = field(default_factory=set)

    def found(self, number: int, case: Case, what: str) -> None:
        """Note a finding."""
        finding = Finding(number, case, what)
        self.kinds[finding.kind] += 1
        if self.kinds[finding.kind] == 1:
            self.findings.append(finding)

    def __str__(self) -> str:
        slowest = f"slowest {self.slowest[0]:.3f} s of CPU (case {self.slowest[1]})"
        lines = [
            f"{self.cases} cases in {self.seconds:.0f} s; {len(self.findings)} findings",
            f"{slowest}, largest {self.largest[0] // 1024} MiB (case {self.largest[1]})",
            f"outcomes {dict(self.outcomes.most_common())}",
            *([f"never reached: {sorted(self.unreached)}"] if self.unreached else []),
        ]
        told = [f"{finding}\n  {self.kinds[finding.kind]} cases of this kind" for finding in self.findings]
        return "\n".join([*lines, *told])


@contextmanager
def watchdog(cpu_s: float, deaf_s: float = DEAF_S) -> Iterator[None]:
    """Interrupt what uses more CPU time; end the process where that is not possible, or after `deaf_s` by the clock."""

    def hung(signum: int, frame: FrameType | None) -> None:
        raise Hung(f"took more than {cpu_s:g} s of CPU, at {''.join(traceback.format_stack(frame, 3))}")

    before = signal.signal(signal.SIGPROF, hung)
    faulthandler.dump_traceback_later(deaf_s, exit=True)
    signal.setitimer(signal.ITIMER_PROF, cpu_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGPROF, before)


def case_of(target: Target, seed: int, number: int) -> Case:
    """Case `number` of `seed`."""
    first = target.first()
    if number < len(first):
        return first[number]
    made: Case = target.case(random.Random(f"{target.name}:{seed}:{number}"))
    return made


def attempt(target: Target, case: Case, number: int, result: Result, ear: Ear) -> None:
    """Run one case and note what came of it."""
    ear.clear()
    memory = _forget_peak()
    started = time.process_time()
    try:
        with watchdog(target.hang_s):
            outcome = target.run(case)
        for text in ear.said:
            target.unsaid(text, "the log")
        check(not ear.faults, f"an exception was logged: {''.join(ear.faults[:1])}")
        grown = _peak() - memory
        check(grown < target.memory_mb * 1024, f"took {grown // 1024} MiB, more than {target.memory_mb}")
        result.largest = max(result.largest, (grown, number))
    except (Exception, Hung) as error:  # noqa: BLE001 - whatever is raised is the finding
        result.found(number, case, f"{type(error).__name__}: {error} ({place_of(error)})")
    else:
        result.outcomes[outcome] += 1
    result.cases += 1
    result.slowest = max(result.slowest, (time.process_time() - started, number))


def place_of(error: BaseException) -> str:
    """Where an error was raised, the innermost first."""
    frames = traceback.extract_tb(error.__traceback__)
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames[-5:]))


def run(
    target: Target,
    seconds: float,
    seed: int,
    *,
    most_cases: int | None = None,
    most_findings: int = 12,
    last: Path | None = None,
) -> Result:
    """Fuzz for so many seconds or cases, the first cases in any case, or until so many kinds of finding are made.

    `last`: keeps the case under way there, for one that ends the process.
    """
    result, started = Result(), time.monotonic()
    told, first = started, len(target.first())
    with listening() as ear:
        while len(result.findings) < most_findings:
            enough = most_cases is not None and result.cases >= most_cases
            if result.cases >= first and (enough or time.monotonic() - started >= seconds):
                break
            case = case_of(target, seed, result.cases)
            if last is not None:
                last.write_text(json.dumps(case))
            attempt(target, case, result.cases, result, ear)
            if result.cases % CHECK_EVERY == 0:
                _settle(target, result, ear)
            if time.monotonic() - told > 60:
                told = time.monotonic()
                print(f"{told - started:.0f} s: {result.cases} cases, {len(result.findings)} findings", flush=True)
        _settle(target, result, ear)
    result.seconds = time.monotonic() - started
    result.unreached = target.unreached(result.outcomes)
    return result


def replay(target: Target, case: Case) -> Result:
    """Run one case as `run` would, and see that valid input is taken after it."""
    result = Result()
    with listening() as ear:
        attempt(target, case, 0, result, ear)
        _settle(target, result, ear)
    return result


def _settle(target: Target, result: Result, ear: Ear) -> None:
    ear.clear()
    try:
        target.settle()
        check(not ear.faults, f"an exception was logged: {''.join(ear.faults[:1])}")
    except Exception as error:  # noqa: BLE001 - whatever is raised is the finding
        result.found(result.cases, {}, f"valid input after it: {type(error).__name__}: {error} ({place_of(error)})")


def _forget_peak() -> int:
    """Begin to measure the highest resident memory anew; returns it as it is now, in KiB."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _peak()


def _peak() -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
