"""What a curation says of itself: decisions, funnel and datasheet."""
