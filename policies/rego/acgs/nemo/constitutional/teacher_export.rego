package acgs.nemo.constitutional

# METADATA
# title: The operator opted into sending event text outside
teacher_opted_in if input.teacher.opted_in == true

# METADATA
# title: Reason teacher_opted_in
reasons contains reason if {
	input.action == "teacher_export"
	not teacher_opted_in
	reason := {
		"code": "teacher_opted_in",
		"message": "Sending event text to a teacher must have been opted into.",
	}
}

# METADATA
# title: The endpoint is one that the operator registered
teacher_registered if {
	is_text(input.teacher.endpoint)
	input.teacher.endpoint in data.teacher_endpoints
}

# METADATA
# title: Reason teacher_registered
reasons contains reason if {
	input.action == "teacher_export"
	not teacher_registered
	reason := {
		"code": "teacher_registered",
		"message": "The teacher's endpoint must be among the registered ones.",
	}
}
