"""The probes of ``plip-jax doctor``: what each looks at, what it finds wrong, and what to do about it."""
