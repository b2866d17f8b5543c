"""Images: judged, stripped, embedded and gated."""
