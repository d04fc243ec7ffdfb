import pytest

from distvae.config.load import load_config
from distvae.config.schema import Config


@pytest.fixture
def load(tmp_path):
    """Writes ``configs/some/name.yaml`` and loads it."""
    path = tmp_path / "configs" / "some" / "name.yaml"
    path.parent.mkdir(parents=True)

    def load(text: str | bytes = "", *overrides: str) -> Config:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load_config(path, overrides)

    return load
