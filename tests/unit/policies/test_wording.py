"""Messages that repeat what others wrote stay short, and say to their end what to do."""

from __future__ import annotations

from policies.gate import BundleError
from policies.wording import MOST_OF_A_LINE, in_few_words


def test_a_short_message_is_left_alone() -> None:
    message = "x" * MOST_OF_A_LINE + "\ntwo lines"
    assert in_few_words(message) == message


def test_of_a_long_line_the_middle_is_left_out() -> None:
    told = in_few_words(f"the name {'x' * 5000!r} is none\n{'y' * 5000}; write another", 100)
    assert [len(line) < 150 for line in told.split("\n")] == [True, True]
    assert told.startswith("the name 'xxx")
    assert told.endswith("; write another")
    assert "characters left out" in told


def test_a_bundles_error_repeats_nothing_at_length() -> None:
    told = str(BundleError(f"two cases have the name {'x' * 50_000}; rename one"))
    assert len(told) < 1100
    assert told.endswith("; rename one")
