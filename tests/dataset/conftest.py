"""A small dataset for the tests of this folder."""

import pytest
from databases import make_dataset


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Folder of the dataset "tiny", see ``databases.open_tiny``."""
    root = tmp_path_factory.mktemp("data")
    make_dataset(root / "tiny")
    return root
