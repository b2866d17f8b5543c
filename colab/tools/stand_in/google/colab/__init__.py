"""A stand-in for Colab's own package, for the tests of the notebooks: the same names, on this machine's disk."""
