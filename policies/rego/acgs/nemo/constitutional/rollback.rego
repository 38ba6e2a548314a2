package acgs.nemo.constitutional

# METADATA
# title: The watch measured adherence below its bound, on enough evaluations
rollback_grounds if {
	input.rollback.trigger == "watch"
	share_below(input.rollback.adherence, data.bounds.watch_adherence)
	at_least(input.rollback.n_evaluations, data.bounds.watch_min_evaluations)
}

# METADATA
# title: A named person asks for the rollback
rollback_grounds if {
	input.rollback.trigger == "manual"
	is_text(input.rollback.requested_by)
}

# METADATA
# title: Reason rollback_grounds
reasons contains reason if {
	input.action == "model_rollback"
	not rollback_grounds
	reason := {
		"code": "rollback_grounds",
		"message": "A rollback needs adherence measured below bounds.watch_adherence, or a named requester.",
	}
}

# METADATA
# title: The target is a version that was champion before
rollback_target if {
	is_text(input.rollback.target_version)
	input.rollback.target_was_champion == true
}

# METADATA
# title: Reason rollback_target
reasons contains reason if {
	input.action == "model_rollback"
	not rollback_target
	reason := {
		"code": "rollback_target",
		"message": "A rollback must go to a named version that was champion before.",
	}
}
