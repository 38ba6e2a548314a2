package acgs.nemo.constitutional_test

test_hash_must_be_the_one_in_force if {
	unproven_with(watch_facts, "/model/constitutional_hash", "cdd01ef066bc6cf3") == {"constitutional_hash"}
	unproven_with(watch_facts, "/audit/constitutional_hash", "") == {"audit_hash"}
}

test_no_hash_in_force_matches_nothing if {
	every absent in [null, "", " "] {
		codes := unproven(object.union(watch_facts, {
			"model": {"constitutional_hash": absent},
			"audit": {"constitutional_hash": absent},
		})) with data.constitutional_hash as absent
		codes == {"constitutional_hash", "audit_hash"}
	}
}

test_audit_must_be_on if {
	unproven_with(watch_facts, "/audit/enabled", false) == {"audit_enabled"}
	unproven_with(watch_facts, "/audit/enabled", "true") == {"audit_enabled"}
	unproven_with(watch_facts, "/audit/trail_enabled", false) == {"audit_trail"}
	unproven_without(watch_facts, "/audit/trail_enabled") == {"audit_trail"}
}

test_audit_retention if {
	unproven_with(watch_facts, "/audit/retention_period", 2554) == {"audit_retention"}
	unproven_with(watch_facts, "/audit/retention_period", "7 years") == {"audit_retention"}
	unproven_with(watch_facts, "/audit/retention_period", 3650) == set()
}
