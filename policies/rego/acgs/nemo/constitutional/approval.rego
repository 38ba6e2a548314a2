package acgs.nemo.constitutional

# METADATA
# title: The requester is named
requester_named if is_text(input.approval.requested_by)

# METADATA
# title: Reason requester_named
reasons contains reason if {
	human_review_required
	not requester_named
	reason := {
		"code": "requester_named",
		"message": "The slow lane needs the name of the requester.",
	}
}

# METADATA
# title: The plan to be approved has a digest
plan_digest if is_text(input.approval.plan_digest)

# METADATA
# title: Reason plan_digest
reasons contains reason if {
	human_review_required
	not plan_digest
	reason := {
		"code": "plan_digest",
		"message": "The slow lane needs the digest of the plan to be approved.",
	}
}

# METADATA
# title: A reviewer is assigned
approval_reviewer_assigned if input.approval.human_reviewer_assigned == true

# METADATA
# title: Reason approval_reviewer_assigned
reasons contains reason if {
	human_review_required
	not approval_reviewer_assigned
	reason := {
		"code": "approval_reviewer_assigned",
		"message": "The slow lane needs an assigned human reviewer.",
	}
}

# METADATA
# title: The reviewer approved
approval_granted if input.approval.approved == true

# METADATA
# title: Reason approval_granted
reasons contains reason if {
	human_review_required
	not approval_granted
	reason := {
		"code": "approval_granted",
		"message": "The slow lane needs the reviewer's approval.",
	}
}

# METADATA
# title: The approving reviewer is someone else than the requester
# description: >-
#   Names are compared without regard to case and surrounding blanks; the in-process engine folds the case of
#   ASCII letters only.
approval_independent if {
	is_text(input.approval.approved_by)
	is_text(input.approval.requested_by)
	lower(trim_space(input.approval.approved_by)) != lower(trim_space(input.approval.requested_by))
}

# METADATA
# title: Reason approval_independent
reasons contains reason if {
	human_review_required
	not approval_independent
	reason := {
		"code": "approval_independent",
		"message": "The approval must name its reviewer, who must not be the requester.",
	}
}

# METADATA
# title: The approval was given for the present plan
approval_current if {
	is_text(input.approval.plan_digest)
	input.approval.approved_plan_digest == input.approval.plan_digest
}

# METADATA
# title: Reason approval_current
reasons contains reason if {
	human_review_required
	not approval_current
	reason := {
		"code": "approval_current",
		"message": "The approval must be bound to the digest of the present plan.",
	}
}
