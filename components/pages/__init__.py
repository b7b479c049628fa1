"""What our HTML pages have in common: one file, no network, no script, light and dark."""
