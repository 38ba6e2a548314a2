"""The demo: the whole loop once, on real input, with a report. It uses the system as a user would, from outside."""
