"""Acting on scores: estimators that leave out rows that hurt, find mislabelled ones, and give intervals."""
