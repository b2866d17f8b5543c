"""TFDS builders of the evaluation sets, from the archives as their authors publish them."""
