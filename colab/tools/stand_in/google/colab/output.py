"""Nothing: jax imports this module where ``google.colab`` is loaded, and uses it in its debugger alone."""
