import pytest

from distvae.runs.folder import holds_run
from distvae.system.errors import UserError


def test_files_of_the_users_own_are_not_overwritten(tmp_path):
    (tmp_path / "best").mkdir()
    with pytest.raises(UserError, match="holds best, which no run wrote"):
        holds_run(tmp_path)
