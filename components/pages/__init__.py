"""The common parts of our HTML pages: one file, no network, no script, light and dark."""

RELEASE_PLACE = "<!-- release -->not pushed yet when this page was written<!-- -->"
"""The placeholder for the release on a model's page, which is written before the release exists;
whoever copies the page fills it in."""
