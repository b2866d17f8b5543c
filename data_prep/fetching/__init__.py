"""Images by address: limits, state and the content-addressed store."""
