"""Review of false positives and false negatives: errors, evidence, decisions, report."""
