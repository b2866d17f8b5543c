"""Takedowns: what goes, what is purged, and the proof."""
