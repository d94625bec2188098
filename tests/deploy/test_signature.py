"""Who signed a release: verified where it came from and where it lies."""

import shutil
import subprocess
from pathlib import Path, PurePosixPath

import pytest

from edgeopt.artifact import Bundle, Release
from edgeopt.board.local import LocalBoard
from edgeopt.deploy import (
    Signed,
    Signer,
    activate_release,
    read_allowed,
    read_history,
    rollback_release,
    sign_release,
    stage_bundle,
)
from edgeopt.errors import ConfigError, DeployFailed, RollbackFailed
from tests.deploy.kit import APP, assert_whole, board_facts, leftovers, link_of, make_bundle

pytestmark = pytest.mark.skipif(
    shutil.which("ssh-keygen") is None,
    reason="no ssh-keygen; run: sudo apt-get install -y openssh-client",
)


def make_key(path: Path, *, phrase: str = "") -> Path:
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", phrase, "-C", "", "-f", str(path)]
    subprocess.run(argv, check=True)
    return path


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("keys")
    return make_key(folder / "ours"), make_key(folder / "other")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "board"


def stage(bundle: Bundle, root: Path) -> Release:
    place = PurePosixPath(root)
    return stage_bundle(bundle, LocalBoard(), facts=board_facts(), app=APP, root=place)


def sign(key: Path, bundle: Bundle, serial: int = 5, *, downgrade: bool = False) -> Signed:
    return sign_release(
        Signer(key),
        app=APP,
        digest=bundle.digest,
        target="here",
        serial=serial,
        downgrade=downgrade,
    )


def install(
    key: Path, bundle: Bundle, root: Path, serial: int = 5, *, downgrade: bool = False
) -> bool:
    signed = sign(key, bundle, serial, downgrade=downgrade)
    return activate_release(stage(bundle, root), LocalBoard(), signed=signed).verified


def test_a_signed_release_is_verified_here_and_by_the_board(
    tmp_path: Path, root: Path, keys: tuple[Path, Path]
) -> None:
    bundle = make_bundle(tmp_path / "a")
    assert install(keys[0], bundle, root)
    assert link_of(root) == bundle.digest
    assert_whole(root, bundle.digest)
    assert leftovers(root) == []
    assert (root / "allowed_signers").read_text() == read_allowed(Signer(keys[0]))


def test_a_board_with_a_signer_refuses_what_is_not_signed(
    tmp_path: Path, root: Path, keys: tuple[Path, Path]
) -> None:
    one, two = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", seed=1)
    install(keys[0], one, root)
    with pytest.raises(DeployFailed, match="is not signed"):
        activate_release(stage(two, root), LocalBoard())
    assert link_of(root) == one.digest


def test_another_key_is_refused_by_the_board_and_by_the_host(
    tmp_path: Path, root: Path, keys: tuple[Path, Path]
) -> None:
    one, two = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", seed=1)
    install(keys[0], one, root)
    # The host believes in the other key; the board has its own mind.
    with pytest.raises(DeployFailed, match="signed by nobody who is allowed"):
        install(keys[1], two, root)
    assert link_of(root) == one.digest
    allowed = tmp_path / "allowed"
    allowed.write_text(read_allowed(Signer(keys[0])))
    with pytest.raises(ConfigError, match="not a key whose signatures count"):
        sign_release(Signer(keys[1], allowed), app=APP, digest=two.digest, target="here")


def test_a_signer_whose_days_are_over_is_refused_by_the_board_and_by_the_host(
    tmp_path: Path, root: Path, keys: tuple[Path, Path]
) -> None:
    one, two = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", seed=1)
    install(keys[0], one, root)
    signers = root / "allowed_signers"
    line = signers.read_text()
    assert "namespaces=" in line
    for day, refused in (("20990101", False), ("20200101", True)):
        text = line.replace("namespaces=", f'valid-before="{day}",namespaces=')
        allowed = tmp_path / f"until {day}"
        allowed.write_text(text)
        signers.chmod(0o600)
        signers.write_text(text)
        if not refused:
            sign_release(Signer(keys[0], allowed), app=APP, digest=two.digest, target="here")
            install(keys[0], two, root)
            assert link_of(root) == two.digest
            continue
        with pytest.raises(ConfigError, match="not a key whose signatures count"):
            sign_release(Signer(keys[0], allowed), app=APP, digest=one.digest, target="here")
        with pytest.raises(DeployFailed, match=r"signed by nobody|of another text"):
            install(keys[0], one, root)
        assert link_of(root) == two.digest


@pytest.mark.parametrize("name", ["manifest.json", "weights.bin", "statement", "sha256sums"])
def test_a_flipped_byte_is_refused_when_it_is_to_be_current(
    tmp_path: Path, root: Path, keys: tuple[Path, Path], name: str
) -> None:
    one, two = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", seed=1)
    install(keys[0], one, root)
    install(keys[0], two, root)
    flip(root / "apps" / APP / "releases" / one.digest / name)
    with pytest.raises(RollbackFailed):
        rollback_release(LocalBoard(), APP, root=PurePosixPath(root))
    assert link_of(root) == two.digest


