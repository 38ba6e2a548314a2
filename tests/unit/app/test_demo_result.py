"""The demo's result: the check finds each defect, the page is one file that says what the result says."""

from __future__ import annotations

import copy
import html
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from app.demo import check
from app.demo.result import print_result, save_result, unaccounted

HOSTILE = "<script>alert('x')</script>"


def interval(base: float, candidate: float, n: int = 40) -> dict[str, Any]:
    bounds = {"base": [base - 0.05, base + 0.05], "candidate": [candidate - 0.05, candidate + 0.05]}
    return {"base": base, "candidate": candidate, "interval": bounds, "n": n}


def sound() -> dict[str, Any]:
    """A result with nothing wrong, made by hand."""
    figures = {"adherence": interval(0.2, 0.9), "over_refusal": interval(0.1, 0.15)}
    shares = {"harmful": 10, "adherent": 2, "benign": 10, "refused": 1}
    return {
        "events": {"in": 100, "routed": 40, "filtered": 30, "duplicate": 8, "sampled_out": 19, "dead_lettered": 3},
        "events_sent": 100,
        "expected_dead_letters": 3,
        "routing": {
            "by_classification": {},
            "by_reason": {"invalid_score": 2, "invalid_violations": 1},
            "scrubbed": {"EMAIL": 12, "SUBJECT": 40},
            "id_conflict": 0,
        },
        **figures,
        "second_evaluator": {"name": "second", **copy.deepcopy(figures)},
        "by_category": {
            "harm": {"base": shares, "candidate": shares | {"adherent": 9}},
            "chat": {"base": shares | {"harmful": 0}, "candidate": shares},
        },
        "held_out_loss": {"base": 2.5, "candidate": 2.4, "n": 40},
        "adapter_digest": "d" * 64,
        "privacy": {
            "epsilon": 7.9,
            "delta": 1e-5,
            "budget": 8.0,
            "remaining": 0.1,
            "statement": {
                "non_private": False,
                "epsilon": 7.9,
                "delta": 1e-5,
                "accountant": "PRV",
                "domain": "default",
                "unit": "subject",
                "n_units": 96,
                "n_public": 48,
                "sampling": "Poisson",
                "sample_rate": 0.5,
                "steps": 6,
                "noise_multiplier": 0.8,
                "max_grad_norm": 1.0,
                "not_covered": ["promotion"],
            },
        },
        "cost": {
            "teacher_per_million": 10.0,
            "machine_per_hour": 0.1,
            "student_tokens_per_s": 200.0,
            "student_per_million": 0.139,
            "saving": 0.986,
            "cycle_cost": 0.01,
            "assistant_tokens_per_s": 210.0,
        },
        "cycle": {
            "id": "20260302-091600-a1b2c3",
            "state": "rejected",
            "reasons": ["too few held-out prompts: 40 of 100"],
            "revision": None,
            "training": None,
            "members": 96,
            "artifacts": "/nowhere",
        },
        "seconds": {"answer": 10.0, "train": 100.0, "total": 110.0},
        "seed": 0,
        "machine": {"cores": 2, "processor": "x86_64"},
        "logs": "/nowhere/logs",
    }


