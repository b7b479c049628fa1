"""What our HTML pages have in common: one file, no network, no script, light and dark."""

RELEASE_PLACE = "<!-- release -->not pushed yet when this page was written<!-- -->"
"""Stands on a model's page for its release, which comes after it; who copies the page fills it in.
"""
