package acgs.nemo.constitutional

# METADATA
# title: The model's compliance score reaches the bound
met contains "inference_compliance" if share_at_least(input.model.compliance_score, data.bounds.compliance_score)

# METADATA
# title: The request passed safety validation
met contains "request_safety" if input.request.safety_validated == true

# METADATA
# title: Every reported violation can be read
met contains "violations_readable" if {
	is_array(input.content.violations)
	every violation in input.content.violations {
		is_text(violation_code(violation))
	}
}

# METADATA
# title: No reported violation is severe
met contains "no_severe_violation" if {
	is_array(input.content.violations)
	is_array(data.high_severity_codes)
	every violation in input.content.violations {
		is_mild(violation)
	}
}

# METADATA
# title: The user is known
met contains "user_permitted" if is_object(permission)

# METADATA
# title: The user belongs to the group that may ask
met contains "user_group" if {
	is_array(input.user.groups)
	is_text(data.inference_group)
	data.inference_group in input.user.groups
}

# METADATA
# title: The GPU hours asked for fit the rest of the month's quota
met contains "gpu_quota" if {
	at_least(gpu_hours_used, 0)
	is_number(permission.gpu_hours_monthly)
	amount_within(input.resources.gpu_hours, permission.gpu_hours_monthly - gpu_hours_used)
}

# METADATA
# title: The model's risk is within what the user may use
met contains "risk_permitted" if at_most(risk_rank(input.model.risk_level), risk_rank(permission.max_risk_level))

# METADATA
# title: Enough GPUs are available
met contains "gpus_available" if amount_within(input.resources.requested_gpus, data.resources.available_gpus)

# METADATA
# title: Enough memory is available, in GB
met contains "memory_available" if amount_within(input.resources.memory_gb, data.resources.available_memory_gb)

# METADATA
# title: What the user may use
permission := data.user_permissions[input.user.id] if is_text(input.user.id)

# METADATA
# title: GPU hours the user has used this month
# description: The ledger lists only users who used any; without a ledger the use is unknown.
gpu_hours_used := object.get(data.gpu_hours_used, input.user.id, 0) if {
	is_object(data.gpu_hours_used)
	is_text(input.user.id)
}

# METADATA
# title: Code of a violation reported as a text
violation_code(violation) := lower(violation) if is_string(violation)

# METADATA
# title: Code of a violation reported as a record
violation_code(violation) := lower(violation.type) if {
	is_object(violation)
	is_string(violation.type)
}

# METADATA
# title: A violation given by its code alone, which is not a severe one
is_mild(violation) if {
	is_string(violation)
	not violation_code(violation) in data.high_severity_codes
}

# METADATA
# title: A violation whose code is not a severe one and whose severity is stated as mild
is_mild(violation) if {
	is_object(violation)
	is_text(violation_code(violation))
	not violation_code(violation) in data.high_severity_codes
	violation.severity in {"low", "medium"}
}
