"""One package a stage of the flywheel: a thin Faust `agent.py` over plain functions that know nothing of Faust."""
