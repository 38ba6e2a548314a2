# METADATA
# title: Constitutional gate
# description: >-
#   Decides whether an action of the flywheel may go on. Every requirement is a positive rule that adds its
#   code to `met` once the facts in `input` prove it; whatever is absent, null or of the wrong type proves
#   nothing, so it leaves a reason to refuse.
# scope: package
package acgs.nemo.constitutional

# METADATA
# title: The decision
# description: Always defined; an action that is not in the catalogue is refused.
# entrypoint: true
decision := {
	"allow": count(reasons) == 0,
	"reasons": reasons,
	"lane": lane,
	"revision": revision,
}

# METADATA
# title: The reason left by an action that is absent or not in the catalogue
default reasons := [{
	"code": "action_known",
	"message": "The action must be one that this policy decides.",
}]

# METADATA
# title: Every requirement of the action that the facts do not prove, in the catalogue's order
reasons := [requirement |
	some requirement in requirements
	not requirement.code in met
] if {
	count(requirements) > 0
}

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
# title: The revision where the data declares none
default revision := null

# METADATA
# title: Digests of the policies and of the data in force, as the bundle declares them
revision := data.revision
