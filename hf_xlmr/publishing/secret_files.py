"""Finds keys, passwords and tokens by the names of the files that contain them and by their shapes in any text."""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Final, NamedTuple


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
"""Pairs of words that name a secret if the second follows the first."""
ENDINGS: Final = _words("agekey asc der env gpg jceks jks kdb kdbx key ovpn p12 p8 pem pfx pgp pkcs12 ppk tfstate")
"""Endings of file names, also before another ending (`server.key.bak`)."""
ENVIRONMENT: Final = re.compile(r"\.?env(\.(local|dev|prod|stag|test|ci|secret|example|sample)\w*)*", re.IGNORECASE)
TOKEN: Final = _words("token tokens")
NOT_ITS_SUBJECT: Final = _words("backup bak cfg conf copy dat ini json new old orig save toml txt yaml yml")
"""Words that may follow the one that says what a file contains: `hf_token.json.bak`, not `token_counts.csv`."""
CAMEL: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
NO_WORD: Final = re.compile(r"[^a-z0-9]+")
# ---- the text around a secret ----------------------------------------------------------------------------------------

APART: Final = (
    rb"(?:(?<![A-Za-z0-9])|(?<=\\[abefnrtv])|(?<=\\[0-7]{3})|(?<=\\x[\dA-Fa-f]{2})|(?<=\\u[\dA-Fa-f]{4})"
    rb"|(?<=[%=][\dA-Fa-f]{2})|(?<=[\[;]\dm)|(?<=[\[;]\d\dm))"
)
"""The beginning of a word, also after an escape sequence of JSON, Python, YAML, addresses or terminals."""
QUOTE: Final = rb"(?:\\{0,8}[\"'`]|&(?:quot|apos|#34|#39|#x22|#x27);|%2[27]|\\{1,8}[ux](?:00)?2[27]|\*\*|__){0,3}"
SOME_QUOTE: Final = QUOTE.replace(b"{0,3}", b"{1,3}")
SPACE: Final = rb"(?:[ \t\r\n]|\\{1,8}[rnt]|%20|&nbsp;)"
IS: Final = (
    QUOTE + rb"\]?" + SPACE + rb"{0,8}(?:=>|:=|[=:>]|%3[ad]|\\{1,8}[ux](?:00)?3[ad]|&#61;|&gt;)" + SPACE + rb"{0,8}"
)
"""The text between a name and its value in programs, settings, addresses and strings that contain these."""
NEXT: Final = QUOTE + b"," + SPACE + b"{0,8}" + QUOTE
VALUE: Final = rb"(?P<quote>" + QUOTE + rb")(?P<value>[\w/+.~!@#$^*=-]{6,512})"
LAST: Final = frozenset(b" \t\r\n&;,\\\"'`<")
"""Characters that may follow a value without quotes; after others the match is a name, not a value."""

# ---- texts that look like a secret but are not -----------------------------------------------------------------------

OF_DOCUMENTATION: Final = re.compile(rb"x{6}|example|placeholder|redacted|your[-_]?(?:token|key|api|hf)", re.IGNORECASE)
"""Texts that documentation writes inside a token."""
PLACEHOLDER: Final = re.compile(
    rb".*(?:example|placeholder|redacted|dummy|your|insert|replace|change[-_]?me|x{5}|\.\.\.).*|[$%].*|(.)\1*",
    re.IGNORECASE,
)
"""Texts that documentation and programs write in place of a value."""
NAME_OF_SECRET: Final = re.compile(rb"passw|secret|token|api_?key|credential|environ|getenv|authent", re.IGNORECASE)
WORD_FOR_SECRET: Final = re.compile(rb"pass(?:word|wd)?|pwd?|secret|(?:\w{1,8}[-_])?(?:token|key)", re.IGNORECASE)
WORDS_IN_ONE: Final = re.compile(rb"hf_(?:[A-Z]{1,4}[a-z]{2,}){3,}[A-Z]{0,4}")
"""Names such as `hf_XLMRobertaForSequenceClassification`; one token in some thousands also matches."""
NUMBER_OR_PATH: Final = re.compile(rb"[+-]?[\d._]+(?:e[+-]?\d+)?|[./~].*/.*|[a-z\d_.-]*(?:/[a-z\d_.-]*)+")
NAME_IN_A_PROGRAM: Final = re.compile(rb"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+|_*[a-z]{2,}\d{0,2}(?:_+[a-z]*\d{0,2})+")
RANDOM: Final = re.compile(rb"(?=.*[a-z])(?=.*[A-Z])(?=.*\d)[\w.+=-]{20,}|[\da-f]{32,}")


