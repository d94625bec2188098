"""edgeopt deploy --sign as a user types it, on this machine."""

from pathlib import Path

from tests.deploy.test_signature import make_key
from tests.host.test_deploy_command import User, _shared_toolchain, pytestmark, report_of, user

__all__ = ["_shared_toolchain", "pytestmark", "user"]


def test_where_a_release_was_signed_no_other_is_deployed_or_restored(
    user: User, tmp_path: Path
) -> None:
    key, other = make_key(tmp_path / "ours"), make_key(tmp_path / "other")
    first = report_of(user.types("deploy", "--json", "--no-reference", "--sign", str(key)))
    assert user.current() == first["digest"]
    assert "; the board asks for one of 1; not verified" in user.types("status").stdout
    assert "; verified here, by the board's signers" in user.types("status", "--check").stdout
    plain = user.types("deploy", "--no-reference", "--profile", "float16")
    assert (plain.returncode, user.current()) == (10, first["digest"])
    assert "is not signed" in plain.stderr
    wrong = user.types("deploy", "--no-reference", "--profile", "float16", "--sign", str(other))
    assert (wrong.returncode, user.current()) == (10, first["digest"])
    assert "signed by nobody who is allowed to" in wrong.stderr
    settings = user.project / "edgeopt.toml"
    text = settings.read_text()
    settings.write_text(f'{text}\n[signing]\nkey = "{key}"\n')
    second = report_of(user.types("deploy", "--json", "--no-reference", "--profile", "float16"))
    assert user.current() == second["digest"] != first["digest"]
    settings.write_text(f'{text}\n[signing]\nkey = "{other}"\n')
    refused = user.types("rollback")
    assert (refused.returncode, user.current()) == (11, second["digest"])
    doubted = user.types("status", "--check").stdout
    assert "signature DOES NOT HOLD: it is signed by nobody who is allowed to" in doubted
    settings.write_text(f'{text}\n[signing]\nkey = "{key}"\n')
    assert "; verified here, by the project's signers" in user.types("status", "--check").stdout
    assert user.types("rollback").returncode == 0
    assert user.current() == first["digest"]


def test_a_key_that_cannot_sign_stops_before_anything_slow(user: User, tmp_path: Path) -> None:
    done = user.types("deploy", "--sign", str(tmp_path / "none"))
    assert done.returncode == 2
    assert "cannot sign" in done.stderr
    assert not (user.home / ".edgeopt").exists()
