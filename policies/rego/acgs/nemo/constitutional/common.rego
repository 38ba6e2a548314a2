package acgs.nemo.constitutional

# METADATA
# title: The model carries the hash of the constitution in force
met contains "constitutional_hash" if {
	is_text(data.constitutional_hash)
	input.model.constitutional_hash == data.constitutional_hash
}

# METADATA
# title: Auditing is on
met contains "audit_enabled" if input.audit.enabled == true

# METADATA
# title: The audit trail is on
met contains "audit_trail" if input.audit.trail_enabled == true

# METADATA
# title: The audit carries the hash of the constitution in force
met contains "audit_hash" if {
	is_text(data.constitutional_hash)
	input.audit.constitutional_hash == data.constitutional_hash
}

# METADATA
# title: Audit entries are kept long enough, in days
met contains "audit_retention" if at_least(input.audit.retention_period, data.bounds.audit_retention_days)