def _is_token(hit: re.Match[bytes]) -> bool:
    return OF_DOCUMENTATION.search(hit[0]) is None and WORDS_IN_ONE.fullmatch(hit[0]) is None


def _is_value(hit: re.Match[bytes], *, least: int, letters: int | None = None) -> bool:
    """Whether the value of a name is a secret, and not a placeholder of documentation or an expression of a program.

    It has `least` characters with digits and letters among them, or at least `letters`.
    """
    value, is_quoted = hit["value"].rstrip(b".,;!"), hit["quote"] != b""
    if len(value) < least or PLACEHOLDER.fullmatch(hit["value"]) or NUMBER_OR_PATH.fullmatch(value):
        return False
    if not is_quoted and (hit.string[hit.end() : hit.end() + 1] in (b"(", b"[") or NAME_IN_A_PROGRAM.fullmatch(value)):
        return False
    if re.search(rb"\d", value) and re.search(rb"[A-Za-z]", value):
        return True
    is_last = is_quoted or hit.end() == len(hit.string) or hit.string[hit.end()] in LAST
    return letters is not None and len(value) >= letters and is_last and NAME_OF_SECRET.search(value) is None


_is_key: Final = partial(_is_value, least=16)


def _is_password(hit: re.Match[bytes]) -> bool:
    return _is_value(hit, least=8, letters=10 if hit["quote"] else 16)


def _is_random(hit: re.Match[bytes]) -> bool:
    """Whether the value of a name that harmless things also have, such as `token`, is a secret."""
    value = hit["value"].rstrip(b".,;!")
    return RANDOM.fullmatch(value) is not None and _is_value(hit, least=20)


def _is_login(hit: re.Match[bytes]) -> bool:
    """Whether the value is a name and a password in the encoding of HTTP's basic authentication."""
    try:
        decoded = b64decode(hit["value"], validate=True).decode("ascii")
    except ValueError:
        return False
    return ":" in decoded and decoded.isprintable()


def _is_given(hit: re.Match[bytes]) -> bool:
    return PLACEHOLDER.fullmatch(hit["value"]) is None and WORD_FOR_SECRET.fullmatch(hit["value"]) is None


class _Shape(NamedTuple):
    """The shape of a secret in a text: the marks that it may begin with, in small letters, and its pattern."""

    kind: str
    marks: tuple[bytes, ...]
    pattern: re.Pattern[bytes]
    is_one: Callable[[re.Match[bytes]], bool]


def _shape(
    kind: str, marks: str, pattern: bytes, is_one: Callable[[re.Match[bytes]], bool], flags: int = re.IGNORECASE
) -> _Shape:
    return _Shape(kind, tuple(mark.encode() for mark in marks.split(",")), re.compile(pattern, flags), is_one)


def _token(kind: str, marks: str, pattern: bytes) -> _Shape:
    """The shape of a service's token, which begins with a mark of that service."""
    return _shape(kind, marks, APART + rb"(?:" + pattern + rb")", _is_token, flags=0)


def _named(kind: str, marks: str, names: bytes, is_one: Callable[[re.Match[bytes]], bool]) -> _Shape:
    """The shape of a secret that a text assigns to a name."""
    return _shape(kind, marks, names + IS + VALUE, is_one)


