"""Side-by-side measurements, each a command; ``results/`` keeps what was measured. Nothing imports them but tests."""
