"""Review of false positives and negatives: errors, evidence, decisions, report."""