SHAPES: Final = (
    _token("a token of the Hub", "hf_,api_org_", rb"(?:hf|api_org)_(?:oauth_|jwt_)?[A-Za-z0-9]{30,512}"),
    _shape(
        "a private key",
        "-begin ,- begin ,-begin%20,-begin+,putty-user-key-file-,age-secret-key-,age-plugin-",
        rb"- ?BEGIN(?: |%20|\+)(?:[A-Z0-9]+(?: |%20|\+)){0,4}PRIVATE(?: |%20|\+)KEY(?:(?: |%20|\+)BLOCK)? ?-"
        rb"|PuTTY-User-Key-File-\d|AGE-(?:SECRET-KEY|PLUGIN)-(?:[A-Z0-9]+-){0,3}1[0-9A-Z]{10,512}",
        _is_token,
    ),
    _token(
        "a token of GitHub or GitLab",
        "gho_,ghp_,ghr_,ghs_,ghu_,github_pat_,glpat-,glptt-,gldt-,glrt-,glcbt-,glsoat-,glft-,glagent-",
        rb"gh[oprsu]_[A-Za-z0-9]{30,512}|github_pat_\w{40,512}|gl(?:pat|ptt|dt|rt|cbt|soat|ft|agent)-[\w.-]{20,512}",
    ),
    _token("a key of AWS", "akia,asia", rb"(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Za-z0-9])"),
    _token(
        "a key of Google", "aiza,ya29.,gocspx-", rb"AIza[\w-]{35}(?![\w-])|ya29\.[\w-]{30,512}|GOCSPX-[\w-]{20,512}"
    ),
    _token(
        "a token of Slack",
        "xox,xapp-,hooks.slack.com/services/",
        rb"xox[abceoprsd][.-](?=[\w-]{0,64}\d)[\w-]{10,512}|xapp-\d-[\w-]{10,512}|hooks\.slack\.com/services/[\w/]{20,512}",
    ),
    _token(
        "a key of an API",
        "sk-,csk-,gsk_,nvapi-,pplx-,xai-,tvly-,r8_,fw_,tgp_v,lsv2_,dop_v1_,dapi,sg.,sk_live_,rk_live_,whsec_,ntn_,"
        "lin_api_",
        rb"(?:sk-(?:ant|proj|svcacct|admin|or|None|lf|litellm)|nvapi|xai|pplx|tvly)"
        rb"-(?=(?:\w{0,64}-){0,8}(?=\w{0,64}\d)\w{16})[\w-]{20,512}|c?sk-[A-Za-z0-9]{32,512}|gsk_[A-Za-z0-9]{20,512}"
        rb"|(?:r8|fw)_[A-Za-z0-9]{24,512}|tgp_v\d_[\w-]{20,512}|lsv2_(?:pt|sk)_\w{20,512}|dop_v1_[a-f0-9]{32,512}"
        rb"|dapi[a-f0-9]{32}(?![A-Za-z0-9])|SG\.[\w-]{16,32}\.[\w-]{32,64}|[rs]k_live_[A-Za-z0-9]{20,512}"
        rb"|whsec_[A-Za-z0-9+/]{24,512}|ntn_[A-Za-z0-9]{36,512}|lin_api_[A-Za-z0-9]{32,512}",
    ),
    _token(
        "a token of a registry",
        "npm_,pypi-age,dckr_pat_,dckr_oat_",
        rb"npm_[A-Za-z0-9]{36}|pypi-AgE[\w-]{50,512}|dckr_[po]at_[\w-]{20,512}",
    ),
    _token(
        "a token of a login", "eyj", rb"eyJ[\w-]{10,512}\.eyJ[\w-]{10,512}\.[\w-]{10,512}|eyJhcGlfYWRkcmVz[\w-]{20,512}"
    ),
    _shape(
        "an address with a password",
        "://",
        rb"://(?:[\w.%+-]{1,64}:(?P<value>[\w.%~!$&*+=-]{3,128})|(?P<alone>[\da-f]{40}))@[\w.-]",
        lambda hit: hit["value"] is None or _is_given(hit),
    ),
    _shape("a key of Azure", "accountkey,sharedaccesskey", rb"\w{9,15}" + IS + rb"[A-Za-z0-9+/]{40,512}", _is_token),
    _shape("a key of Azure", "sig=", rb"(?<![A-Za-z])sig=[A-Za-z0-9+/]{0,64}%?[A-Za-z0-9%+/]{40,512}", _is_token),
    _shape(
        "a password or a key",
        "bearer,password,-token,-key,-secret",
        rb"(?:bearer|password|-token|-key|-secret)" + SPACE + rb"{1,8}" + VALUE,
        _is_random,
    ),
    _shape(
        "a token of a login",
        "authorization",
        rb"authorization" + IS + rb"[\"'`\\]{0,8}(?:bearer|token|basic|apikey|key)?" + SPACE + rb"{1,8}" + VALUE,
        _is_key,
    ),
    _shape(
        "a token of a login",
        "basic ,auth",
        rb"(?:basic |auth" + IS + QUOTE + rb")(?P<value>[A-Za-z0-9+/]{8,512}={0,2})",
        _is_login,
    ),
    _shape("a private key", 'd",d\\', rb"d" + IS + QUOTE + rb"[\w-]{43,90}" + SOME_QUOTE, _is_token),
    _shape(
        "a key of an API",
        "username",
        rb"username" + IS + QUOTE + rb"[\w.-]{1,64}" + NEXT + b"key" + IS + QUOTE + rb"[\da-f]{32}\b",
        _is_token,
    ),
    _shape(
        "a password",
        "machine",
        rb"machine\s{1,8}[\w.:-]{1,128}\s{1,8}login\s{1,8}\S{1,128}\s{1,8}password\s{1,8}(?P<value>\S{4,512})",
        _is_given,
    ),
    _named("a password or a key", "passw,passphrase", rb"(?:passw(?:or)?d|passphrase)s?(?:_?\d)?", _is_password),
    _named(
        "a password or a key",
        "apikey,api_key,api-key,secret,access_key,access-key,accesskey,private_key,privatekey,signing_key,encryption_key,"
        "auth_token,authtoken,access_token,access-token,refresh_token,hf_token,hub_token,bot_token",
        rb"[a-z_-]{4,40}",
        _is_key,
    ),
    _named("a password or a key", "token,_key", rb"(?:token|_key)", _is_random),
)
LONGEST: Final = 1024  # bytes of the longest secret, which may span two blocks


