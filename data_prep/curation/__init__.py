"""The pipeline from posts to decided pairs: its rows, its stages and what runs them."""

import logging

# Beam says so of Google's storage whenever it is imported; nothing here uses it.
logging.getLogger().addFilter(lambda record: not record.getMessage().startswith("apitools not found"))
