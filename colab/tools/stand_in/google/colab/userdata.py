"""``userdata.get`` of somebody who keeps no secrets."""


class SecretNotFoundError(Exception):
    """No secret of this name; the name of Colab's own error."""


def get(key: str) -> str:
    """Raise what Colab raises for a secret that was never set."""
    raise SecretNotFoundError(key)
