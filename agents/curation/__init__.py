"""Curation: violations, triggers and human feedback become training examples, and enough of them open a cycle."""
