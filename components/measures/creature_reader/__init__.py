"""Reads from a picture what a creature of the sample dataset looks like.

`reader` reads, and `training` trains its network: `python -m
components.measures.creature_reader.training --help`.
"""
