package acgs.nemo.constitutional

# METADATA
# title: Constitutional constraints are on in training
met contains "constraints_enabled" if input.training.constitutional_constraints_enabled == true

# METADATA
# title: Enough rounds of critique and revision
met contains "critique_cycles" if at_least(input.training.critique_revision_cycles, data.bounds.critique_cycles)

# METADATA
# title: The compliance threshold is strict enough
met contains "compliance_threshold" if {
	share_at_least(input.training.compliance_threshold, data.bounds.training_compliance_threshold)
}

# METADATA
# title: The base model is approved
met contains "base_model_approved" if input.model.base_model_approved == true

# METADATA
# title: A base model that is named stands in the registry
# description: The name is optional, but one that is not in the registry contradicts the approval.
met contains "base_model_registered" if {
	is_array(data.model_registry)
	input.model.base_model in data.model_registry
}

# METADATA
# title: No base model is named
met contains "base_model_registered" if {
	is_object(input.model)
	not "base_model" in object.keys(input.model)
}

# METADATA
# title: The risk level is on the scale
met contains "risk_known" if is_number(risk_rank(input.model.risk_level))

# METADATA
# title: Differential privacy is on
met contains "differential_privacy" if input.training.differential_privacy_enabled == true

# METADATA
# title: The domain's cumulative epsilon after the plan stays within the budget
met contains "epsilon_budget" if positive_at_most(input.training.epsilon, data.bounds.epsilon)

# METADATA
# title: Delta stays within its bound
met contains "delta_bound" if positive_at_most(input.training.delta, data.bounds.delta)

# METADATA
# title: Personal data was scrubbed
met contains "pii_scrubbed" if input.data.pii_scrubbed == true

# METADATA
# title: There are enough examples to train on
met contains "examples_enough" if at_least(input.data.n_examples, data.bounds.min_examples)

# METADATA
# title: Compliance is monitored
met contains "compliance_monitored" if input.monitoring.constitutional_compliance == true

# METADATA
# title: The use of a teacher is stated
met contains "teacher_known" if is_boolean(input.teacher.used)
