"""Keys, passwords and tokens, by the names of the files that hold them and by their shapes in any text."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, NamedTuple

__all__ = ["SecretFinder", "is_name_of_secret"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


WORDS: Final = _words(
    "apikey apikeys authinfo boto cookies credential credentials creds dockercfg dsa ecdsa ed25519 htpasswd keyring "
    "keystore keytab kubeconfig netrc npmrc passphrase passwd password passwords pgpass privatekey pypirc rsa s3cfg "
    "secret secrets secring serviceaccount shadow tfvars"
)
PAIRS: Final = _words(
    "access/key access/keys api/key api/keys authorized/keys firebase/adminsdk kaggle/json known/hosts private/key "
    "rclone/conf secret/key service/account ssh/key wallet/dat"
)
"""Words of which one follows the other."""
ENDINGS: Final = _words("agekey asc der env gpg jceks jks kdb kdbx key ovpn p12 p8 pem pfx pgp pkcs12 ppk tfstate")
"""What follows a dot, also before another ending (`server.key.bak`)."""
ENVIRONMENT: Final = re.compile(r"\.?env(\.(local|dev|prod|stag|test|ci|secret|example|sample)\w*)*", re.IGNORECASE)
TOKEN: Final = _words("token tokens")
NOT_ITS_SUBJECT: Final = _words("backup bak cfg conf copy dat ini json new old orig save toml txt yaml yml")
"""Words that may follow the one that says what a file holds: `hf_token.json.bak`, and not `token_counts.csv`."""
CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
NO_WORD: Final = re.compile(r"[^a-z0-9]+")
X: Final = re.compile(rb"\w{2,5}_[xX]+")
"""What documentation writes in place of a token."""


class _Shape(NamedTuple):
    """A secret in a text: one of the marks that it begins with, in small letters, and what it is from there on."""

    kind: str
    marks: tuple[bytes, ...]
    pattern: re.Pattern[bytes]
    may_follow_a_word: bool = False


def _shape(kind: str, marks: str, pattern: bytes, *, may_follow_a_word: bool = False) -> _Shape:
    return _Shape(kind, tuple(mark.encode() for mark in marks.split()), re.compile(pattern), may_follow_a_word)


SHAPES: Final = (
    _shape("a token of the Hub", "hf_ api_org_", rb"(?:hf|api_org)_[A-Za-z0-9]{20,}"),
    _shape(
        "a private key",
        "-----begin putty-user-key-file- age-secret-key-1",
        rb"-----BEGIN (?:[A-Z0-9]+ ){0,3}PRIVATE KEY(?: BLOCK)?-----|PuTTY-User-Key-File-\d|AGE-SECRET-KEY-1",
        may_follow_a_word=True,
    ),
    _shape(
        "a token of GitHub or GitLab",
        "gho_ ghp_ ghr_ ghs_ ghu_ github_pat_ glpat-",
        rb"gh[oprsu]_[A-Za-z0-9]{30,}|github_pat_\w{40,}|glpat-[\w-]{20,}",
    ),
    _shape("a key of AWS", "akia asia", rb"(?:AKIA|ASIA)[A-Z2-7]{16}(?![A-Za-z0-9])"),
    _shape("a key of Google", "aiza ya29. gocspx-", rb"AIza[\w-]{35}|ya29\.[\w-]{30,}|GOCSPX-[\w-]{20,}"),
    _shape("a token of Slack", "xox", rb"xox[abeoprs]-[\w-]{10,}"),
    _shape(
        "a key of an API",
        "sk- sk_live_ rk_live_",
        rb"sk-(?:ant|proj|svcacct|or)-[\w-]{20,}|sk-[A-Za-z0-9]{32,}|[rs]k_live_[A-Za-z0-9]{20,}",
    ),
    _shape(
        "a token of a registry",
        "npm_ pypi-age dckr_pat_",
        rb"npm_[A-Za-z0-9]{36}|pypi-AgE[\w-]{50,}|dckr_pat_[\w-]{20,}",
    ),
    _shape("a token of a login", "eyj", rb"eyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"),
    _shape(
        "an address with a password",
        "://",
        rb"://[\w.%+-]{1,64}:[\w.%~!$&*+=-]{3,128}@[\w.-]",
        may_follow_a_word=True,
    ),
    _shape(
        "a password or a key",
        "api_key apikey secret password access_key auth_token access_token hf_token hub_token _authtoken",
        rb"\w{6,32}[\"']?[ \t]{0,4}[=:][ \t]{0,4}[\"']?(?=[A-Za-z/+_.-]{0,64}\d)[A-Za-z0-9/+_.-]{16,}",
        may_follow_a_word=True,
    ),
)
WORDLIKE: Final = frozenset(
    bytes([code]) for code in b"-_0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)
LONGEST: Final = 512  # bytes of what is looked for, which two blocks may share


def is_name_of_secret(name: str) -> bool:
    """Whether a file or a folder of that name holds a secret, as far as people name them by custom."""
    words = [word for word in NO_WORD.split(CAMEL.sub(" ", name).lower()) if word]
    if not WORDS.isdisjoint(words) or not PAIRS.isdisjoint(map("/".join, pairwise(words))):
        return True
    if ENVIRONMENT.fullmatch(name) or not ENDINGS.isdisjoint(name.lower().rstrip("~").split(".")[1:]):
        return True
    subject = [word for word in words if word not in NOT_ITS_SUBJECT and not word.isdigit()]
    return bool(subject) and subject[-1] in TOKEN


@dataclass
class SecretFinder:
    """Looks for secrets in the content of a file, which it is given block by block."""

    found: str | None = None
    """The first that was found, as a noun."""
    line: int = 1
    """Where that is, counted from 1."""
    _rest: bytes = b""

    def look(self, block: bytes) -> None:
        """Look through the next block; zero bytes are passed over, so that UTF-16 is read, too."""
        if self.found is not None:
            return
        text = self._rest + block.replace(b"\0", b"")
        for at, kind in _secrets(text):
            self.found, self.line = kind, self.line + text.count(b"\n", 0, at)
            return
        self._rest = text[-LONGEST:]
        self.line += text.count(b"\n", 0, len(text) - len(self._rest))


def _secrets(text: bytes) -> Iterator[tuple[int, str]]:
    """Where secrets begin, each with what it is."""
    small = text.lower()
    for shape in SHAPES:
        for mark in shape.marks:
            at = small.find(mark)
            while at >= 0:
                hit = shape.pattern.match(text, at)
                is_apart = shape.may_follow_a_word or at == 0 or text[at - 1 : at] not in WORDLIKE
                if hit is not None and is_apart and not X.fullmatch(hit[0]):
                    yield at, shape.kind
                at = small.find(mark, at + 1)
