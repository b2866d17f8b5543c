"""Captions: cleaned, masked and judged."""
