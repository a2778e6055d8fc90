"""Tokens and passwords."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st

from raftkv.auth import Caller, passwords
from raftkv.auth.tokens import METHODS, JwtTokens, SimpleTokens, TokenError, parse
from raftkv.status import StatusError

NOW = 1_800_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_simple_token_ends_when_it_is_not_used() -> None:
    clock = Clock()
    tokens = SimpleTokens(300.0, clock)
    tokens.assign("used.1", "a")
    tokens.assign("unused.2", "b")
    clock.now = 299.0
    assert tokens.user("used.1") == "a"
    clock.now = 301.0
    assert tokens.user("unused.2") is None
    assert tokens.user("used.1") == "a"
    clock.now = 602.0
    assert tokens.user("used.1") is None
    assert not len(tokens)


def test_tokens_of_one_user_or_of_all_are_void() -> None:
    tokens = SimpleTokens(300.0, Clock())
    for number, user in enumerate("aab"):
        tokens.assign(f"x.{number}", user)
    tokens.void("a")
    assert [tokens.user(f"x.{number}") for number in range(3)] == [None, None, "b"]
    tokens.void(None)
    assert tokens.user("x.2") is None


def test_prefixes_are_letters_and_differ() -> None:
    prefixes = {SimpleTokens.new_prefix() for _ in range(100)}
    assert len(prefixes) == 100
    assert all(len(prefix) == 16 and prefix.isalpha() for prefix in prefixes)


@pytest.mark.parametrize(
    ("token", "index"),
    [("abc.12", 12), ("abc", 0), (".1", 0), ("a.x", 0), ("a.-1", 0), ("a.1.2", 0), ("a.٣", 0), ("a." + "9" * 20, 0)],
)
def test_a_simple_token_names_its_index(token: str, index: int) -> None:
    assert SimpleTokens.index(token) == index


@given(st.text())
def test_no_text_troubles_the_parser_of_simple_tokens(token: str) -> None:
    assert SimpleTokens(300.0, Clock()).user(token) is None
    assert SimpleTokens.index(token) >= 0


def pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> tuple[bytes, bytes]:
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return private, key.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[str, str]]:
    """Files with the private and the public key for a method."""
    directory = tmp_path_factory.mktemp("keys")
    curves = {"ES256": ec.SECP256R1(), "ES384": ec.SECP384R1(), "ES512": ec.SECP521R1()}
    found = {method: pem(ec.generate_private_key(curve)) for method, curve in curves.items()}
    found["EdDSA"] = pem(ed25519.Ed25519PrivateKey.generate())
    found["RS"] = found["PS"] = pem(rsa.generate_private_key(public_exponent=65537, key_size=2048))
    found["HS"] = b"a secret of at least sixty-four bytes, as the longest of the methods wants", b""
    for method, (private, public) in found.items():
        (directory / f"{method}.key").write_bytes(private)
        (directory / f"{method}.pub").write_bytes(public)

    def files(method: str) -> tuple[str, str]:
        name = method if method in found else method[:2]
        return str(directory / f"{name}.key"), str(directory / f"{name}.pub")

    return files


def tokens_of(setting: str, now: float = NOW) -> JwtTokens:
    made = parse(setting, ttl_seconds=300, clock=Clock(), now=lambda: now)
    assert isinstance(made, JwtTokens)
    return made


@pytest.mark.parametrize("method", METHODS)
def test_every_method_signs_and_checks(method: str, keys: Callable[[str], tuple[str, str]]) -> None:
    private, public = keys(method)
    signing = tokens_of(f"jwt,sign-method={method},priv-key={private},ttl=10m")
    token = signing.sign("ann", 7)
    assert signing.caller(token) == Caller("ann", 7)
    assert signing.caller(token[:-6] + "AAAAAA") is None
    claims = jwt.decode(token, options={"verify_signature": False})
    assert claims["username"] == "ann"
    assert claims["revision"] == 7
    if not method.startswith("HS"):
        checking = tokens_of(f"jwt,sign-method={method},pub-key={public}")
        assert checking.caller(token) == Caller("ann", 7)
        assert not checking.can_sign
        both = tokens_of(f"jwt,sign-method={method},pub-key={public},priv-key={private}")
        assert both.caller(token) == Caller("ann", 7)


def test_pr_15676_a_jwt_without_user_or_revision_is_nobody_s(keys: Callable[[str], tuple[str, str]]) -> None:
    private, _ = keys("HS256")
    tokens = tokens_of(f"jwt,sign-method=HS256,priv-key={private}")
    secret = Path(private).read_bytes()
    good = {"username": "ann", "revision": 7.0}
    assert tokens.caller(jwt.encode(good, secret, "HS256")) == Caller("ann", 7)
    bad: list[dict[str, object]] = [
        {},
        {"username": "ann"},
        {"revision": 7},
        *({**good, "username": name} for name in (None, 1, "", ["ann"], {"a": 1})),
        *({**good, "revision": revision} for revision in (None, "7", -1, 0, 1.5, True, 1 << 64, [7], float("inf"))),
        {**good, "exp": NOW - 1},
        {**good, "exp": NOW},
        {**good, "exp": "soon"},
        {**good, "exp": True},
        {**good, "exp": None},
        {**good, "nbf": NOW + 100},
    ]
    for claims in bad:
        assert tokens.caller(jwt.encode(claims, secret, "HS256")) is None, claims


def test_a_token_signed_otherwise_is_nobody_s(keys: Callable[[str], tuple[str, str]]) -> None:
    """Above all one signed with the public key as if it were a secret, or not at all."""
    private, public = keys("RS256")
    tokens = tokens_of(f"jwt,sign-method=RS256,priv-key={private}")
    claims = {"username": "root", "revision": 1}
    part = jwt.utils.base64url_encode(json.dumps(claims).encode()).decode()
    none = jwt.utils.base64url_encode(b'{"alg":"none"}').decode()
    import hashlib
    import hmac

    head = jwt.utils.base64url_encode(b'{"alg":"HS256"}').decode()
    mac = hmac.new(Path(public).read_bytes(), f"{head}.{part}".encode(), hashlib.sha256).digest()
    forged = f"{head}.{part}.{jwt.utils.base64url_encode(mac).decode()}"
    for token in (f"{none}.{part}.", forged, jwt.encode(claims, Path(private).read_bytes(), "RS512")):
        assert tokens.caller(token) is None


@given(token=st.one_of(st.text(), st.from_regex(r"[\w-]+\.[\w-]+\.[\w-]*")))
def test_no_text_troubles_the_parser_of_jwt(token: str) -> None:
    secret = b"a secret of at least sixty-four bytes, as the longest of the methods wants"
    made = JwtTokens(method="HS256", private=secret, public=secret, ttl_seconds=1, now=lambda: NOW)
    assert made.caller(token) is None


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("magic", "neither simple nor jwt"),
        ("", "neither simple nor jwt"),
        ("jwt,ttl", "not one name=value"),
        ("jwt,ttl=1s,ttl=2s", "not one name=value"),
        ("jwt", "invalid auth signature method"),
        ("jwt,sign-method=none", "invalid auth signature method"),
        ("jwt,sign-method=RS256", "missing key data"),
        ("jwt,sign-method=HS256", "missing key data"),
        ("jwt,sign-method=HS256,priv-key={HS256},ttl=never", "ttl"),
        ("jwt,sign-method=HS256,priv-key={HS256},ttl=0", "ttl must be positive"),
        ("jwt,sign-method=RS256,priv-key=/nowhere", "cannot read /nowhere"),
        ("jwt,sign-method=RS256,priv-key={HS256}", ""),
        ("jwt,sign-method=RS256,priv-key={ES256}", ""),
        ("jwt,sign-method=RS256,pub-key={HS256}", ""),
        ("jwt,sign-method=ES256,priv-key={ES256},pub-key={RS256.pub}", "keys don't match"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_line(
    setting: str, words: str, keys: Callable[[str], tuple[str, str]]
) -> None:
    for name in METHODS:
        private, public = keys(name)
        setting = setting.replace(f"{{{name}}}", private).replace(f"{{{name}.pub}}", public)
    with pytest.raises(TokenError) as refused:
        parse(setting, ttl_seconds=300, clock=Clock(), now=lambda: NOW)
    text = str(refused.value)
    assert text.startswith("auth: invalid auth options")
    assert words in text
    assert "\n" not in text


def test_passwords_are_told_apart_only_by_what_they_are() -> None:
    hashed = passwords.decode_hash(passwords.hash_password("pässword", 4))
    assert hashed.startswith(b"$2b$04$")
    assert passwords.matches("pässword", hashed)
    assert not passwords.matches("pässwore", hashed)
    assert not passwords.matches("", hashed)
    empty = passwords.decode_hash(passwords.hash_password("", 4))
    assert passwords.matches("", empty)
    assert not passwords.matches("\0", empty)


def test_a_password_that_bcrypt_would_cut_is_refused() -> None:
    longest = passwords.decode_hash(passwords.hash_password("x" * 72, 4))
    assert passwords.matches("x" * 72, longest)
    assert not passwords.matches("x" * 73, longest)
    with pytest.raises(StatusError, match="NUL"):
        passwords.hash_password("a\0a", 4)
    with pytest.raises(StatusError, match="bcrypt: password length exceeds 72 bytes"):
        passwords.hash_password("x" * 73, 4)


def test_a_member_starts_without_what_signs_tokens() -> None:
    """It would take a seventh of the start."""
    script = "import sys, raftkv.main, raftkv.member; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    loaded = set(done.stdout.split())
    assert "raftkv.auth.tokens" in loaded
    assert not loaded & {"jwt", "cryptography"}
