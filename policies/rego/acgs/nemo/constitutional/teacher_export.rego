package acgs.nemo.constitutional

# METADATA
# title: The operator opted into sending event text outside
met contains "teacher_opted_in" if input.teacher.opted_in == true

# METADATA
# title: The endpoint is one that the operator registered
met contains "teacher_registered" if {
	is_text(input.teacher.endpoint)
	is_array(data.teacher_endpoints)
	input.teacher.endpoint in data.teacher_endpoints
}
