"""What an evaluation says of a model, in the words that artifacts and releases record."""

VERDICT = "verdict"
"""Name of the property, and of the fact of a release."""

BLESSED, UNSURE, REFUSED = "blessed", "unsure", "refused"
"""`UNSURE`: neither better nor worse could be told from so few pictures."""
