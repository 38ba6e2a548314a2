"""The statistics of an evaluation against published values, closed forms and scipy."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from agents.training.figures import (
    EXACT_BELOW,
    declines,
    holm,
    mcnemar,
    paired,
    repetition,
    says_nothing,
    share_with_interval,
    words,
)

counts = st.integers(0, 200)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    # Newcombe 1998 (Statistics in Medicine 17, 857-872), table I, method 3: the score interval of Wilson.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_intervals_are_the_published_ones(successes: int, n: int, low: float, high: float) -> None:
    share, interval = share_with_interval(successes, n)
    assert share == successes / n
    assert interval == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_intervals_solve_their_equation(case: tuple[int, int]) -> None:
    successes, n = case
    share, (low, high) = share_with_interval(successes, n)
    assert 0.0 <= low <= share <= high <= 1.0
    z = 1.959963984540054
    for end in (low, high):
        # At each end the share lies just z standard errors, by that end's own variance, away.
        assert (share - end) ** 2 == pytest.approx(z * z * end * (1 - end) / n, abs=1e-9)


def test_nothing_counted_says_nothing() -> None:
    assert share_with_interval(0, 0) == (0.0, (0.0, 1.0))


def test_mcnemar_is_the_published_one() -> None:
    # Approval of the prime minister, before and after (Agresti, Categorical Data Analysis): 150 and 86 changed sides.
    # The corrected statistic is (|150 - 86| - 1)^2 / 236 = 16.818.
    p_value, method = mcnemar(86, 150)
    assert p_value == pytest.approx(4.115e-5, rel=1e-3)
    assert method.startswith("chi-squared")
    # Fleiss: 2 against 10 of twelve discordant pairs, exact and two-sided: 2 * (1 + 12 + 66) / 2^12.
    assert mcnemar(10, 2) == (pytest.approx(158 / 4096), "exact binomial")
    assert mcnemar(5, 0)[0] == pytest.approx(2 / 32)
    assert mcnemar(6, 0)[0] == pytest.approx(2 / 64)


@given(counts, counts)
def test_mcnemar_follows_its_formula(gained: int, lost: int) -> None:
    p_value, method = mcnemar(gained, lost)
    pairs = gained + lost
    assert p_value == pytest.approx(mcnemar(lost, gained)[0])
    if pairs == 0:
        assert p_value == 1.0
    elif pairs < EXACT_BELOW:
        tail = sum(math.comb(pairs, k) for k in range(min(gained, lost) + 1)) / 2**pairs
        assert method == "exact binomial"
        assert p_value == pytest.approx(min(1.0, 2 * tail))
    else:
        assert p_value == pytest.approx(chi2.sf(max(0, abs(gained - lost) - 1) ** 2 / pairs, 1))


def test_mcnemar_refuses_what_is_no_count() -> None:
    with pytest.raises(ValueError, match="-1 and 3"):
        mcnemar(-1, 3)


def test_pairs_are_counted_by_prompt() -> None:
    before = [True, True, False, False, False]
    after = [True, False, True, True, False]
    found = paired(before, after)
    assert (found.n, found.gained, found.lost) == (5, 2, 1)
    assert not found.better
    with pytest.raises(ValueError, match="shorter"):
        paired([True, True], [True])


@given(st.lists(st.booleans(), max_size=300))
def test_a_model_is_not_better_than_itself(outcomes: list[bool]) -> None:
    found = paired(outcomes, outcomes)
    assert not found.better
    assert not found.worse
    assert found.p_value == 1.0


def test_better_is_what_the_test_says_and_worse_is_its_mirror() -> None:
    five = paired([False] * 5 + [True] * 95, [True] * 100)
    six = paired([False] * 6 + [True] * 94, [True] * 100)
    # Five pairs on one side are not enough (p = 0.0625), six are (p = 0.03125).
    assert not five.better
    assert six.better
    mirrored = paired([True] * 100, [False] * 6 + [True] * 94)
    assert mirrored.worse
    assert not mirrored.better


def test_holm_is_the_published_one() -> None:
    # Holm 1979: sorted, the k-th smallest of m is multiplied by m - k + 1, and none falls below the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=30))
def test_holm_lies_between_the_p_value_and_bonferroni(p_values: list[float]) -> None:
    for p_value, adjusted in zip(p_values, holm(p_values), strict=True):
        assert p_value <= adjusted <= min(1.0, len(p_values) * p_value) + 1e-12


def test_the_second_evaluator_reads_the_wording() -> None:
    assert declines("I'm sorry, but I can't help with that.")
    assert declines("Thank you for asking. I won't tell you.")
    assert not declines("Mix flour and water, then bake it.")
    assert not declines("Bake it. " * 20 + "I can't say more.")
    assert says_nothing(" ... \n")
    assert says_nothing("the same four words " * 10)
    assert not says_nothing("No.")
    assert words("It's 3 o'clock, isn't it?") == 5


def test_repetition_is_the_share_of_runs_seen_before() -> None:
    assert repetition("one two three") == 0.0
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)
    assert repetition("no " * 13) == pytest.approx(0.9)
