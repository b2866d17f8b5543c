"""What belongs together: duplicates, groups and the splits that do not cut them."""
