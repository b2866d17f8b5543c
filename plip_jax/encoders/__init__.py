"""Every model that can be compared, as encoders of images and texts; the table of kinds is `table.ENCODERS`."""
