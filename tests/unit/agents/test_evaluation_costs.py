"""The cost arithmetic by hand, at its edges, and that each line shows the figures it is made of."""

from __future__ import annotations

import pytest

from agents.training.config import CostConfig
from agents.training.costs import Measured, cost_figures

PRICES = CostConfig(teacher_per_million=10.0, machine_per_hour=0.36, traffic_million=50.0, target_saving=0.986)


def test_the_arithmetic_is_that_of_a_calculator() -> None:
    # 250 tokens/s are 900,000 an hour: a million costs 0.36 / 0.9 = 0.40 $, 96 % less than 10 $.
    # 80 of 100 answers may be served: 40 million tokens for 16 $, and two hours of a cycle for 0.72 $ + 0.28 $ of fees.
    figures = cost_figures(PRICES, Measured(250.0, 80, 100, 7200.0, 0.28))
    assert figures["student_per_million"] == pytest.approx(0.40)
    assert figures["saving_per_token"] == pytest.approx(0.96)
    assert figures["cycle"] == pytest.approx(1.0)
    assert figures["saving_with_cycle"] == pytest.approx(1 - 17 / 400)
    assert figures["saving_all_traffic"] == pytest.approx(1 - (17 + 100) / 500)
    assert figures["break_even_million"] == pytest.approx(1 / 9.6)
    assert figures["prices"] == PRICES.model_dump()


def test_every_line_is_the_figure_that_follows_from_what_it_shows() -> None:
    figures = cost_figures(PRICES, Measured(250.0, 80, 100, 7200.0, 0.28))
    values = {line["what"]: line for line in figures["lines"]}
    assert values["Student, tokens an hour"]["value"] == pytest.approx(900_000)
    assert values["Saving on a served token"]["how"] == "1 - 0.4000 $ / 10 $"
    assert values["Tokens the student serves"]["value"] == pytest.approx(40.0)
    assert values["Saving on them, the cycle included"]["how"] == "1 - 17.0000 $ / 400.0000 $"
    assert values["Saving on all traffic"]["value"] == pytest.approx(figures["saving_all_traffic"])
    assert values["The cycle itself"]["how"] == "2.000 machine hours x 0.36 $ + 0.2800 $ of teacher's fees"


def test_nothing_that_may_be_served_saves_nothing_and_the_cycle_was_paid_for() -> None:
    figures = cost_figures(PRICES, Measured(250.0, 0, 100, 7200.0, 0.0))
    assert figures["saving_with_cycle"] is None
    assert figures["saving_all_traffic"] == pytest.approx(-0.72 / 500)


def test_a_student_dearer_than_its_teacher_never_pays_for_its_cycle() -> None:
    figures = cost_figures(PRICES, Measured(5.0, 80, 100, 7200.0, 0.0))
    assert figures["student_per_million"] == pytest.approx(20.0)
    assert figures["saving_per_token"] == pytest.approx(-1.0)
    assert figures["break_even_million"] is None


def test_without_a_token_there_is_no_price() -> None:
    figures = cost_figures(PRICES, Measured(0.0, 0, 100, 3600.0, 0.0))
    assert figures["student_per_million"] is None
    assert figures["lines"] == []
    assert figures["cycle"] == pytest.approx(0.36)
