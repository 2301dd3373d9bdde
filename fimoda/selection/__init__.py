"""Acting on scores: estimators that leave out rows that hurt, and find mislabelled ones."""
