"""Key files that change while the service runs: when that is noticed, from when a key is used, until when it counts.

Files are as old as the clock says: their time is set beside their content.
"""

import json
import logging
import os
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from mfa_service.crypto.keyring import Keyring, new_keyring_text, with_new_key, without_key
from mfa_service.crypto.signing import file_name, new_key_pem
from mfa_service.errors import InvalidToken, SealBroken
from mfa_service.services import Services
from mfa_service.services.keyfiles import activation_delay
from tests.conftest import Clock
from tests.factories import Person
from tests.services import CLIENT, another, ensure_refused, identity_of, is_live, register, sign_in

INTERVAL = 30
DELAY = 2 * INTERVAL
#: An access token, the difference of clocks that is let pass, and a replica that has not looked yet.
OVERLAP = 3600 + 30 + INTERVAL
PLACE = "a place"

# ── the keyring ──────────────────────────────────────────────────────────────────────────────────


def test_the_interval_and_the_delay_are_what_these_tests_take_them_for(services: Services) -> None:
    assert services.settings.key_reread_seconds == INTERVAL
    assert activation_delay(services.settings) == DELAY


def test_the_very_first_key_is_active_at_once(services: Services, ring: "Ring") -> None:
    assert key_of(services.vault.seal(b"", PLACE)) == ring.ids[0]


def test_a_change_is_noticed_within_an_interval(services: Services, ring: "Ring", clock: Clock) -> None:
    old, new = ring.add_key(active_in=0)
    clock.advance(INTERVAL - 1)
    assert services.refresh_tokens.active_key_id == old
    clock.advance(1)
    assert services.refresh_tokens.active_key_id == new


def test_a_clock_that_was_put_back_does_not_keep_it_from_looking(
    services: Services, ring: "Ring", clock: Clock
) -> None:
    _, new = ring.add_key(active_in=-7200)
    clock.advance(-3600)
    assert services.refresh_tokens.active_key_id == new


def test_a_new_key_is_active_from_the_time_that_it_names(services: Services, ring: "Ring", clock: Clock) -> None:
    old, new = ring.add_key(active_in=100)
    assert seconds_until(clock, lambda: services.refresh_tokens.active_key_id == new) in range(100, 100 + INTERVAL)
    assert old in ring.ids


def test_a_new_key_that_names_no_time_is_active_two_intervals_after_its_file_was_written(
    services: Services, ring: "Ring", clock: Clock
) -> None:
    _, new = ring.add_key(active_in=None)
    assert seconds_until(clock, lambda: services.refresh_tokens.active_key_id == new) in range(DELAY, DELAY + INTERVAL)


def test_a_new_key_opens_long_before_it_seals(services: Services, ring: "Ring", clock: Clock) -> None:
    old, _ = ring.add_key(active_in=DELAY)
    with ring.alone(0) as future:
        value = future.vault.seal(b"value", PLACE)
    clock.advance(INTERVAL)
    assert services.vault.open(value, PLACE) == b"value"
    assert key_of(services.vault.seal(b"", PLACE)) == old


def test_what_another_replica_sealed_with_a_key_that_this_one_has_not_read_opens(
    services: Services, ring: "Ring"
) -> None:
    ring.add_key(active_in=0)
    with another(services) as ahead:
        value = ahead.vault.seal(b"value", PLACE)
    assert services.vault.open(value, PLACE) == b"value"


def test_a_session_that_another_replica_began_with_a_key_that_this_one_has_not_read_goes_on(
    services: Services, ring: "Ring", ada: Person
) -> None:
    ring.add_key(active_in=0)
    with another(services) as ahead:
        signed_in = sign_in(ahead, ada)
    assert is_live(services, services.login.refresh(signed_in.refresh_token, CLIENT))


def test_a_key_id_that_is_nowhere_opens_nothing(services: Services, ring: "Ring") -> None:
    with another(services, keys=new_keyring_text()) as stranger:
        value = stranger.vault.seal(b"value", PLACE)
    with pytest.raises(SealBroken):
        services.vault.open(value, PLACE)


