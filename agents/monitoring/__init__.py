"""The monitoring agent: polls the policy and audit engines and turns what they list into Prometheus metrics."""
