"""Programs that make datasets; each writes record folders that `plip_jax.data` reads."""
