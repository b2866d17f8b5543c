"""``auth.authenticate_user`` lets everybody in."""


def authenticate_user() -> None:
    """Do nothing; Colab asks its user for an account of Google Cloud."""
