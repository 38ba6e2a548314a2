package acgs.nemo.constitutional_test

always_severe := {"harmful_content", "bias_detected", "privacy_violation"}

test_severe_violations_refuse if {
	every code in always_severe {
		refused_inference("/content/violations", [code]) == {"no_severe_violation"}
		refused_inference("/content/violations", [upper(code)]) == {"no_severe_violation"}
		refused_inference("/content/violations", [{"type": code, "severity": "low"}]) == {"no_severe_violation"}
	}
	refused_inference("/content/violations", ["tone", {"type": "tone", "severity": "high"}]) == {"no_severe_violation"}
	refused_inference("/content/violations", [{"type": "tone"}]) == {"no_severe_violation"}
}

test_finer_codes_of_severe_ones_refuse if {
	refused_inference("/content/violations", ["harmful_content.unheard_of"]) == {"no_severe_violation"}
	refused_inference("/content/violations", ["deceptive_content.forgery"]) == {"no_severe_violation"}
	refused_inference("/content/violations", ["harmful_contents"]) == set()
}

test_mild_violations_pass if {
	refused_inference("/content/violations", ["tone", {"type": "verbosity", "severity": "low"}]) == set()
	refused_inference("/content/violations", ["political_bias", "unqualified_advice"]) == set()
}

test_unreadable_violations_refuse if {
	refused_inference("/content/violations", null) == {"violations_readable", "no_severe_violation"}
	refused_inference("/content/violations", {"a": "tone"}) == {"violations_readable", "no_severe_violation"}
	refused_inference("/content/violations", [3]) == {"violations_readable", "no_severe_violation"}
	refused_inference("/content/violations", [""]) == {"violations_readable"}
}

principles := {
	"tone": {"severity": "high"},
	"tone.quip": {"severity": "low"},
	"verbosity": {"severity": "medium"},
	"harmful_content": {"severity": "low"},
	"slander": null,
	"insult": {"severity": "High"},
}

under_other_principles(violations) := codes if {
	codes := refused_inference("/content/violations", violations) with data.constitutional_principles as principles
}

test_the_constitution_says_what_is_severe if {
	every code in {"tone", "Tone", "tone.slur", "tone.quip"} {
		under_other_principles([code]) == {"no_severe_violation"}
	}
	under_other_principles(["verbosity", "verbosity.long", "deceptive_content"]) == set()
}

test_no_constitution_makes_the_three_mild if {
	every code in {"harmful_content", "harmful_content.finer", "bias_detected", "privacy_violation"} {
		under_other_principles([code]) == {"no_severe_violation"}
	}
}

test_a_code_of_no_readable_severity_is_severe if {
	every code in {"slander", "slander.finer", "insult"} {
		under_other_principles([{"type": code, "severity": "low"}]) == {"no_severe_violation"}
	}
}

test_principles_that_cannot_be_read_refuse if {
	every unreadable in [null, {}, [], "harm", ["harm"], {"Harm": {"severity": "high"}}] {
		codes := unproven(inference_facts) with data.user_permissions as permissions
			with data.constitutional_principles as unreadable
		codes == {"principles_known"}
	}
}
