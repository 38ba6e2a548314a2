"""The fuzzers' frame finds what it says it finds: on a target whose faults are its cases."""

from __future__ import annotations

import json
import logging
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from fuzz import corpus, targets
from fuzz.__main__ import main
from fuzz.frame import Case, Result, Target, case_of, check, replay, run
from fuzz.values import Changer, bytes_of

SECRET = "planted-secret-of-the-frame"
KEPT: list[bytes] = []


class Faulty(Target):
    """Does what the case says."""

    name = "faulty"
    hang_s = 1.0  # new memory alone costs some tenths where pages are slow to be had
    memory_mb = 50
    secrets = (SECRET,)
    broken = False

    def case(self, draw: random.Random) -> Case:
        """Mostly nothing."""
        return {"do": draw.choice(("nothing", "nothing", "refuse")), "value": Changer(draw).word()}

    def run(self, case: Case) -> str:
        """Do it."""
        kind = case["do"]
        if kind == "raise":
            raise KeyError("x")
        if kind == "say":
            self.unsaid(f"the answer is {SECRET}", "the answer")
        if kind == "log":
            logging.getLogger("faulty").info("with %s", SECRET)
        if kind == "log a fault":
            try:
                raise ValueError("x")
            except ValueError:
                logging.getLogger("faulty").exception("it failed")
        if kind == "hang":
            end = time.process_time() + 5
            while time.process_time() < end:
                pass
        if kind == "fill":
            KEPT.append(b"x" * (80 * 1024 * 1024))
        if kind == "break":
            self.broken = True
        return kind

    def settle(self) -> None:
        """Holds until it is broken."""
        check(not self.broken, "nothing is taken any more")

    def unreached(self, outcomes: Counter[str]) -> set[str]:
        """Both that are drawn."""
        return {"nothing", "refuse"} - set(outcomes)


@pytest.fixture
def faulty(tmp_path: Path) -> Iterator[Faulty]:
    target = Faulty(tmp_path)
    with target:
        yield target
    KEPT.clear()


def what(result: Result) -> str:
    (finding,) = result.findings
    return finding.what


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("raise", "KeyError: 'x'"),
        ("say", "the answer holds the secret"),
        ("log", "the log holds the secret"),
        ("log a fault", "an exception was logged"),
        ("hang", "Hung: took more than 1 s of CPU"),
        ("fill", "MiB, more than 50"),
        ("break", "valid input after it: Broken: nothing is taken any more"),
    ],
)
def test_every_kind_of_fault_is_a_finding(faulty: Faulty, fault: str, told: str) -> None:
    assert told in what(replay(faulty, {"do": fault}))


def test_what_is_in_order_is_no_finding(faulty: Faulty) -> None:
    result = run(faulty, 0.5, 1)
    assert (result.findings, result.unreached) == ([], set())
    assert result.cases > 100


def test_a_run_that_reaches_nothing_says_so(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faulty, "run", lambda _: "nothing")
    assert run(faulty, 0.2, 1).unreached == {"refuse"}


def test_the_short_form_ends_at_a_case_whatever_the_machine(faulty: Faulty) -> None:
    result = run(faulty, 60.0, 1, most_cases=40)
    assert (result.cases, result.unreached) == (40, set())


def test_the_first_cases_are_run_in_any_case(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faulty, "first", lambda: [{"do": "nothing"}] * 5)
    assert run(faulty, 60.0, 1, most_cases=2).cases == 5
    assert run(faulty, 0.0, 1, most_cases=10_000).cases == 5


def test_a_case_is_the_same_again(faulty: Faulty) -> None:
    assert [case_of(faulty, 3, number) for number in range(50)] == [case_of(faulty, 3, number) for number in range(50)]
    assert case_of(faulty, 3, 1) != case_of(faulty, 4, 1) or case_of(faulty, 3, 2) != case_of(faulty, 4, 2)


def test_findings_of_one_cause_are_told_once(faulty: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faulty, "run", lambda case: check(False, f"broken at {random.randrange(10**9)}"))
    result = run(faulty, 0.2, 1)
    assert len(result.findings) == 1
    assert result.kinds.total() == result.cases > 1


def test_changes_are_json_and_leave_what_they_change(faulty: Faulty) -> None:
    tree = {"a": [1, {"b": "text"}], "c": None}
    for number in range(300):
        changer = Changer(random.Random(number))
        json.loads(json.dumps(changer.change(tree, 5)))
        changer.text_of(changer.change(tree, 3)).encode("latin-1")
    assert tree == {"a": [1, {"b": "text"}], "c": None}
    assert bytes_of([["ab", 3], ["\xff", 1]]) == b"ababab\xff"


def test_every_target_has_a_corpus_and_every_corpus_a_target() -> None:
    folders = {path.name for path in corpus.FOLDER.iterdir()}
    assert folders <= set(targets.NAMES)
    for name in folders:
        assert all(one.found and one.outcome and one.case for one in corpus.kept(name))


def test_the_command_keeps_a_finding_and_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(targets, "make", lambda name, folder: Faulty(folder))
    case = tmp_path / "case.json"
    case.write_text(json.dumps({"case": {"do": "raise"}}))
    assert main(["settings", "--replay", str(case), "--seed", "5"]) == 1
    kept = json.loads((tmp_path / "var/fuzz/settings-5-0.json").read_text())
    assert (kept["case"], kept["found"][:8]) == ({"do": "raise"}, "KeyError")
    assert main(["settings", "--seconds", "0.3", "--seed", "5"]) == 0
