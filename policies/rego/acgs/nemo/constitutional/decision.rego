# METADATA
# title: Constitutional gate
# description: >-
#   Decides whether an action of the flywheel may go on. Every requirement is a positive rule, named like its
#   code, that holds once the facts in `input` prove it; beside it stands the reason it leaves otherwise.
#   Whatever is absent, null or of the wrong type proves nothing.
# scope: package
package acgs.nemo.constitutional

# METADATA
# title: The decision
# description: >-
#   Undefined, which permits nothing, where the data does not declare the revisions in force. The reasons are in no
#   order that engines agree on.
# entrypoint: true
decision := {
	"allow": allow,
	"reasons": [reason | some reason in reasons],
	"lane": lane,
	"human_review_required": human_review_required,
	"revision": data.revision,
}

# METADATA
# title: Nothing is permitted by itself
default allow := false

# METADATA
# title: Every requirement is proven
allow if count(reasons) == 0

# METADATA
# title: The actions that this policy decides
known_action if {
	input.action in {"model_inference", "model_fine_tuning", "teacher_export", "model_promotion", "model_rollback"}
}

# METADATA
# title: Reason action_known
reasons contains reason if {
	not known_action
	reason := {
		"code": "action_known",
		"message": "The action must be one that this policy decides.",
	}
}

# METADATA
# title: Actions that use event text
uses_event_text if input.action in {"model_fine_tuning", "teacher_export"}

# METADATA
# title: The lane, where nothing proves the fast one
# description: A human stands in the slow lane. What the requester says of the lane is not looked at.
default lane := "slow"

# METADATA
# title: The fast lane of actions in which a human has no part
lane := "fast" if input.action in {"model_inference", "model_promotion", "model_rollback"}

# METADATA
# title: Fine-tuning goes the fast lane when risk, cumulative epsilon and teacher prove it harmless
lane := "fast" if {
	input.action == "model_fine_tuning"
	at_most(risk_rank(input.model.risk_level), risk_rank(data.bounds.fast_lane_risk_level))
	at_most(input.training.epsilon, data.bounds.fast_lane_epsilon)
	input.teacher.used == false
}

# METADATA
# title: No human needs to review what uses no event text, or goes the fast lane
default human_review_required := false

# METADATA
# title: A human must review uses of event text that do not go the fast lane
human_review_required if {
	uses_event_text
	lane == "slow"
}
