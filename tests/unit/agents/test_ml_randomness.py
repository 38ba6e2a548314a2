"""The random source of private training: distributions, independence, and where its keys come from."""

from __future__ import annotations

import numpy as np
import pytest

scipy_stats = pytest.importorskip("scipy.stats")

from agents.training.ml.randomness import Keystream, RandomSource, poisson_draw, unit_interval  # noqa: E402

pytestmark = pytest.mark.torch

# Five deviations, or a p-value of 1e-6: once in about a million runs a correct source fails.
RARE = 1e-6


def test_normals_are_standard_normal_in_body_and_tails() -> None:
    numbers = RandomSource().stream(0).normals(400_001)
    assert len(numbers) == 400_001
    assert scipy_stats.kstest(numbers, "norm").pvalue > RARE
    beyond = int((np.abs(numbers) > 3.5).sum())
    assert scipy_stats.binomtest(beyond, len(numbers), 2 * scipy_stats.norm.sf(3.5)).pvalue > RARE


def test_the_two_halves_of_a_box_muller_draw_are_independent() -> None:
    numbers = RandomSource().stream(0).normals(200_000)
    first, second = numbers[:100_000], numbers[100_000:]
    for left, right in [(first, second), (first**2, second**2)]:
        assert abs(np.corrcoef(left, right)[0, 1]) < 5 / np.sqrt(100_000)


def test_uniforms_cover_the_unit_interval_evenly() -> None:
    numbers = RandomSource().stream(0).uniforms(200_000)
    assert scipy_stats.kstest(numbers, "uniform").pvalue > RARE
    assert unit_interval(b"\x00" * 8)[0] == 0.0
    assert unit_interval(b"\xff" * 8)[0] == 1.0 - 2.0**-53


def test_a_keystream_never_repeats_itself() -> None:
    stream = Keystream(bytes(32))
    assert not np.array_equal(stream.uniforms(100), stream.uniforms(100))


def test_os_streams_differ_and_seeded_streams_repeat_by_step() -> None:
    secure = RandomSource()
    assert not secure.non_private
    assert not np.array_equal(secure.stream(0).uniforms(8), secure.stream(0).uniforms(8))
    seeded = RandomSource(seed=7)
    assert seeded.non_private
    assert np.array_equal(seeded.stream(3).uniforms(8), RandomSource(7).stream(3).uniforms(8))
    assert not np.array_equal(seeded.stream(3).uniforms(8), seeded.stream(4).uniforms(8))
    with pytest.raises(ValueError, match="seed"):
        secure.derived("anything")


def test_poisson_draws_take_each_member_independently_at_the_stated_rate() -> None:
    population, rate, draws = 40, 0.13, 4_000
    source = RandomSource()
    taken = np.zeros((draws, population))
    for draw in range(draws):
        taken[draw, poisson_draw(source.stream(draw), population, rate)] = 1
    assert scipy_stats.binomtest(int(taken.sum()), draws * population, rate).pvalue > RARE
    expected = np.full(population, draws * rate)
    deviation = ((taken.sum(axis=0) - expected) ** 2 / (expected * (1 - rate))).sum()
    assert scipy_stats.chi2.sf(deviation, population) > RARE
    # Batch sizes vary as a binomial does; a sampler of fixed-size batches would show no variance.
    variance = float(taken.sum(axis=1).var())
    assert variance == pytest.approx(population * rate * (1 - rate), rel=5 * np.sqrt(2 / draws))


@pytest.mark.parametrize(("rate", "size"), [(1.0, 6), (0.0, 0)])
def test_rates_of_one_and_zero_are_exact(rate: float, size: int) -> None:
    assert len(poisson_draw(RandomSource().stream(0), 6, rate)) == size
