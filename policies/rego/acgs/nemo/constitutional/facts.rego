package acgs.nemo.constitutional

# Engines order a number and what is none each in their own way, but put nothing else between two numbers. So a value
# with one bound must be shown to be a number, and a bound always.

# METADATA
# title: A text with something in it
is_text(value) if {
	is_string(value)
	trim_space(value) != ""
}

# METADATA
# title: A number of at least the bound
at_least(value, bound) if {
	is_number(value)
	is_number(bound)
	value >= bound
}

# METADATA
# title: A number of at most the bound
at_most(value, bound) if {
	is_number(value)
	is_number(bound)
	value <= bound
}

# METADATA
# title: A share of the whole, of at least the bound and at most 1
share_at_least(value, bound) if {
	is_number(bound)
	value >= bound
	value <= 1
}

# METADATA
# title: A share of the whole, of at least nought and below the bound
share_below(value, bound) if {
	is_number(bound)
	value >= 0
	value < bound
}

# METADATA
# title: A positive number of at most the bound
positive_at_most(value, bound) if {
	is_number(bound)
	value > 0
	value <= bound
}

# METADATA
# title: A number from nought up to the bound
amount_within(value, bound) if {
	is_number(bound)
	value >= 0
	value <= bound
}

# METADATA
# title: Place of a risk level on the ordered scale, the least risky first
risk_rank(level) := places[0] if {
	places := [place | some place; data.risk_levels[place] == level]
	count(places) == 1
}