def test_a_key_that_was_taken_out_derives_no_refresh_token_after_an_interval(
    services: Services, ring: "Ring", ada: Person, clock: Clock
) -> None:
    old, _ = ring.add_key(active_in=-1)
    signed_in = sign_in(services, ada)
    ring.write(without_key(ring.text, old))
    clock.advance(INTERVAL)
    with pytest.raises(SealBroken):
        services.login.refresh(signed_in.refresh_token, CLIENT)


@pytest.mark.parametrize("harm", ["cut", "empty", "no keys", "weak", "gone", "a folder", "no text"])
def test_a_file_that_becomes_unreadable_keeps_the_keys_and_says_so_until_it_is_mended(
    services: Services, ring: "Ring", clock: Clock, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    old = ring.ids[0]
    value, whole = services.vault.seal(b"value", PLACE), ring.text
    ring.harm(harm)
    for times in (1, 2):
        clock.advance(INTERVAL)
        assert key_of(services.vault.seal(b"", PLACE)) == old
        assert services.vault.open(value, PLACE) == b"value"
        assert [record.levelno for record in caplog.records] == [logging.CRITICAL] * times
    assert not [key["key"] for key in json.loads(whole)["keys"] if key["key"] in caplog.text]
    ring.mend(with_new_key(whole, active_from=clock()))
    clock.advance(INTERVAL)
    assert key_of(services.vault.seal(b"", PLACE)) == ring.ids[0] != old
    assert len(caplog.records) == 2


def test_keys_in_the_environment_are_all_active_and_no_file_is_looked_at(
    services: Services, ring: "Ring", clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with another(services, keys=with_new_key(new_keyring_text(), active_from=0)) as made:
        before = made.refresh_tokens.active_key_id
        ring.add_key(active_in=0)
        ring.harm("empty")
        clock.advance(DELAY)
        assert made.refresh_tokens.active_key_id == before not in ring.added
        assert caplog.records == []


def test_a_key_in_the_environment_is_active_from_the_time_that_it_names(services: Services, clock: Clock) -> None:
    """Every replica has it in its environment before the first one seals with it."""
    before = new_keyring_text()
    text = with_new_key(before, active_from=clock() + 100)
    new, old = (key["id"] for key in json.loads(text)["keys"])
    with another(services, keys=text) as made, another(services, keys=before) as not_yet:
        assert key_of(made.vault.seal(b"", PLACE)) == made.refresh_tokens.active_key_id == old
        assert not_yet.vault.open(made.vault.seal(b"value", PLACE), PLACE) == b"value"
        assert seconds_until(clock, lambda: made.refresh_tokens.active_key_id == new) in range(100, 100 + INTERVAL)
        assert key_of(made.vault.seal(b"", PLACE)) == new


def test_a_file_that_is_written_anew_with_the_same_keys_changes_nothing(
    services: Services, ring: "Ring", clock: Clock
) -> None:
    """As when a secret is mounted again, or another key is retired: what is active stays so."""
    _, new = ring.add_key(active_in=None)
    clock.advance(DELAY + INTERVAL)
    assert services.refresh_tokens.active_key_id == new
    ring.write(ring.text)
    clock.advance(INTERVAL)
    assert services.refresh_tokens.active_key_id == new


# ── signing keys ─────────────────────────────────────────────────────────────────────────────────


def test_the_very_first_signing_key_signs_at_once(services: Services, folder: "Folder") -> None:
    assert kids(services) == [signer(services)]


def test_a_new_signing_key_is_published_within_an_interval_and_signs_after_two(
    services: Services, folder: "Folder", clock: Clock
) -> None:
    old = signer(services)
    folder.add_key()
    assert seconds_until(clock, lambda: len(kids(services)) == 2) <= INTERVAL
    assert signer(services) == old
    elapsed = INTERVAL + seconds_until(clock, lambda: signer(services) != old)
    assert elapsed in range(DELAY, DELAY + INTERVAL)
    assert signer(services) == kids(services)[-1]


def test_a_signing_key_under_a_name_of_ones_own_counts_from_when_it_was_written(
    services: Services, folder: "Folder", clock: Clock
) -> None:
    old = signer(services)
    folder.add_key("z-mine.pem")
    assert seconds_until(clock, lambda: signer(services) != old) in range(DELAY, DELAY + INTERVAL)


@pytest.mark.parametrize("name", ["one.pem", "signing.pem", "2024.pem"])
def test_a_new_signing_key_signs_whatever_the_one_before_is_called(
    services: Services, folder: "Folder", clock: Clock, name: str
) -> None:
    """Names of one's own may stand beside those of `flask mfa new-signing-key`: the newer key is the newer one."""
    folder.rename(folder.names[0], name)
    clock.advance(DELAY)
    old = signer(services)
    folder.add_key()
    clock.advance(DELAY + INTERVAL)
    assert len(kids(services)) == 2
    assert signer(services) != old


def test_the_old_signing_key_verifies_until_its_last_token_has_expired_and_then_leaves(
    services: Services, folder: "Folder", clock: Clock
) -> None:
    old = signer(services)
    folder.add_key()
    clock.advance(DELAY + OVERLAP - 1)
    assert old in kids(services)
    clock.advance(INTERVAL)
    assert kids(services) == [signer(services)] != [old]
    assert services.keys.find(old) is None


def test_no_token_dies_before_its_time_over_a_change_of_keys(
    services: Services, folder: "Folder", ada: Person, clock: Clock
) -> None:
    folder.add_key()
    clock.advance(DELAY - 1)
    last = sign_in(services, ada)
    old = signer(services)
    clock.advance(3599)
    assert signer(services) != old
    assert identity_of(services, last)
    clock.advance(1)
    with pytest.raises(InvalidToken):
        identity_of(services, last)


def test_a_token_that_was_verified_stays_remembered_whatever_is_looked_at_and_added(
    services: Services, folder: "Folder", ada: Person, clock: Clock
) -> None:
    signed_in = sign_in(services, ada)
    identity = identity_of(services, signed_in)
    clock.advance(INTERVAL)
    assert identity_of(services, signed_in) is identity
    folder.add_key()
    clock.advance(INTERVAL)
    assert identity_of(services, signed_in) is identity
    assert len(kids(services)) == 2


def test_a_forged_token_under_the_old_key_is_refused_once_it_has_left(
    services: Services, folder: "Folder", ada: Person, clock: Clock
) -> None:
    """Whoever stole the key mints what looks fresh."""
    with another(services, signing_keys=folder.copied()) as thief:
        folder.add_key()
        clock.advance(DELAY + OVERLAP + INTERVAL)
        forged = sign_in(thief, ada)
        with pytest.raises(InvalidToken):
            identity_of(services, forged)


def test_a_signing_key_that_is_taken_out_is_refused_within_an_interval(
    services: Services, folder: "Folder", ada: Person, clock: Clock
) -> None:
    first, with_old = folder.names[0], sign_in(services, ada)
    folder.add_key()
    clock.advance(DELAY)
    with_new = sign_in(services, ada)
    assert identity_of(services, with_old)
    folder.remove(first)
    clock.advance(INTERVAL)
    ensure_refused(InvalidToken, lambda: identity_of(services, with_old))
    assert identity_of(services, with_new)
    assert kids(services) == [signer(services)]


def test_where_the_only_key_is_replaced_at_a_stroke_the_new_one_signs_within_an_interval(
    services: Services, folder: "Folder", ada: Person, clock: Clock
) -> None:
    stolen = sign_in(services, ada)
    folder.add_key()
    folder.remove(folder.names[0])
    clock.advance(INTERVAL)
    ensure_refused(InvalidToken, lambda: identity_of(services, stolen))
    assert identity_of(services, sign_in(services, ada))


@pytest.mark.parametrize("harm", ["broken", "empty", "none"])
def test_a_folder_that_becomes_unreadable_keeps_the_keys_and_says_so_until_it_is_mended(
    services: Services, folder: "Folder", ada: Person, clock: Clock, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    old = signer(services)
    signed_in, mend = sign_in(services, ada), folder.harm(harm)
    clock.advance(INTERVAL)
    assert identity_of(services, signed_in)
    assert kids(services) == [old]
    assert {record.levelno for record in caplog.records} == {logging.CRITICAL}
    mend()
    folder.add_key()
    caplog.clear()
    clock.advance(INTERVAL)
    assert len(kids(services)) == 2
    assert caplog.records == []


def test_a_shared_secret_does_not_look_at_the_folder(
    services: Services, folder: "Folder", clock: Clock, ada: Person, caplog: pytest.LogCaptureFixture
) -> None:
    with another(services, jwt_secret="Zk3v9Qp1Lr7Xw5Tb8Nc2Hs6Jd4Gf0MyAeUi") as shared:
        signed_in = sign_in(shared, ada)
        folder.add_key()
        folder.harm("broken")
        clock.advance(DELAY)
        assert identity_of(shared, signed_in)
        assert shared.keys.public_jwks() == {"keys": []}
        assert caplog.records == []


# ── replicas ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("offset", [1, 14, 29])
def test_replicas_that_look_at_different_times_never_meet_what_they_cannot_open_or_verify(
    services: Services, ring: "Ring", folder: "Folder", clock: Clock, ada: Person, offset: int
) -> None:
    """Second by second over a rotation of both kinds of keys: each opens and verifies what the other has just made."""
    identity = identity_of(services, sign_in(services, ada))
    clock.advance(offset)
    with another(services) as other:
        ring.add_key(active_in=DELAY)
        folder.add_key()
        signers, sealers = set(), set()
        for second in range(DELAY + 2 * INTERVAL):
            for one, two in ((services, other), (other, services)):
                value = one.vault.seal(b"value", PLACE)
                token = one.minter.access(identity, token_id=f"token{second}", now=clock())
                refresh_token = one.refresh_tokens.derive("s" * 22, 1, one.refresh_tokens.active_key_id)
                assert two.vault.open(value, PLACE) == b"value"
                assert two.verifier.access(token, now=clock()).session_id == identity.session_id
                assert two.refresh_tokens.derive("s" * 22, 1, one.refresh_tokens.active_key_id) == refresh_token
                assert signer(one) in kids(two)
                signers.add(signer(one))
                sealers.add(key_of(value))
            clock.advance(1)
        assert (len(signers), len(sealers)) == (2, 2)
        assert signer(services) == signer(other)


# ── means ────────────────────────────────────────────────────────────────────────────────────────


class Ring:
    """The keyring's file, written when the clock says."""

    def __init__(self, services: Services, clock: Clock) -> None:
        self.path = services.settings.keyring_file
        self.added: list[str] = []
        self._services = services
        self._clock = clock
        self.write(self.text)

    @property
    def text(self) -> str:
        return self.path.read_text()

    @property
    def ids(self) -> tuple[str, ...]:
        return Keyring.parse(self.text).ids

    def write(self, text: str) -> None:
        self.path.write_text(text)
        set_time(self.path, self._clock())

    def add_key(self, *, active_in: float | None) -> tuple[str, str]:
        """Add a key that names a time, or none; the ids of the one before and of the new one."""
        text = with_new_key(self.text, active_from=self._clock() + (active_in or 0))
        entries = json.loads(text)["keys"]
        if active_in is None:
            del entries[0]["activeFrom"]
        self.write(json.dumps({"keys": entries}))
        self.added.append(entries[0]["id"])
        return entries[1]["id"], entries[0]["id"]

    def alone(self, place: int) -> AbstractContextManager[Services]:
        """A service that has only one of the keys."""
        entry = json.loads(self.text)["keys"][place]
        return another(self._services, keys=json.dumps({"keys": [{"id": entry["id"], "key": entry["key"]}]}))

    def harm(self, how: str) -> None:
        if how in ("gone", "a folder"):
            self.path.unlink()
            if how == "a folder":
                self.path.mkdir()
            return
        weak = json.dumps({"keys": [{"id": "weak", "key": "A" * 43}]})
        text = {"cut": self.text[:40], "empty": "", "no keys": '{"keys": []}', "weak": weak, "no text": ""}[how]
        self.path.write_bytes(b"\xff\xfe" if how == "no text" else text.encode())
        set_time(self.path, self._clock() + 1)

    def mend(self, text: str) -> None:
        if self.path.is_dir():
            self.path.rmdir()
        self.write(text)


class Folder:
    """The folder of signing keys, whose files are as old as the clock says."""

    def __init__(self, services: Services, clock: Clock) -> None:
        self.path = services.settings.signing_folder
        self._clock = clock
        for name in self.names:
            set_time(self.path / name, clock())

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in self.path.glob("*.pem"))

    def add_key(self, name: str = "") -> None:
        path = self.path / (name or file_name(self._clock()))
        path.write_bytes(new_key_pem())
        set_time(path, self._clock())

    def copied(self) -> Path:
        return Path(shutil.copytree(self.path, self.path.with_name("stolen")))

    def rename(self, name: str, to: str) -> None:
        (self.path / name).rename(self.path / to)

    def remove(self, name: str) -> None:
        (self.path / name).unlink()

    def harm(self, how: str) -> Callable[[], object]:
        """Spoil it; what is returned mends it."""
        if how == "none":
            away = self.path.rename(self.path.with_name("away"))
            return lambda: away.rename(self.path)
        spoilt = self.path / "9.pem"
        spoilt.write_bytes(b"" if how == "empty" else b"-----BEGIN PRIVATE KEY-----\n")
        return spoilt.unlink


@pytest.fixture
def config(config: dict[str, Any], instance: Path, tmp_path: Path, clock: Clock) -> dict[str, Any]:
    """With an instance folder of our own, for its files change; all of them are of before the service started."""
    own = Path(shutil.copytree(instance, tmp_path / "own-instance"))
    (own / "signing-keys" / "one.pem").rename(own / "signing-keys" / file_name(clock() - 1))
    for path in own.rglob("*.*"):
        set_time(path, clock() - 1)
    return config | {"MFA_INSTANCE": str(own)}


@pytest.fixture
def database(_migrated_sqlite: Path, tmp_path: Path) -> str:
    """Files are the same whatever the database is."""
    return f"sqlite:///{shutil.copy(_migrated_sqlite, tmp_path / 'mfa.db')}"


@pytest.fixture
def ring(services: Services, clock: Clock) -> Ring:
    return Ring(services, clock)


@pytest.fixture
def folder(services: Services, clock: Clock) -> Folder:
    return Folder(services, clock)


@pytest.fixture
def ada(services: Services) -> Person:
    return register(services)


def set_time(path: Path, time: float) -> None:
    os.utime(path, (time, time))


def seconds_until(clock: Clock, is_so: Callable[[], bool], longest: int = 300) -> int:
    """Move the clock second by second until it is so; how long that took."""
    for seconds in range(longest):
        if is_so():
            return seconds
        clock.advance(1)
    raise AssertionError(f"not within {longest} seconds")


def key_of(envelope: bytes) -> str:
    """The id of the key that a value is sealed under: it stands behind its length."""
    return envelope[2 : 2 + envelope[1]].decode()


def signer(services: Services) -> str:
    return str(services.keys.signer[0])


def kids(services: Services) -> list[str]:
    """The ids of the keys that are published."""
    return [key["kid"] for key in services.keys.public_jwks()["keys"]]
