package acgs.nemo.constitutional_test

export_facts := object.union(common_facts, {
	"action": "teacher_export",
	"teacher": {"opted_in": true, "endpoint": "https://teacher.example/v1"},
	"data": {"pii_scrubbed": true},
	"approval": approval,
})

refused_export(path, value) := codes if {
	codes := unproven_with(export_facts, path, value) with data.teacher_endpoints as ["https://teacher.example/v1"]
}

test_export_allowed_in_the_slow_lane if {
	decision := decision_on(export_facts)
		with data.teacher_endpoints as ["https://teacher.example/v1"]
	decision.allow
	decision.lane == "slow"
	decision.human_review_required
}

test_no_endpoint_is_registered_by_default if {
	unproven(export_facts) == {"teacher_registered"}
}

test_export_refused if {
	refused_export("/teacher/opted_in", "true") == {"teacher_opted_in"}
	refused_export("/teacher/endpoint", "https://elsewhere.example/v1") == {"teacher_registered"}
	refused_export("/teacher/endpoint", null) == {"teacher_registered"}
	refused_export("/data/pii_scrubbed", false) == {"pii_scrubbed"}
	refused_export("/approval/approved", false) == {"approval_granted"}
}