@pytest.fixture
def _adapter_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter is checked by itself below; here it is as it should be."""
    monkeypatch.setattr(check, "_adapter", lambda _: [])


def put(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(result: dict[str, Any]) -> None:
        for name in path[:-1]:
            result = result[name]
        result[path[-1]] = value

    return change


@pytest.mark.usefixtures("_adapter_loads")
def test_a_sound_result_has_no_problems() -> None:
    assert check.problems(sound()) == []
    promoted = sound()
    promoted["cycle"]["state"] = "promoted"
    assert check.problems(promoted) == []


@pytest.mark.usefixtures("_adapter_loads")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (put("events", "routed", value=39), ["1 of 100 events have no outcome"]),
        (put("events", "routed", value=41), ["-1 of 100 events have no outcome"]),
        (put("events_sent", value=101), ["101 events were sent and 100 were counted"]),
        (put("expected_dead_letters", value=2), ["3 dead letters, 2 were sent broken"]),
        (
            put("routing", "scrubbed", value={}),
            ["nothing of type SUBJECT was masked", "nothing of type EMAIL was masked"],
        ),
        (put("cycle", "state", value="failed"), ["the cycle ended as failed"]),
        (put("cycle", "state", value="training"), ["the cycle ended as training"]),
        (put("privacy", value=None), ["nothing was trained"]),
        (put("privacy", "epsilon", value=0.0), ["epsilon 0.0 is not within (0, 8.0]"]),
        (put("privacy", "epsilon", value=8.01), ["epsilon 8.01 is not within"]),
        (put("privacy", "epsilon", value=float("nan")), ["epsilon nan is not within"]),
        (put("adherence", value=None), ["adherence was not measured"]),
        (put("over_refusal", "n", value=0), ["over_refusal was not measured"]),
        (put("adherence", "base", value=0.5), ["adherence of base, 0.5, lies outside"]),
        (put("adherence", "candidate", value=float("nan")), ["adherence of candidate, nan, lies outside"]),
        (put("over_refusal", "interval", "candidate", value=[-0.1, 0.2]), ["over_refusal of candidate"]),
        (put("over_refusal", "interval", "base", value=[0.05, 1.1]), ["over_refusal of base"]),
    ],
)
def test_each_defect_is_found(change: Callable[[dict[str, Any]], None], words: list[str]) -> None:
    result = sound()
    change(result)
    found = check.problems(result)
    assert len(found) == len(words), found
    assert all(word in problem for word, problem in zip(words, found, strict=True)), found


@pytest.mark.usefixtures("_adapter_loads")
@pytest.mark.parametrize("outcome", ["routed", "filtered", "duplicate", "sampled_out"])
def test_an_outcome_that_nothing_had_is_found(outcome: str) -> None:
    result = sound()
    events = result["events"]
    other = "filtered" if outcome == "routed" else "routed"
    events[other] += events[outcome]
    events[outcome] = 0
    assert check.problems(result) == [f"no event was {outcome}"]


@pytest.mark.torch
def test_an_adapter_that_is_missing_or_another_is_found(tmp_path: Path) -> None:
    lora = pytest.importorskip("agents.training.ml.lora", reason="torch is missing. Provide it with: make test")
    result = sound()
    result["cycle"]["artifacts"] = str(tmp_path)
    [missing] = check.problems(result)
    assert "the adapter cannot be loaded" in missing
    (tmp_path / "adapter").mkdir()
    for name in lora.ADAPTER_FILES:
        (tmp_path / "adapter" / name).write_bytes(b"x")
    [other] = check.problems(result)
    assert "is not the one that was evaluated" in other


@pytest.mark.usefixtures("_adapter_loads")
def test_the_program_exits_by_what_it_finds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "result.json"
    file.write_bytes(orjson.dumps(sound()))
    assert check.main([str(file)]) == 0
    assert "100 events accounted for, cycle rejected" in capsys.readouterr().out
    broken = sound()
    broken["events"]["in"] = 99
    file.write_bytes(orjson.dumps(broken))
    assert check.main([str(file)]) == 1
    assert "have no outcome" in capsys.readouterr().err
    assert check.main([]) == 2


@pytest.mark.parametrize(("changes", "lost"), [({}, 0), ({"in": 105}, 5), ({"duplicate": 10}, -2)])
def test_unaccounted(changes: dict[str, int], lost: int) -> None:
    assert unaccounted(sound()["events"] | changes) == lost


SAMPLES = [
    {"prompt": f"harmful {HOSTILE}", "expected": "refuse", "base": f"sure {HOSTILE}", "candidate": "no <b>way</b>"},
    {"prompt": "harmless", "expected": "comply", "base": "yes", "candidate": "yes & more"},
]


def rendered(result: dict[str, Any], tmp_path: Path, samples: list[dict[str, Any]] | None = None) -> str:
    report = pytest.importorskip("app.demo.report", reason="matplotlib is missing. Provide it with: make test")
    path = tmp_path / "report.html"
    report.write_report(result, SAMPLES if samples is None else samples, path)
    return path.read_text(encoding="utf-8")


def test_the_page_says_what_the_result_says(tmp_path: Path) -> None:
    page = html.unescape(rendered(sound(), tmp_path))
    for words in (
        "100 = 40 routed + 30 filtered + 8 duplicate + 19 sampled out + 3 dead lettered",
        "20 % → 90 %",
        "7.90 of 8.0",
        "90.0 % [85.0, 95.0]",
        "too few held-out prompts: 40 of 100",
        "12 \N{MULTIPLICATION SIGN} EMAIL",
        "2 \N{MULTIPLICATION SIGN} invalid_score",
        "Not covered by it: promotion",
        "98.6 % less",
    ):
        assert words in page, words
    assert page.count("<svg") == 4


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    page = rendered(sound(), tmp_path)
    assert "<script" not in page
    assert "<link" not in page
    assert "@import" not in page
    references = re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([^\"')\s>]+)", page)
    assert references  # the plots refer to their own parts
    assert all(reference.startswith("#") for reference in references), references


def test_answers_are_escaped_on_the_page(tmp_path: Path) -> None:
    result = sound()
    result["cycle"]["reasons"] = [HOSTILE]
    result["routing"]["by_reason"] = {HOSTILE: 1}
    page = rendered(result, tmp_path)
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 4
    assert "no &lt;b&gt;way&lt;/b&gt;" in page


def test_a_fixed_seed_is_said_loudly(tmp_path: Path) -> None:
    result = sound()
    result["privacy"]["statement"]["non_private"] = True
    page = rendered(result, tmp_path)
    assert "this adapter is not private" in page
    assert "differentially private by" not in page


def test_a_cycle_that_trained_nothing_has_a_page_too(tmp_path: Path) -> None:
    result = sound()
    for name in ("adherence", "over_refusal", "privacy"):
        result[name] = None
    for name in ("cost", "second_evaluator", "by_category", "held_out_loss"):
        del result[name]
    page = rendered(result, tmp_path, samples=[])
    assert page.count("<svg") == 2
    assert "Privacy" not in page


def test_two_runs_keep_a_folder_each_and_the_last_is_on_top(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is missing. Provide it with: make test")
    for seed, run_id in enumerate(["one", "two"]):
        result = sound() | {"seed": seed}
        assert save_result(result, tmp_path, run_id) == tmp_path / "report.html"
    assert orjson.loads((tmp_path / "result.json").read_bytes())["seed"] == 1
    assert orjson.loads((tmp_path / "one" / "result.json").read_bytes())["seed"] == 0
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == (tmp_path / "two" / "report.html").read_text(
        encoding="utf-8"
    )
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two", "result.json", "report.html"}


def test_the_terminal_shows_the_sum_and_the_reasons(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = sound()
    result["cycle"]["reasons"] = ["codes [harm] and [/bold] are text"]
    print_result(result, tmp_path / "report.html", as_json=False)
    shown = " ".join(capsys.readouterr().out.split())
    assert "100 = 40 + 30 + 8 + 19 + 3: every event is accounted for" in shown
    assert "codes [harm] and [/bold] are text" in shown
    print_result(result, tmp_path / "report.html", as_json=True)
    assert orjson.loads(capsys.readouterr().out) == result
