package acgs.nemo.constitutional_test

inference_facts := object.union(common_facts, {
	"action": "model_inference",
	"model": {"compliance_score": 0.97, "risk_level": "medium"},
	"request": {"safety_validated": true},
	"content": {"violations": []},
	"user": {"id": "analyst-1", "groups": ["staff", "constitutional-ai-users"]},
	"resources": {"gpu_hours": 2, "requested_gpus": 1, "memory_gb": 16},
})

permissions := {
	"analyst-1": {"gpu_hours_monthly": 10, "max_risk_level": "medium"},
	"analyst-2": {"gpu_hours_monthly": "much", "max_risk_level": "severe"},
	"": {"gpu_hours_monthly": 10, "max_risk_level": "medium"},
}

refused_inference(path, value) := codes if {
	codes := unproven_with(inference_facts, path, value) with data.user_permissions as permissions
		with data.gpu_hours_used as {"analyst-1": 7.5}
}

test_inference_allowed if {
	decision := decision_on(inference_facts) with data.user_permissions as permissions
	decision.allow
	decision.lane == "fast"
	not decision.human_review_required
}

test_inference_compliance if {
	refused_inference("/model/compliance_score", 0.95) == set()
	refused_inference("/model/compliance_score", 0.949999) == {"inference_compliance"}
	refused_inference("/model/compliance_score", 1.01) == {"inference_compliance"}
	refused_inference("/model/compliance_score", "0.99") == {"inference_compliance"}
}

test_inference_safety if {
	refused_inference("/request/safety_validated", "yes") == {"request_safety"}
}

test_unknown_user if {
	refused_inference("/user/id", "stranger") == {"user_permitted", "gpu_quota", "risk_permitted"}
	refused_inference("/user/id", 7) == {"user_permitted", "gpu_quota", "risk_permitted"}
	refused_inference("/user/id", "") == {"user_permitted", "gpu_quota", "risk_permitted"}
	refused_inference("/user/id", "analyst-2") == {"gpu_quota", "risk_permitted"}
}

test_user_group if {
	refused_inference("/user/groups", ["staff"]) == {"user_group"}
	refused_inference("/user/groups", {"g": "constitutional-ai-users"}) == {"user_group"}
}

test_no_group_that_may_ask if {
	blank := object.union(inference_facts, {"user": {"groups": [""]}})
	codes := unproven(blank) with data.user_permissions as permissions with data.inference_group as ""
	codes == {"user_group"}
}

test_gpu_quota if {
	refused_inference("/resources/gpu_hours", 2.5) == set()
	refused_inference("/resources/gpu_hours", 2.51) == {"gpu_quota"}
	refused_inference("/resources/gpu_hours", -1) == {"gpu_quota"}
	refused_inference("/resources/gpu_hours", "1") == {"gpu_quota"}
}

test_unknown_use_of_the_quota if {
	every ledger in [null, {"analyst-1": null}, {"analyst-1": -5}, {"analyst-1": "none"}] {
		codes := unproven(inference_facts) with data.user_permissions as permissions with data.gpu_hours_used as ledger
		codes == {"gpu_quota"}
	}
}

test_risk_is_an_ordered_scale if {
	refused_inference("/model/risk_level", "low") == set()
	refused_inference("/model/risk_level", "high") == {"risk_permitted"}
	refused_inference("/model/risk_level", "critical") == {"risk_permitted"}
	refused_inference("/model/risk_level", "none") == {"risk_permitted"}
}

test_resources if {
	refused_inference("/resources/requested_gpus", 100) == set()
	refused_inference("/resources/requested_gpus", 101) == {"gpus_available"}
	refused_inference("/resources/memory_gb", 800) == set()
	refused_inference("/resources/memory_gb", 800.5) == {"memory_available"}
}

test_unknown_resources_are_not_available if {
	codes := unproven(inference_facts) with data.user_permissions as permissions
		with data.resources as {"available_gpus": null, "available_memory_gb": null}
	codes == {"gpus_available", "memory_available"}
}
