"""A small week of posts, curated once for all tests that only look at it."""

import pytest


@pytest.fixture(scope="session")
def curated(tmp_path_factory):
    """A `Curated` that is not to be changed: `Curated.copy` is."""
    # Beam takes seconds to load, and most tests here do without.
    from curated_week import curate_week, small_week
    from image_server import ImageServer
    from week_images import DistinctImages, simulated_images

    with ImageServer() as server:
        yield curate_week(tmp_path_factory.mktemp("week"), server, DistinctImages(simulated_images()), small_week)
