"""What runs have come to: tables, curves, a page."""
