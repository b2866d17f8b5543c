"""Pages and sheets on which a person judges pairs."""
