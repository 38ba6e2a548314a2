"""What serving with the student costs against the teacher: each step of the arithmetic is a line for the report."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from agents.training.config import CostConfig

MILLION = 1e6


@dataclass(frozen=True, slots=True)
class Measured:
    """What was measured. `servable` of `answers` may be served; the cycle's machine hours and its teacher's fees."""

    tokens_per_s: float
    servable: int
    answers: int
    cycle_seconds: float
    teacher_fees: float


@dataclass(frozen=True, slots=True)
class Line:
    """One step: what it is, how it arises (with the figures), what comes out, in which unit."""

    what: str
    how: str
    value: float
    unit: str


def cost_figures(prices: CostConfig, measured: Measured) -> dict[str, Any]:
    """The cost document; dollars are US dollars. Where nothing was written there is no price: values are None.

    The teacher's price is that of its output tokens alone. What it would charge for prompts is left out, which favours
    the teacher; the student's price holds the time that prompts take.
    """
    lines: list[Line] = []

    def line(what: str, how: str, value: float, unit: str) -> float:
        lines.append(Line(what, how, value, unit))
        return value

    hours = measured.cycle_seconds / 3600.0
    cycle = hours * prices.machine_per_hour + measured.teacher_fees
    document: dict[str, Any] = {
        "prices": prices.model_dump(),
        "target_saving": prices.target_saving,
        "servable": {"answers": measured.servable, "of": measured.answers},
        "cycle": cycle,
        "student_per_million": None,
        "saving_per_token": None,
        "saving_with_cycle": None,
        "saving_all_traffic": None,
        "break_even_million": None,
        "lines": [],
    }
    if not measured.tokens_per_s or not measured.answers:
        return document
    per_hour = line(
        "Student, tokens an hour",
        f"{measured.tokens_per_s:.1f} tokens/s measured on the candidate x 3600 s",
        measured.tokens_per_s * 3600.0,
        "tokens",
    )
    student = line(
        "Student, a million tokens",
        f"{prices.machine_per_hour:g} $ an hour / {per_hour:,.0f} tokens x 1,000,000",
        prices.machine_per_hour / per_hour * MILLION,
        "$",
    )
    teacher = line(
        "Teacher, a million tokens", "cost.teacher_per_million, its output tokens", prices.teacher_per_million, "$"
    )
    per_token = line(
        "Saving on a served token", f"1 - {student:.4f} $ / {teacher:g} $", 1.0 - student / teacher, "share"
    )
    share = line(
        "Traffic the student may serve",
        f"{measured.servable} of {measured.answers} evaluated answers are compliant at the threshold, no over-refusal",
        measured.servable / measured.answers,
        "share",
    )
    line(
        "The cycle itself",
        f"{hours:.3f} machine hours x {prices.machine_per_hour:g} $ + {measured.teacher_fees:.4f} $ of teacher's fees",
        cycle,
        "$",
    )
    served = line(
        "Tokens the student serves",
        f"{prices.traffic_million:g} million (cost.traffic_million) x {share:.4f}",
        prices.traffic_million * share,
        "million",
    )
    by_student = line(
        "Their cost with the student, the cycle included",
        f"{served:.4f} x {student:.4f} $ + {cycle:.4f} $",
        served * student + cycle,
        "$",
    )
    by_teacher = line("Their cost with the teacher", f"{served:.4f} x {teacher:g} $", served * teacher, "$")
    # Nothing that may be served saves nothing, and the cycle was paid for.
    with_cycle = 1.0 - by_student / by_teacher if by_teacher else None
    if with_cycle is not None:
        line("Saving on them, the cycle included", f"1 - {by_student:.4f} $ / {by_teacher:.4f} $", with_cycle, "share")
    rest = (prices.traffic_million - served) * teacher
    whole = prices.traffic_million * teacher
    all_traffic = line(
        "Saving on all traffic",
        f"1 - ({by_student:.4f} $ + {rest:.4f} $ for the rest by the teacher) / {whole:.4f} $",
        1.0 - (by_student + rest) / whole,
        "share",
    )
    break_even = cycle / (teacher - student) if student < teacher else None
    if break_even is not None:
        line(
            "The cycle has paid for itself after",
            f"{cycle:.4f} $ / ({teacher:g} $ - {student:.4f} $) a million tokens",
            break_even,
            "million",
        )
    return document | {
        "student_per_million": student,
        "saving_per_token": per_token,
        "saving_with_cycle": with_cycle,
        "saving_all_traffic": all_traffic,
        "break_even_million": break_even,
        "lines": [asdict(entry) for entry in lines],
    }
