package acgs.nemo.constitutional_test

every_approval_code := {"approval_reviewer_assigned", "approval_granted", "approval_independent", "approval_current"}

test_unapproved_plan_lacks_only_the_approval if {
	unapproved := json.remove(slow_tuning_facts, [
		"/approval/human_reviewer_assigned",
		"/approval/approved",
		"/approval/approved_by",
		"/approval/approved_plan_digest",
	])
	unproven(unapproved) == every_approval_code
}

test_each_part_of_the_approval if {
	refused_tuning("/approval/human_reviewer_assigned", false) == {"approval_reviewer_assigned"}
	refused_tuning("/approval/approved", "yes") == {"approval_granted"}
	refused_tuning("/approval/approved_by", null) == {"approval_independent"}
	refused_tuning("/approval/approved_plan_digest", "sha256:0000") == {"approval_current"}
}

test_requester_may_not_approve if {
	every name in ["flywheel-curation", "Flywheel-Curation", " flywheel-curation "] {
		refused_tuning("/approval/approved_by", name) == {"approval_independent"}
	}
}

test_requester_and_plan_must_be_named if {
	refused_tuning("/approval/requested_by", "") == {"requester_named", "approval_independent"}
	refused_tuning("/approval/plan_digest", null) == {"plan_digest", "approval_current"}
}

test_no_approval_without_its_plan if {
	both_absent := json.remove(slow_tuning_facts, ["/approval/plan_digest", "/approval/approved_plan_digest"])
	unproven(both_absent) == {"plan_digest", "approval_current"}
	both_empty := object.union(slow_tuning_facts, {"approval": {"plan_digest": "", "approved_plan_digest": ""}})
	unproven(both_empty) == {"plan_digest", "approval_current"}
}
