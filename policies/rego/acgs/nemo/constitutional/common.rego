package acgs.nemo.constitutional

# METADATA
# title: The model carries the hash of the constitution in force
constitutional_hash if {
	is_text(data.constitutional_hash)
	input.model.constitutional_hash == data.constitutional_hash
}

# METADATA
# title: Reason constitutional_hash
reasons contains reason if {
	known_action
	not constitutional_hash
	reason := {
		"code": "constitutional_hash",
		"message": "The model must carry the hash of the constitution in force.",
	}
}

# METADATA
# title: Auditing is on
audit_enabled if input.audit.enabled == true

# METADATA
# title: Reason audit_enabled
reasons contains reason if {
	known_action
	not audit_enabled
	reason := {
		"code": "audit_enabled",
		"message": "Auditing must be enabled.",
	}
}

# METADATA
# title: The audit trail is on
audit_trail if input.audit.trail_enabled == true

# METADATA
# title: Reason audit_trail
reasons contains reason if {
	known_action
	not audit_trail
	reason := {
		"code": "audit_trail",
		"message": "The audit trail must be enabled.",
	}
}

# METADATA
# title: The audit carries the hash of the constitution in force
audit_hash if {
	is_text(data.constitutional_hash)
	input.audit.constitutional_hash == data.constitutional_hash
}

# METADATA
# title: Reason audit_hash
reasons contains reason if {
	known_action
	not audit_hash
	reason := {
		"code": "audit_hash",
		"message": "The audit must carry the hash of the constitution in force.",
	}
}

# METADATA
# title: Audit entries are kept long enough, in days
audit_retention if at_least(input.audit.retention_period, data.bounds.audit_retention_days)

# METADATA
# title: Reason audit_retention
reasons contains reason if {
	known_action
	not audit_retention
	reason := {
		"code": "audit_retention",
		"message": "Audit entries must be kept for at least bounds.audit_retention_days days.",
	}
}
