"""Faults at random under a load with a known answer: see README.md."""
