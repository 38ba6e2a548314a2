"""Fuzzers of every boundary that outsiders or files cross: one frame, a target each (`python -m fuzz --help`)."""
