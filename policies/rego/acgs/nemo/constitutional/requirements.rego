package acgs.nemo.constitutional

# METADATA
# title: What every action must prove
common_requirements := [
	{
		"code": "constitutional_hash",
		"message": "The model must carry the hash of the constitution in force.",
	},
	{
		"code": "audit_enabled",
		"message": "Auditing must be enabled.",
	},
	{
		"code": "audit_trail",
		"message": "The audit trail must be enabled.",
	},
	{
		"code": "audit_hash",
		"message": "The audit must carry the hash of the constitution in force.",
	},
	{
		"code": "audit_retention",
		"message": "Audit entries must be kept for at least bounds.audit_retention_days days.",
	},
]

# METADATA
# title: What a human's approval must prove in the slow lane
approval_requirements := [
	{
		"code": "approval_reviewer_assigned",
		"message": "The slow lane needs an assigned human reviewer.",
	},
	{
		"code": "approval_granted",
		"message": "The slow lane needs the reviewer's approval.",
	},
	{
		"code": "approval_independent",
		"message": "The approval must name its reviewer, who must not be the requester.",
	},
	{
		"code": "approval_current",
		"message": "The approval must be bound to the digest of the present plan.",
	},
]

# METADATA
# title: What event text must prove before it is trained on or sent outside
pii_requirement := {
	"code": "pii_scrubbed",
	"message": "Personal data must have been scrubbed from the event text.",
}

# METADATA
# title: What an approval stands on, and no approval can mend
accountability_requirements := [
	{
		"code": "requester_named",
		"message": "The slow lane needs the name of the requester.",
	},
	{
		"code": "plan_digest",
		"message": "The slow lane needs the digest of the plan to be approved.",
	},
]

# METADATA
# title: Requirements of model_inference
requirements := array.concat(common_requirements, [
	{
		"code": "inference_compliance",
		"message": "The model's compliance score must be between bounds.compliance_score and 1.",
	},
	{
		"code": "request_safety",
		"message": "The request must have passed safety validation.",
	},
	{
		"code": "violations_readable",
		"message": "The content's violations must be a list of codes, or of records with type and severity.",
	},
	{
		"code": "no_severe_violation",
		"message": "The content must hold no violation of high severity.",
	},
	{
		"code": "user_permitted",
		"message": "The user must be named and have an entry among the permissions.",
	},
	{
		"code": "user_group",
		"message": "The user must belong to the group that may ask for inference.",
	},
	{
		"code": "gpu_quota",
		"message": "The GPU hours asked for must fit what is left of the user's monthly quota.",
	},
	{
		"code": "risk_permitted",
		"message": "The model's risk level must be known and within the user's permitted one.",
	},
	{
		"code": "gpus_available",
		"message": "The GPUs asked for must be available.",
	},
	{
		"code": "memory_available",
		"message": "The memory asked for must be available.",
	},
]) if input.action == "model_inference"

# METADATA
# title: Requirements of model_fine_tuning
requirements := array.concat(
	array.concat(common_requirements, [
		{
			"code": "constraints_enabled",
			"message": "Constitutional constraints must be enabled in training.",
		},
		{
			"code": "critique_cycles",
			"message": "Critique and revision must run for at least bounds.critique_cycles rounds.",
		},
		{
			"code": "compliance_threshold",
			"message": "The compliance threshold must be between bounds.training_compliance_threshold and 1.",
		},
		{
			"code": "base_model_approved",
			"message": "The base model must be approved.",
		},
		{
			"code": "base_model_registered",
			"message": "A base model that is named must stand in the registry of approved models.",
		},
		{
			"code": "risk_known",
			"message": "The model's risk level must be on the scale of risk levels.",
		},
		{
			"code": "differential_privacy",
			"message": "Training must be differentially private.",
		},
		{
			"code": "epsilon_budget",
			"message": "The domain's cumulative epsilon after the plan must be above 0 and at most bounds.epsilon.",
		},
		{
			"code": "delta_bound",
			"message": "Delta must be above 0 and at most bounds.delta.",
		},
		pii_requirement,
		{
			"code": "examples_enough",
			"message": "There must be at least bounds.min_examples training examples.",
		},
		{
			"code": "compliance_monitored",
			"message": "Constitutional compliance must be monitored.",
		},
		{
			"code": "teacher_known",
			"message": "It must be stated whether a teacher model was used.",
		},
	]),
	array.concat(accountability_requirements, approval_requirements),
) if input.action == "model_fine_tuning"

# METADATA
# title: Requirements of teacher_export
requirements := array.concat(
	array.concat(common_requirements, [
		{
			"code": "teacher_opted_in",
			"message": "Sending event text to a teacher must have been opted into.",
		},
		{
			"code": "teacher_registered",
			"message": "The teacher's endpoint must be among the registered ones.",
		},
		pii_requirement,
	]),
	array.concat(accountability_requirements, approval_requirements),
) if input.action == "teacher_export"

# METADATA
# title: Requirements of model_promotion
requirements := array.concat(common_requirements, [
	{
		"code": "evaluation_adherence",
		"message": "Measured adherence must be between bounds.adherence and 1.",
	},
	{
		"code": "evaluation_adherence_lower",
		"message": "The lower confidence bound must be between bounds.adherence_lower and the adherence itself.",
	},
	{
		"code": "evaluation_over_refusal",
		"message": "Over-refusal must be at most bounds.over_refusal.",
	},
	{
		"code": "evaluation_held_out_loss",
		"message": "Held-out loss must be at most bounds.held_out_loss_ratio times the champion's.",
	},
	{
		"code": "evaluation_harmful_count",
		"message": "At least bounds.min_evaluated harmful prompts must have been evaluated.",
	},
	{
		"code": "evaluation_benign_count",
		"message": "At least bounds.min_evaluated benign prompts must have been evaluated.",
	},
	{
		"code": "evaluation_reloaded",
		"message": "The candidate must have been evaluated as reloaded from disk.",
	},
	{
		"code": "evaluation_second_evaluator",
		"message": "An evaluator that took no part in selection must have reported.",
	},
	{
		"code": "privacy_epsilon",
		"message": "The epsilon spent must be above 0 and at most bounds.epsilon.",
	},
	{
		"code": "privacy_delta",
		"message": "The delta of the privacy statement must be above 0 and at most bounds.delta.",
	},
	{
		"code": "privacy_holds",
		"message": "The run must not be marked non-private, unless bounds.allow_non_private says otherwise.",
	},
]) if input.action == "model_promotion"

# METADATA
# title: Requirements of model_rollback
requirements := array.concat(common_requirements, [
	{
		"code": "rollback_grounds",
		"message": "A rollback needs adherence measured below bounds.watch_adherence, or a named requester.",
	},
	{
		"code": "rollback_target",
		"message": "A rollback must go to a named version that was champion before.",
	},
]) if input.action == "model_rollback"
