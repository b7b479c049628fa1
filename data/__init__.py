"""The sample dataset and the program that draws it."""
