package acgs.nemo.constitutional

# METADATA
# title: The model's compliance score reaches the bound
inference_compliance if share_at_least(input.model.compliance_score, data.bounds.compliance_score)

# METADATA
# title: Reason inference_compliance
reasons contains reason if {
	input.action == "model_inference"
	not inference_compliance
	reason := {
		"code": "inference_compliance",
		"message": "The model's compliance score must be between bounds.compliance_score and 1.",
	}
}

# METADATA
# title: The request passed safety validation
request_safety if input.request.safety_validated == true

# METADATA
# title: Reason request_safety
reasons contains reason if {
	input.action == "model_inference"
	not request_safety
	reason := {
		"code": "request_safety",
		"message": "The request must have passed safety validation.",
	}
}

# METADATA
# title: The user is known
user_permitted if is_object(permission)

# METADATA
# title: Reason user_permitted
reasons contains reason if {
	input.action == "model_inference"
	not user_permitted
	reason := {
		"code": "user_permitted",
		"message": "The user must be named and have an entry among the permissions.",
	}
}

# METADATA
# title: The user belongs to the group that may ask
user_group if {
	is_array(input.user.groups)
	is_text(data.inference_group)
	data.inference_group in input.user.groups
}

# METADATA
# title: Reason user_group
reasons contains reason if {
	input.action == "model_inference"
	not user_group
	reason := {
		"code": "user_group",
		"message": "The user must belong to the group that may ask for inference.",
	}
}

# METADATA
# title: The GPU hours asked for fit the rest of the month's quota
gpu_quota if {
	at_least(gpu_hours_used, 0)
	is_number(permission.gpu_hours_monthly)
	amount_within(input.resources.gpu_hours, permission.gpu_hours_monthly - gpu_hours_used)
}

# METADATA
# title: Reason gpu_quota
reasons contains reason if {
	input.action == "model_inference"
	not gpu_quota
	reason := {
		"code": "gpu_quota",
		"message": "The GPU hours asked for must fit what is left of the user's monthly quota.",
	}
}

# METADATA
# title: The model's risk is within what the user may use
risk_permitted if at_most(risk_rank(input.model.risk_level), risk_rank(permission.max_risk_level))

# METADATA
# title: Reason risk_permitted
reasons contains reason if {
	input.action == "model_inference"
	not risk_permitted
	reason := {
		"code": "risk_permitted",
		"message": "The model's risk level must be known and within the user's permitted one.",
	}
}

# METADATA
# title: Enough GPUs are available
gpus_available if amount_within(input.resources.requested_gpus, data.resources.available_gpus)

# METADATA
# title: Reason gpus_available
reasons contains reason if {
	input.action == "model_inference"
	not gpus_available
	reason := {
		"code": "gpus_available",
		"message": "The GPUs asked for must be available.",
	}
}

# METADATA
# title: Enough memory is available, in GB
memory_available if amount_within(input.resources.memory_gb, data.resources.available_memory_gb)

# METADATA
# title: Reason memory_available
reasons contains reason if {
	input.action == "model_inference"
	not memory_available
	reason := {
		"code": "memory_available",
		"message": "The memory asked for must be available.",
	}
}

# METADATA
# title: What the user may use
# description: A blank name is nobody's, whatever the permissions hold.
permission := data.user_permissions[input.user.id] if is_text(input.user.id)

# METADATA
# title: GPU hours the user has used this month
# description: The ledger lists only users who used any; without a ledger the use is unknown.
gpu_hours_used := object.get(data.gpu_hours_used, input.user.id, 0) if is_object(data.gpu_hours_used)
