"""From records on disk to batches ready for the device: the only room that imports grain."""
