package acgs.nemo.constitutional

# METADATA
# title: A text with something in it
is_text(value) if {
	is_string(value)
	trim_space(value) != ""
}

# METADATA
# title: A number of at least the bound
# description: Rego orders values of unlike types (a text is above every number), so both must be numbers.
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
# title: A number below the bound
below(value, bound) if {
	is_number(value)
	is_number(bound)
	value < bound
}

# METADATA
# title: A share of the whole (0 to 1) of at least the bound
share_at_least(value, bound) if {
	at_least(value, bound)
	at_least(value, 0)
	at_most(value, 1)
}

# METADATA
# title: A positive number of at most the bound
positive_at_most(value, bound) if {
	below(0, value)
	at_most(value, bound)
}

# METADATA
# title: A number from nought up to the bound
amount_within(value, bound) if {
	at_least(value, 0)
	at_most(value, bound)
}

# METADATA
# title: Place of a risk level on the ordered scale, the least risky first
risk_rank(level) := places[0] if {
	places := [place | some place; data.risk_levels[place] == level]
	count(places) == 1
}
