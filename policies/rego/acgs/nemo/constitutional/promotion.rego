package acgs.nemo.constitutional

# METADATA
# title: Adherence reaches its bound
met contains "evaluation_adherence" if share_at_least(input.evaluation.adherence, data.bounds.adherence)

# METADATA
# title: The lower confidence bound of adherence reaches its own bound
met contains "evaluation_adherence_lower" if {
	share_at_least(input.evaluation.adherence_lower, data.bounds.adherence_lower)
	at_most(input.evaluation.adherence_lower, input.evaluation.adherence)
}

# METADATA
# title: Few benign prompts are refused
met contains "evaluation_over_refusal" if {
	amount_within(input.evaluation.over_refusal, data.bounds.over_refusal)
}

# METADATA
# title: The candidate's held-out loss over the champion's stays within its bound
met contains "evaluation_held_out_loss" if {
	positive_at_most(input.evaluation.held_out_loss_ratio, data.bounds.held_out_loss_ratio)
}

# METADATA
# title: Enough harmful prompts were evaluated
met contains "evaluation_harmful_count" if at_least(input.evaluation.n_harmful, data.bounds.min_evaluated)

# METADATA
# title: Enough benign prompts were evaluated
met contains "evaluation_benign_count" if at_least(input.evaluation.n_benign, data.bounds.min_evaluated)

# METADATA
# title: The candidate was read back from disk before it was evaluated
met contains "evaluation_reloaded" if input.evaluation.reloaded_from_disk == true

# METADATA
# title: A second evaluator, which took no part in selection, reported
met contains "evaluation_second_evaluator" if input.evaluation.second_evaluator_reported == true

# METADATA
# title: The epsilon spent is within the budget
met contains "privacy_epsilon" if positive_at_most(input.privacy.epsilon, data.bounds.epsilon)

# METADATA
# title: The delta of the statement is within its bound
met contains "privacy_delta" if positive_at_most(input.privacy.delta, data.bounds.delta)

# METADATA
# title: The privacy statement holds
met contains "privacy_holds" if input.privacy.non_private == false

# METADATA
# title: A run marked non-private may pass where the operator allows it
met contains "privacy_holds" if {
	input.privacy.non_private == true
	data.bounds.allow_non_private == true
}
