package acgs.nemo.constitutional

# METADATA
# title: Every reported violation can be read
violations_readable if {
	is_array(input.content.violations)
	every violation in input.content.violations {
		is_text(violation_code(violation))
	}
}

# METADATA
# title: Reason violations_readable
reasons contains reason if {
	input.action == "model_inference"
	not violations_readable
	reason := {
		"code": "violations_readable",
		"message": "The content's violations must be a list of codes, or of records with type and severity.",
	}
}

# METADATA
# title: No reported violation is severe
no_severe_violation if {
	is_array(input.content.violations)
	every violation in input.content.violations {
		is_mild(violation)
	}
}

# METADATA
# title: Reason no_severe_violation
reasons contains reason if {
	input.action == "model_inference"
	not no_severe_violation
	reason := {
		"code": "no_severe_violation",
		"message": "The content must hold no violation of high severity.",
	}
}

# METADATA
# title: The constitution in force says how severe its codes are
# description: >-
#   Codes are looked up in small letters, so one in capitals would never be found. What stands under a code is read
#   only when it is reported, and refuses unless it is mild: a list of principles would have to be gone through with
#   every decision, which took longer than all the rest.
principles_known if {
	is_object(data.constitutional_principles)
	codes := object.keys(data.constitutional_principles)
	count(codes) > 0
	every code in codes {
		code == lower(code)
	}
}

# METADATA
# title: Reason principles_known
reasons contains reason if {
	input.action == "model_inference"
	not principles_known
	reason := {
		"code": "principles_known",
		"message": "The policy data must list the codes of the constitution's principles, in small letters.",
	}
}

# METADATA
# title: Severities that do not refuse
mild_severities := {"low", "medium"}

# METADATA
# title: Codes that are severe whatever the constitution says
always_severe := {"harmful_content", "bias_detected", "privacy_violation"}

# METADATA
# title: Code of a violation reported as a text
violation_code(violation) := lower(violation) if is_string(violation)

# METADATA
# title: Code of a violation reported as a record
violation_code(violation) := lower(violation.type) if is_string(violation.type)

# METADATA
# title: A code that is severe whatever the constitution says, or a finer one of it
is_severe(code) if split(code, ".")[0] in always_severe

# METADATA
# title: A code that the constitution does not call mild
is_severe(code) if {
	principle := data.constitutional_principles[code]
	not has_mild_severity(principle)
}

# METADATA
# title: A finer code of one that the constitution does not call mild
is_severe(code) if {
	principle := data.constitutional_principles[split(code, ".")[0]]
	not has_mild_severity(principle)
}

# METADATA
# title: A mild severity is stated
has_mild_severity(record) if record.severity in mild_severities

# METADATA
# title: A violation that does not refuse
is_mild(violation) if {
	code := violation_code(violation)
	not is_severe(code)
	called_mild(violation)
}

# METADATA
# title: A violation given by its code alone, which says nothing of severity
called_mild(violation) if is_string(violation)

# METADATA
# title: A violation whose stated severity is mild
called_mild(violation) if has_mild_severity(violation)