def is_name_of_secret(name: str) -> bool:
    """Whether a file or a folder with this name contains a secret by the usual conventions for names."""
    words = [word for word in NO_WORD.split(CAMEL.sub(" ", name).lower()) if word]
    if not WORDS.isdisjoint(words) or not PAIRS.isdisjoint(map("/".join, pairwise(words))):
        return True
    if ENVIRONMENT.fullmatch(name) or not ENDINGS.isdisjoint(name.lower().rstrip("~").split(".")[1:]):
        return True
    subject = [word for word in words if word not in NOT_ITS_SUBJECT and not word.isdigit()]
    return bool(subject) and subject[-1] in TOKEN


@dataclass
class SecretFinder:
    """Looks for secrets in the content of a file, which it receives block by block."""

    found: str | None = None
    """The kind of the first secret found, as a noun."""
    line: int = 1
    """The line of that secret, counted from 1."""
    _rest: bytes = b""

    def look(self, block: bytes) -> None:
        """Search the next block; zero bytes are skipped, so that UTF-16 is searched as well."""
        if self.found is not None:
            return
        text = self._rest + block.replace(b"\0", b"")
        for at, kind in _secrets(text):
            self.found, self.line = kind, self.line + text.count(b"\n", 0, at)
            return
        self._rest = text[-LONGEST:]
        self.line += text.count(b"\n", 0, len(text) - len(self._rest))


def _secrets(text: bytes) -> Iterator[tuple[int, str]]:
    small = text.lower()
    for shape in SHAPES:
        for mark in shape.marks:
            at = small.find(mark)
            while at >= 0:
                hit = shape.pattern.match(text, at)
                if hit is not None and shape.is_one(hit):
                    yield at, shape.kind
                at = small.find(mark, at + 1)
