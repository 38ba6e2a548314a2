package acgs.nemo.constitutional

# METADATA
# title: No requester is asked for in the fast lane
met contains "requester_named" if lane == "fast"

# METADATA
# title: The requester is named
met contains "requester_named" if is_text(input.approval.requested_by)

# METADATA
# title: No plan digest is asked for in the fast lane
met contains "plan_digest" if lane == "fast"

# METADATA
# title: The plan to be approved has a digest
met contains "plan_digest" if is_text(input.approval.plan_digest)

# METADATA
# title: No reviewer is asked for in the fast lane
met contains "approval_reviewer_assigned" if lane == "fast"

# METADATA
# title: A reviewer is assigned
met contains "approval_reviewer_assigned" if input.approval.human_reviewer_assigned == true

# METADATA
# title: No approval is asked for in the fast lane
met contains "approval_granted" if lane == "fast"

# METADATA
# title: The reviewer approved
met contains "approval_granted" if input.approval.approved == true

# METADATA
# title: No second person is asked for in the fast lane
met contains "approval_independent" if lane == "fast"

# METADATA
# title: The approving reviewer is someone else than the requester
# description: >-
#   Names are compared without regard to case and surrounding blanks; the in-process engine folds the case of
#   ASCII letters only.
met contains "approval_independent" if {
	is_text(input.approval.approved_by)
	is_text(input.approval.requested_by)
	lower(trim_space(input.approval.approved_by)) != lower(trim_space(input.approval.requested_by))
}

# METADATA
# title: No approval to go stale in the fast lane
met contains "approval_current" if lane == "fast"

# METADATA
# title: The approval was given for the present plan
met contains "approval_current" if {
	is_text(input.approval.plan_digest)
	input.approval.approved_plan_digest == input.approval.plan_digest
}
