package acgs.nemo.constitutional_test

import data.acgs.nemo.constitutional

test_unknown_action_is_refused if {
	decision_on({"action": "model_deletion"}) == {
		"allow": false,
		"reasons": [{"code": "action_known", "message": "The action must be one that this policy decides."}],
		"lane": "slow",
		"human_review_required": false,
		"revision": revision_in_force,
	}
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
	decision := constitutional.decision with data.revision as revision_in_force
	not decision.allow
}

common_codes := {"constitutional_hash", "audit_enabled", "audit_trail", "audit_hash", "audit_retention"}

test_empty_facts_prove_nothing if {
	every action in {"model_inference", "model_fine_tuning", "teacher_export", "model_promotion", "model_rollback"} {
		decision := decision_on({"action": action})
		not decision.allow
		common_codes - {reason.code | some reason in decision.reasons} == set()
		count(decision.reasons) > count(common_codes)
	}
}

test_only_uses_of_event_text_ask_for_approval if {
	every action in {"model_fine_tuning", "teacher_export"} {
		every_approval_code - unproven({"action": action}) == set()
		decision_on({"action": action}).human_review_required
	}
	every action in {"model_inference", "model_promotion", "model_rollback"} {
		every_approval_code & unproven({"action": action}) == set()
		not decision_on({"action": action}).human_review_required
	}
}

test_no_decision_without_a_revision if {
	not constitutional.decision with input as watch_facts
}
