package acgs.nemo.constitutional

# METADATA
# title: Constitutional constraints are on in training
constraints_enabled if input.training.constitutional_constraints_enabled == true

# METADATA
# title: Reason constraints_enabled
reasons contains reason if {
	input.action == "model_fine_tuning"
	not constraints_enabled
	reason := {
		"code": "constraints_enabled",
		"message": "Constitutional constraints must be enabled in training.",
	}
}

# METADATA
# title: Enough rounds of critique and revision
critique_cycles if at_least(input.training.critique_revision_cycles, data.bounds.critique_cycles)

# METADATA
# title: Reason critique_cycles
reasons contains reason if {
	input.action == "model_fine_tuning"
	not critique_cycles
	reason := {
		"code": "critique_cycles",
		"message": "Critique and revision must run for at least bounds.critique_cycles rounds.",
	}
}

# METADATA
# title: The compliance threshold is strict enough
compliance_threshold if {
	share_at_least(input.training.compliance_threshold, data.bounds.training_compliance_threshold)
}

# METADATA
# title: Reason compliance_threshold
reasons contains reason if {
	input.action == "model_fine_tuning"
	not compliance_threshold
	reason := {
		"code": "compliance_threshold",
		"message": "The compliance threshold must be between bounds.training_compliance_threshold and 1.",
	}
}

# METADATA
# title: The base model is approved
base_model_approved if input.model.base_model_approved == true

# METADATA
# title: Reason base_model_approved
reasons contains reason if {
	input.action == "model_fine_tuning"
	not base_model_approved
	reason := {
		"code": "base_model_approved",
		"message": "The base model must be approved.",
	}
}

# METADATA
# title: A base model that is named stands in the registry
# description: The name is optional, but one that is not in the registry contradicts the approval.
base_model_registered if input.model.base_model in data.model_registry

# METADATA
# title: No base model is named
base_model_registered if {
	is_object(input.model)
	not "base_model" in object.keys(input.model)
}

# METADATA
# title: Reason base_model_registered
reasons contains reason if {
	input.action == "model_fine_tuning"
	not base_model_registered
	reason := {
		"code": "base_model_registered",
		"message": "A base model that is named must stand in the registry of approved models.",
	}
}

# METADATA
# title: The risk level is on the scale
risk_known if is_number(risk_rank(input.model.risk_level))

# METADATA
# title: Reason risk_known
reasons contains reason if {
	input.action == "model_fine_tuning"
	not risk_known
	reason := {
		"code": "risk_known",
		"message": "The model's risk level must be on the scale of risk levels.",
	}
}

# METADATA
# title: Differential privacy is on
differential_privacy if input.training.differential_privacy_enabled == true

# METADATA
# title: Reason differential_privacy
reasons contains reason if {
	input.action == "model_fine_tuning"
	not differential_privacy
	reason := {
		"code": "differential_privacy",
		"message": "Training must be differentially private.",
	}
}

# METADATA
# title: The domain's cumulative epsilon after the plan stays within the budget
epsilon_budget if positive_at_most(input.training.epsilon, data.bounds.epsilon)

# METADATA
# title: Reason epsilon_budget
reasons contains reason if {
	input.action == "model_fine_tuning"
	not epsilon_budget
	reason := {
		"code": "epsilon_budget",
		"message": "The domain's cumulative epsilon after the plan must be above 0 and at most bounds.epsilon.",
	}
}

# METADATA
# title: Delta stays within its bound
delta_bound if positive_at_most(input.training.delta, data.bounds.delta)

# METADATA
# title: Reason delta_bound
reasons contains reason if {
	input.action == "model_fine_tuning"
	not delta_bound
	reason := {
		"code": "delta_bound",
		"message": "Delta must be above 0 and at most bounds.delta.",
	}
}

# METADATA
# title: Personal data was scrubbed
pii_scrubbed if input.data.pii_scrubbed == true

# METADATA
# title: Reason pii_scrubbed
reasons contains reason if {
	uses_event_text
	not pii_scrubbed
	reason := {
		"code": "pii_scrubbed",
		"message": "Personal data must have been scrubbed from the event text.",
	}
}

# METADATA
# title: There are enough examples to train on
examples_enough if at_least(input.data.n_examples, data.bounds.min_examples)

# METADATA
# title: Reason examples_enough
reasons contains reason if {
	input.action == "model_fine_tuning"
	not examples_enough
	reason := {
		"code": "examples_enough",
		"message": "There must be at least bounds.min_examples training examples.",
	}
}

# METADATA
# title: Compliance is monitored
compliance_monitored if input.monitoring.constitutional_compliance == true

# METADATA
# title: Reason compliance_monitored
reasons contains reason if {
	input.action == "model_fine_tuning"
	not compliance_monitored
	reason := {
		"code": "compliance_monitored",
		"message": "Constitutional compliance must be monitored.",
	}
}

# METADATA
# title: The use of a teacher is stated
teacher_known if is_boolean(input.teacher.used)

# METADATA
# title: Reason teacher_known
reasons contains reason if {
	input.action == "model_fine_tuning"
	not teacher_known
	reason := {
		"code": "teacher_known",
		"message": "It must be stated whether a teacher model was used.",
	}
}
