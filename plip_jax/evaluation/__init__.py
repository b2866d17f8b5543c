"""Pure functions on embeddings, and the tasks they run on."""
