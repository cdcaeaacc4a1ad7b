"""Runs: prediction, training, packages, cohorts."""