@pytest.mark.parametrize("name", ["manifest.json", "weights.bin", "edgeopt-run"])
def test_a_byte_flipped_between_staging_and_switching_is_refused(
    tmp_path: Path, root: Path, keys: tuple[Path, Path], name: str
) -> None:
    one, two = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", seed=1)
    install(keys[0], one, root)
    staged = stage(two, root)
    flip(root / "apps" / APP / "releases" / two.digest / name)
    with pytest.raises(DeployFailed):
        activate_release(staged, LocalBoard(), signed=sign(keys[0], two))
    assert link_of(root) == one.digest


def test_weights_changed_together_with_their_digest_are_refused(
    tmp_path: Path, root: Path, keys: tuple[Path, Path]
) -> None:
    """sha256sums is the board's own list: only the manifest is signed."""
    one, two = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", seed=1)
    install(keys[0], one, root)
    install(keys[0], two, root)
    release = root / "apps" / APP / "releases" / one.digest
    flip(release / "weights.bin")
    names = ["edgeopt-run", "manifest.json", "model.so", "weights.bin"]
    sums = subprocess.run(["sha256sum", *names], cwd=release, capture_output=True, check=True)
    (release / "sha256sums").write_bytes(sums.stdout)
    with pytest.raises(RollbackFailed, match=r"weights\.bin is not in the signed manifest"):
        rollback_release(LocalBoard(), APP, root=PurePosixPath(root))
    allowed = read_allowed(Signer(keys[0]))
    with pytest.raises(RollbackFailed, match=r"weights\.bin is not what the signed manifest says"):
        rollback_release(LocalBoard(), APP, root=PurePosixPath(root), allowed=allowed)
    assert link_of(root) == two.digest


def test_a_rollback_to_a_signed_release_works_and_keeps_the_highest_serial(
    tmp_path: Path, root: Path, keys: tuple[Path, Path]
) -> None:
    one, two = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", seed=1)
    install(keys[0], one, root, 5)
    install(keys[0], two, root, 6)
    allowed = read_allowed(Signer(keys[0]))
    place = PurePosixPath(root)
    assert rollback_release(LocalBoard(), APP, root=place, allowed=allowed).current == one.digest
    assert (root / "apps" / APP / "serial").read_text() == "6\n"


def test_an_older_release_is_refused_unless_it_is_asked_for_and_that_is_written_down(
    tmp_path: Path, root: Path, keys: tuple[Path, Path]
) -> None:
    one, two = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", seed=1)
    install(keys[0], one, root, 9)
    with pytest.raises(DeployFailed, match="older than one that was current"):
        install(keys[0], two, root, 8)
    assert link_of(root) == one.digest
    install(keys[0], two, root, 8, downgrade=True)
    assert link_of(root) == two.digest
    history = read_history(LocalBoard(), APP, root=PurePosixPath(root))
    assert [each.downgrade for each in history] == [False, True]


def test_a_signature_for_another_application_or_release_does_not_count(
    tmp_path: Path, root: Path, keys: tuple[Path, Path]
) -> None:
    bundle = make_bundle(tmp_path / "a")
    for app, digest, target, words in (
        ("other", bundle.digest, "here", "it is signed as"),
        (APP, "0" * 64, "here", "it is signed as"),
        (APP, bundle.digest, "elsewhere", "signed for elsewhere and compiled for here"),
    ):
        signed = sign_release(Signer(keys[0]), app=app, digest=digest, target=target, serial=1)
        with pytest.raises(DeployFailed, match=words):
            activate_release(stage(bundle, root), LocalBoard(), signed=signed)
    assert link_of(root) == ""


def test_a_board_without_ssh_keygen_is_told_apart(
    tmp_path: Path, root: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("no busybox here; run: sudo apt-get install -y busybox-static")
    bundle = make_bundle(tmp_path / "a")
    signed = sign(keys[0], bundle)
    tools = tmp_path / "bin"
    tools.mkdir()
    subprocess.run([busybox, "--install", "-s", str(tools)], check=True)
    # The host verifies with a program of its own that the board's shell does not see.
    keygen = shutil.which("ssh-keygen")
    staged = stage(bundle, root)
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setattr("edgeopt.deploy.signature.KEYGEN", keygen)
    assert activate_release(staged, LocalBoard(), signed=signed).verified is False
    assert link_of(root) == bundle.digest


def test_a_locked_key_is_not_asked_about(tmp_path: Path) -> None:
    key = make_key(tmp_path / "locked", phrase="secret")
    with pytest.raises(ConfigError, match="cannot sign") as caught:
        sign_release(Signer(key), app=APP, digest="0" * 64, target="here")
    assert "secret" not in str(caught.value)


def test_a_key_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot sign"):
        sign_release(Signer(tmp_path / "none"), app=APP, digest="0" * 64, target="here")


def flip(path: Path) -> None:
    path.chmod(0o700)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
