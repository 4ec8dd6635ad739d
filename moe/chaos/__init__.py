"""Trainings that are killed, files that are broken or made to harm: the long checks of faults.

`scripts/chaos/run.py NAME` runs one; short forms are in the tests. All use a tiny random encoder.
"""
