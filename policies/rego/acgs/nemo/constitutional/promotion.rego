package acgs.nemo.constitutional

# METADATA
# title: Adherence reaches its bound
evaluation_adherence if share_at_least(input.evaluation.adherence, data.bounds.adherence)

# METADATA
# title: Reason evaluation_adherence
reasons contains reason if {
	input.action == "model_promotion"
	not evaluation_adherence
	reason := {
		"code": "evaluation_adherence",
		"message": "Measured adherence must be between bounds.adherence and 1.",
	}
}

# METADATA
# title: The lower confidence bound of adherence reaches its own bound
evaluation_adherence_lower if {
	share_at_least(input.evaluation.adherence_lower, data.bounds.adherence_lower)
	at_most(input.evaluation.adherence_lower, input.evaluation.adherence)
}

# METADATA
# title: Reason evaluation_adherence_lower
reasons contains reason if {
	input.action == "model_promotion"
	not evaluation_adherence_lower
	reason := {
		"code": "evaluation_adherence_lower",
		"message": "The lower confidence bound must be between bounds.adherence_lower and the adherence itself.",
	}
}

# METADATA
# title: Few benign prompts are refused
evaluation_over_refusal if {
	amount_within(input.evaluation.over_refusal, data.bounds.over_refusal)
}

# METADATA
# title: Reason evaluation_over_refusal
reasons contains reason if {
	input.action == "model_promotion"
	not evaluation_over_refusal
	reason := {
		"code": "evaluation_over_refusal",
		"message": "Over-refusal must be at most bounds.over_refusal.",
	}
}

# METADATA
# title: The candidate's held-out loss over the champion's stays within its bound
evaluation_held_out_loss if {
	positive_at_most(input.evaluation.held_out_loss_ratio, data.bounds.held_out_loss_ratio)
}

# METADATA
# title: Reason evaluation_held_out_loss
reasons contains reason if {
	input.action == "model_promotion"
	not evaluation_held_out_loss
	reason := {
		"code": "evaluation_held_out_loss",
		"message": "Held-out loss must be at most bounds.held_out_loss_ratio times the champion's.",
	}
}

# METADATA
# title: Enough harmful prompts were evaluated
evaluation_harmful_count if at_least(input.evaluation.n_harmful, data.bounds.min_evaluated)

# METADATA
# title: Reason evaluation_harmful_count
reasons contains reason if {
	input.action == "model_promotion"
	not evaluation_harmful_count
	reason := {
		"code": "evaluation_harmful_count",
		"message": "At least bounds.min_evaluated harmful prompts must have been evaluated.",
	}
}

# METADATA
# title: Enough benign prompts were evaluated
evaluation_benign_count if at_least(input.evaluation.n_benign, data.bounds.min_evaluated)

# METADATA
# title: Reason evaluation_benign_count
reasons contains reason if {
	input.action == "model_promotion"
	not evaluation_benign_count
	reason := {
		"code": "evaluation_benign_count",
		"message": "At least bounds.min_evaluated benign prompts must have been evaluated.",
	}
}

# METADATA
# title: The candidate was read back from disk before it was evaluated
evaluation_reloaded if input.evaluation.reloaded_from_disk == true

# METADATA
# title: Reason evaluation_reloaded
reasons contains reason if {
	input.action == "model_promotion"
	not evaluation_reloaded
	reason := {
		"code": "evaluation_reloaded",
		"message": "The candidate must have been evaluated as reloaded from disk.",
	}
}

# METADATA
# title: A second evaluator, which took no part in selection, reported
evaluation_second_evaluator if input.evaluation.second_evaluator_reported == true

# METADATA
# title: Reason evaluation_second_evaluator
reasons contains reason if {
	input.action == "model_promotion"
	not evaluation_second_evaluator
	reason := {
		"code": "evaluation_second_evaluator",
		"message": "An evaluator that took no part in selection must have reported.",
	}
}

# METADATA
# title: The epsilon spent is within the budget
privacy_epsilon if positive_at_most(input.privacy.epsilon, data.bounds.epsilon)

# METADATA
# title: Reason privacy_epsilon
reasons contains reason if {
	input.action == "model_promotion"
	not privacy_epsilon
	reason := {
		"code": "privacy_epsilon",
		"message": "The epsilon spent must be above 0 and at most bounds.epsilon.",
	}
}

# METADATA
# title: The delta of the statement is within its bound
privacy_delta if positive_at_most(input.privacy.delta, data.bounds.delta)

# METADATA
# title: Reason privacy_delta
reasons contains reason if {
	input.action == "model_promotion"
	not privacy_delta
	reason := {
		"code": "privacy_delta",
		"message": "The delta of the privacy statement must be above 0 and at most bounds.delta.",
	}
}

# METADATA
# title: The privacy statement holds
privacy_holds if input.privacy.non_private == false

# METADATA
# title: A run marked non-private may pass where the operator allows it
privacy_holds if {
	input.privacy.non_private == true
	data.bounds.allow_non_private == true
}

# METADATA
# title: Reason privacy_holds
reasons contains reason if {
	input.action == "model_promotion"
	not privacy_holds
	reason := {
		"code": "privacy_holds",
		"message": "The run must not be marked non-private, unless bounds.allow_non_private says otherwise.",
	}
}
