package acgs.nemo.constitutional_test

watch_facts := object.union(common_facts, {
	"action": "model_rollback",
	"rollback": {
		"trigger": "watch",
		"adherence": 0.9,
		"n_evaluations": 150,
		"target_version": "v3",
		"target_was_champion": true,
	},
})

manual_facts := object.union(common_facts, {
	"action": "model_rollback",
	"rollback": {
		"trigger": "manual",
		"requested_by": "operator-2",
		"target_version": "v3",
		"target_was_champion": true,
	},
})

test_rollback_allowed if {
	every facts in [watch_facts, manual_facts] {
		decision := decision_on(facts)
		decision.allow
		decision.lane == "fast"
	}
}

test_watch_grounds if {
	unproven_with(watch_facts, "/rollback/adherence", 0.95) == {"rollback_grounds"}
	unproven_with(watch_facts, "/rollback/adherence", -1) == {"rollback_grounds"}
	unproven_with(watch_facts, "/rollback/adherence", null) == {"rollback_grounds"}
	unproven_with(watch_facts, "/rollback/n_evaluations", 99) == {"rollback_grounds"}
	unproven_with(watch_facts, "/rollback/trigger", "whim") == {"rollback_grounds"}
}

test_manual_grounds if {
	unproven_without(manual_facts, "/rollback/requested_by") == {"rollback_grounds"}
}

test_target if {
	unproven_with(watch_facts, "/rollback/target_was_champion", "yes") == {"rollback_target"}
	unproven_with(watch_facts, "/rollback/target_version", "") == {"rollback_target"}
}
