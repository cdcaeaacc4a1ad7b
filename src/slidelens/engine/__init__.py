"""Prediction, training, evaluation, model packages and cohorts.

Verbs stand here (`predict`, `cohort`, `train`, `folds`, `evaluate`, `package`, `publish`), and what
several of them share. What one of them is made of has a room of its own: `training`, `evaluation`,
`staging`, `packages`.
"""
