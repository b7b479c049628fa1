"""The verdict of an evaluation on a model, in the words that artifacts and releases record."""

VERDICT = "verdict"
"""Name of the property, and of the fact of a release."""

BLESSED, UNSURE, REFUSED = "blessed", "unsure", "refused"
"""`UNSURE`: too few pictures to say whether the model is better or worse."""
