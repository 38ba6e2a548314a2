package acgs.nemo.constitutional_test

import data.acgs.nemo.constitutional

fast_tuning_facts := object.union(common_facts, {
	"action": "model_fine_tuning",
	"model": {"base_model_approved": true, "risk_level": "low"},
	"training": {
		"differential_privacy_enabled": true,
		"epsilon": 5.9,
		"delta": 0.00001,
		"constitutional_constraints_enabled": true,
		"critique_revision_cycles": 3,
		"compliance_threshold": 0.95,
	},
	"data": {"pii_scrubbed": true, "n_examples": 128},
	"monitoring": {"constitutional_compliance": true},
	"teacher": {"used": false},
})

slow_tuning_facts := object.union(fast_tuning_facts, {
	"training": {"epsilon": 7.9},
	"approval": approval,
})

lane_of(facts) := lane if {
	lane := constitutional.lane with input as facts
}

refused_tuning(path, value) := unproven_with(slow_tuning_facts, path, value)

test_fast_lane_needs_no_approval if {
	lane_of(fast_tuning_facts) == "fast"
	unproven(fast_tuning_facts) == set()
}

test_slow_lane_with_approval if {
	lane_of(slow_tuning_facts) == "slow"
	unproven(slow_tuning_facts) == set()
}

test_lane_by_measured_facts if {
	every change in [
		{"training": {"epsilon": 6.01}},
		{"training": {"epsilon": "5"}},
		{"training": {"epsilon": null}},
		{"model": {"risk_level": "high"}},
		{"model": {"risk_level": "critical"}},
		{"model": {"risk_level": null}},
		{"teacher": {"used": true}},
		{"teacher": {"used": null}},
	] {
		lane_of(object.union(fast_tuning_facts, change)) == "slow"
	}
	lane_of(object.union(fast_tuning_facts, {"training": {"epsilon": 6}, "model": {"risk_level": "medium"}})) == "fast"
}

test_requesters_word_on_the_lane_is_ignored if {
	word := {"lane": "fast", "approval": {"human_review_required": false}, "training": {"epsilon": 7.9}}
	lane_of(object.union(fast_tuning_facts, word)) == "slow"
}

test_lane_bounds_that_are_not_there_mean_slow if {
	every bounds in [{}, {"fast_lane_epsilon": 6}, {"fast_lane_risk_level": "high"}] {
		lane := constitutional.lane with input as fast_tuning_facts with data.bounds as bounds
		lane == "slow"
	}
}

test_constraints if {
	refused_tuning("/training/constitutional_constraints_enabled", false) == {"constraints_enabled"}
	refused_tuning("/training/critique_revision_cycles", 0) == {"critique_cycles"}
	refused_tuning("/training/compliance_threshold", 0.94) == {"compliance_threshold"}
	refused_tuning("/training/compliance_threshold", 1.2) == {"compliance_threshold"}
}

test_base_model if {
	refused_tuning("/model/base_model_approved", "true") == {"base_model_approved"}
	refused_tuning("/model/base_model", "SmolLM2-135M-Instruct") == set()
	refused_tuning("/model/base_model", "unheard-of") == {"base_model_registered"}
	refused_tuning("/model/base_model", null) == {"base_model_registered"}
}

test_missing_registry_knows_no_model if {
	named := object.union(fast_tuning_facts, {"model": {"base_model": "SmolLM2-135M-Instruct"}})
	codes := unproven(named) with data.model_registry as null
	codes == {"base_model_registered"}
}

test_risk_known if {
	refused_tuning("/model/risk_level", "severe") == {"risk_known"}
	refused_tuning("/model/risk_level", "critical") == set()
}

test_privacy if {
	refused_tuning("/training/differential_privacy_enabled", false) == {"differential_privacy"}
	refused_tuning("/training/epsilon", 8) == set()
	refused_tuning("/training/epsilon", 8.000001) == {"epsilon_budget"}
	refused_tuning("/training/epsilon", 0) == {"epsilon_budget"}
	refused_tuning("/training/epsilon", "7") == {"epsilon_budget"}
	refused_tuning("/training/delta", 0.0000101) == {"delta_bound"}
	refused_tuning("/training/delta", 0) == {"delta_bound"}
}

test_data if {
	refused_tuning("/data/pii_scrubbed", false) == {"pii_scrubbed"}
	refused_tuning("/data/n_examples", 31) == {"examples_enough"}
	refused_tuning("/data/n_examples", 32) == set()
}

test_monitoring_and_teacher if {
	refused_tuning("/monitoring/constitutional_compliance", false) == {"compliance_monitored"}
	refused_tuning("/teacher/used", "no") == {"teacher_known"}
	refused_tuning("/teacher/used", true) == set()
}
