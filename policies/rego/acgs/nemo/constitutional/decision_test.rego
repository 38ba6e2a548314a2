package acgs.nemo.constitutional_test

import data.acgs.nemo.constitutional

test_unknown_action_is_refused if {
	constitutional.decision == {
		"allow": false,
		"reasons": [{"code": "action_known", "message": "The action must be one that this policy decides."}],
		"lane": "slow",
		"revision": null,
	} with input as {"action": "model_deletion"}
}

test_missing_action_is_refused if {
	unproven({}) == {"action_known"}
}

test_action_of_wrong_type_is_refused if {
	every action in [null, true, 1, ["model_inference"], {"model_inference": 1}] {
		unproven({"action": action}) == {"action_known"}
	}
}

test_input_that_is_not_an_object_is_refused if {
	every document in [null, "model_inference", 3, []] {
		unproven(document) == {"action_known"}
	}
}

test_missing_input_is_refused if {
	not constitutional.decision.allow
}

actions := {"model_inference", "model_fine_tuning", "teacher_export", "model_promotion", "model_rollback"}

catalogue[action] := requirements if {
	some action in actions
	requirements := constitutional.requirements with input as {"action": action}
}

test_empty_facts_leave_every_requirement if {
	count(catalogue) == 5
	every action, requirements in catalogue {
		unproven({"action": action}) == {requirement.code | some requirement in requirements}
	}
}

test_every_met_code_stands_in_the_catalogue if {
	known := {requirement.code | some requirements in catalogue; some requirement in requirements}
	every facts in [inference_facts, fast_tuning_facts, slow_tuning_facts, export_facts, promotion_facts, watch_facts] {
		met := constitutional.met with input as facts
			with data.user_permissions as permissions
			with data.teacher_endpoints as ["https://teacher.example/v1"]
		met - known == set()
	}
}

test_codes_are_unique_within_an_action if {
	every requirements in catalogue {
		count({requirement.code | some requirement in requirements}) == count(requirements)
	}
}

test_one_code_has_one_message if {
	pairs := {[requirement.code, requirement.message] |
		some requirements in catalogue
		some requirement in requirements
	}
	count(pairs) == count({pair[0] | some pair in pairs})
}

test_revision_comes_from_the_bundle if {
	revision := {"bundle": "b1", "data": "d1"}
	constitutional.decision.revision == revision with input as {} with data.revision as revision
}
