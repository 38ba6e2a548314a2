package acgs.nemo.constitutional

# METADATA
# title: The watch measured adherence below its bound, on enough evaluations
met contains "rollback_grounds" if {
	input.rollback.trigger == "watch"
	at_least(input.rollback.adherence, 0)
	below(input.rollback.adherence, data.bounds.watch_adherence)
	at_least(input.rollback.n_evaluations, data.bounds.watch_min_evaluations)
}

# METADATA
# title: A named person asks for the rollback
met contains "rollback_grounds" if {
	input.rollback.trigger == "manual"
	is_text(input.rollback.requested_by)
}

# METADATA
# title: The target is a version that was champion before
met contains "rollback_target" if {
	is_text(input.rollback.target_version)
	input.rollback.target_was_champion == true
}
