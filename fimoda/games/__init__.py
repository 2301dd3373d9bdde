"""Games between training rows: utilities of sets of rows, and the values that follow from them."""
