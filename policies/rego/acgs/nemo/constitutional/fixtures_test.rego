package acgs.nemo.constitutional_test

import data.acgs.nemo.constitutional

# METADATA
# title: Facts that every action needs
common_facts := {
	"model": {"constitutional_hash": "cdd01ef066bc6cf2"},
	"audit": {
		"enabled": true,
		"trail_enabled": true,
		"constitutional_hash": "cdd01ef066bc6cf2",
		"retention_period": 2555,
	},
}

# METADATA
# title: A complete approval of the present plan
approval := {
	"human_reviewer_assigned": true,
	"approved": true,
	"requested_by": "flywheel-curation",
	"approved_by": "reviewer-7",
	"plan_digest": "sha256:5d41",
	"approved_plan_digest": "sha256:5d41",
}

# METADATA
# title: Revisions as a bundle declares them
revision_in_force := {"bundle": "b1", "data": "d1"}

# METADATA
# title: The decision on the facts
decision_on(facts) := decision if {
	decision := constitutional.decision with input as facts with data.revision as revision_in_force
}

# METADATA
# title: Codes of the requirements that the facts leave unproven
unproven(facts) := codes if {
	reasons := constitutional.reasons with input as facts
	codes := {reason.code | some reason in reasons}
}

# METADATA
# title: Codes left unproven when one fact is taken away
unproven_without(facts, path) := unproven(json.remove(facts, [path]))

# METADATA
# title: Codes left unproven when one fact is changed
unproven_with(facts, path, value) := unproven(json.patch(facts, [{"op": "add", "path": path, "value": value}]))
