"""The child processes of a cycle. Each is run as a module, speaks through `agents.training.child.JobChannel`, and is
the only place beside the policy engine where torch is imported."""
