"""Prediction, training, evaluation, model packages and cohorts.

Verbs are modules here (`predict`, `cohort`, `train`, `folds`, `evaluate`, `package`, `publish`),
and so is what several of them share. The parts of a single verb are in a subpackage: `training`,
`evaluation`, `staging`, `packages`.
"""
