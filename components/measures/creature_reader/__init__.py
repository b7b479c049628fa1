"""Reads what a creature of the sample dataset looks like out of a picture.

`reader` reads, `training` makes what it reads with: `python -m
components.measures.creature_reader.training --help`.
"""
