package acgs.nemo.constitutional_test

import data.acgs.nemo.constitutional

unlike_numbers := [null, true, false, "9", "", [9], {"n": 9}]

test_a_text_has_something_in_it if {
	constitutional.is_text("a")
	not constitutional.is_text("")
	not constitutional.is_text(" \t")
	not constitutional.is_text(3)
	not constitutional.is_text(null)
}

test_only_numbers_compare if {
	every value in unlike_numbers {
		not constitutional.at_least(value, 1)
		not constitutional.at_most(value, 10)
		not constitutional.share_below(value, 10)
		not constitutional.share_at_least(value, 0)
		not constitutional.positive_at_most(value, 10)
		not constitutional.amount_within(value, 10)
	}
}

test_only_numbers_bound if {
	every bound in unlike_numbers {
		not constitutional.at_least(1, bound)
		not constitutional.at_most(1, bound)
		not constitutional.share_below(1, bound)
		not constitutional.share_at_least(1, bound)
		not constitutional.positive_at_most(1, bound)
		not constitutional.amount_within(1, bound)
	}
}

test_bounds_are_inclusive_but_below if {
	constitutional.at_least(3, 3)
	constitutional.at_most(3, 3)
	not constitutional.share_below(0.9, 0.9)
	constitutional.share_below(0.8999, 0.9)
	constitutional.share_below(0, 0.9)
	not constitutional.share_below(-0.1, 0.9)
}

test_a_share_is_at_most_one if {
	constitutional.share_at_least(1, 0.9)
	not constitutional.share_at_least(1.001, 0.9)
}

test_positive_excludes_nought if {
	constitutional.positive_at_most(0.001, 1)
	not constitutional.positive_at_most(0, 1)
	constitutional.amount_within(0, 1)
	not constitutional.amount_within(-1, 1)
}

test_risk_levels_are_ordered_not_spelt if {
	constitutional.risk_rank("low") == 0
	constitutional.risk_rank("medium") == 1
	constitutional.risk_rank("high") == 2
	constitutional.risk_rank("critical") == 3
}

test_unknown_risk_levels_have_no_rank if {
	every level in [null, 1, "High", "", ["low"]] {
		not constitutional.risk_rank(level)
	}
}

test_a_risk_level_listed_twice_has_no_rank if {
	not constitutional.risk_rank("low") with data.risk_levels as ["low", "high", "low"]
}
