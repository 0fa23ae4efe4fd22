"""Secrets are seen in every spelling of a text, and what only looks like one stops nothing."""

from __future__ import annotations

import html
import json
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from places import CHECKOUT

from hf_xlmr.conversion import convert, to_sentence_transformers
from hf_xlmr.publishing.secret_files import SHAPES, SecretFinder

MIXED = "aB3dE5fG7h" * 8
HEX = "0123456789abcdef" * 4
HUB = "hf_" + "aBcDeFgHiJ" * 3 + "kLmN"
LOGIN = b64encode(b"somebody:hunter2").decode()

TOKENS = {
    "Hub": HUB,
    "Hub, letters in their order": "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH",
    "GitHub": f"ghp_{MIXED[:36]}",
    "GitHub, fine-grained": f"github_pat_{MIXED[:22]}_{MIXED[:59]}",
    "GitLab": f"glpat-{MIXED[:20]}",
    "OpenAI": f"sk-{MIXED[:48]}",
    "OpenAI, of a project": f"sk-proj-{MIXED[:20]}-{MIXED[:30]}_{MIXED[:9]}",
    "Anthropic": f"sk-ant-api03-{MIXED[:40]}-{MIXED[:40]}",
    "Groq": f"gsk_{MIXED[:52]}",
    "NVIDIA": f"nvapi-{MIXED[:30]}-{MIXED[:33]}",
    "Google": f"AIza{MIXED[:35]}",
    "AWS": "AKIA" + "ABCD2345EFGH67IJ",
    "Slack": f"xoxb-{1234567890}-{MIXED[:24]}",
    "npm": f"npm_{MIXED[:36]}",
    "a login": f"eyJ{MIXED[:20]}.eyJ{MIXED[:40]}.{MIXED[:40]}",
}
ASSIGNED = {
    "bearer": f"Authorization: Bearer {MIXED[:24]}",
    "a header of GitHub": f"Authorization: token {HEX[:40]}",
    "a header of a login": f"Authorization: Basic {LOGIN}",
    "W&B in a netrc": f"machine api.wandb.ai\n  login user\n  password {HEX[:40]}",
    "a netrc": "machine host.org login me password hunter",
    "W&B": f"WANDB_API_KEY={HEX[:40]}",
    "an option": f"hf-xlmr --token {MIXED[:30]}",
    "a key of AWS": f"aws_secret_access_key = {'aB3/' * 10}",
    "Azure": f"DefaultEndpointsProtocol=https;AccountName=a;AccountKey={'aB3/' * 21}aB==;EndpointSuffix=core",
    "the environment": f'os.environ["SOME_TOKEN"] = "{MIXED[:30]}"',
    "a password of letters": 'password = "correcthorsebattery"',
    "a password of letters, bare": "DB_PASSWORD=CorrectHorseBatteryStaple",
    "a password": "password: hunter2hunter2",
    "an element": "<password>hunter2hunter2</password>",
    "an address": "https://me:pa55word@host.org/x",
    "an address with a token": f"https://{HEX[:40]}@github.com/x",
    "Docker": json.dumps({"auths": {"ghcr.io": {"auth": LOGIN}}}),
    "Kaggle": json.dumps({"username": "me", "key": HEX[:32]}),
}
KEYS = {
    name: f"{begin}\nb3BlbnNzaC1rZXk\n"
    for name, begin in {
        "RSA": "-----BEGIN RSA PRIVATE KEY-----",
        "PKCS 8": "-----BEGIN PRIVATE KEY-----",
        "PKCS 8 with a password": "-----BEGIN ENCRYPTED PRIVATE KEY-----",
        "OpenSSH": "-----BEGIN OPENSSH PRIVATE KEY-----",
        "SSH2": "---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----",
        "PGP": "-----BEGIN PGP PRIVATE KEY BLOCK-----",
        "PuTTY": "PuTTY-User-Key-File-3: ssh-ed25519",
        "age": "AGE-SECRET-KEY-1" + "QPZRY9X8GF2TVDW0" * 3,
    }.items()
}
SPELLINGS: dict[str, Callable[[str], str | bytes]] = {
    "as it is": str,
    "after a word": lambda text: f"MY_{text}",
    "JSON": lambda text: json.dumps({"source": ["x\n", f"a\n{text}\n"]}),
    "JSON in JSON": lambda text: json.dumps(json.dumps(f"a\n{text}\n")),
    "YAML": lambda text: yaml.safe_dump({"a": f"a\n{text}"}),
    "YAML on one line": lambda text: yaml.safe_dump({"a": f"\t{text}"}, default_style='"', width=10_000),
    "HTML": lambda text: f"<pre>{html.escape(text)}</pre>",
    "Python": lambda text: repr(f"a\n{text}"),
    "UTF-16": lambda text: f"a\n{text}".encode("utf-16"),
    "behind a megabyte": lambda text: "x y z\n" * 200_000 + text,
}


def found(text: str | bytes, *, block: int = 1 << 20) -> str | None:
    data, finder = text if isinstance(text, bytes) else text.encode(), SecretFinder()
    for start in range(0, len(data), block):
        finder.look(data[start : start + block])
    return finder.found


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_secrets_are_seen_in_every_spelling_of_a_text(spelling: str) -> None:
    secrets = TOKENS | ASSIGNED | KEYS
    missed = [name for name, secret in secrets.items() if found(SPELLINGS[spelling](secret)) is None]
    assert missed == []


@pytest.mark.parametrize(
    "before", [r"\n", r"\t", r"\\n", r"\u0022", r"\x22", r"\012", "%3D", "%20", "-", "_", "\x1b[31m", r"\u001b[0m"]
)
def test_tokens_begin_after_whatever_stands_for_another_character(before: str) -> None:
    assert [name for name, token in TOKENS.items() if found(f"a{before}{token}") is None] == []


HARMLESS = (
    f"hf_{'x' * 34}",
    "hf_XLMRobertaForSequenceClassification",
    "hf_tokenizer, huggingface_hub, sk-learn, sk-or-hr-language-pairs-2020, nvapi-client-2-for-python",
    'login(token="hf_...")',
    "Authorization: Bearer $HF_TOKEN",
    "Authorization: Bearer <token>",
    "Authorization: Bearer YOUR_ACCESS_TOKEN_2",
    "The bearer authentication-scheme",
    'client = OpenAI(api_key="EMPTY")',
    'api_key = os.environ["OPENAI_API_KEY_2"]',
    "password = getpass.getpass()",
    "password: SecretStr",
    "password: str = Field(...)",
    '"password": "your-password-1"',
    "secret: /run/secrets/db_password_1",
    "api_key=openai_client_v2_key",
    "self.embed_tokens = Gemma3nTextScaledWordEmbedding(1)",
    "self.image_to_token = Sam3TrackerAttentionBlocks(config)",
    "https://user:password@host.org",
    "AKIAIOSFODNN7EXAMPLE",
    '["▁password", -11.234567890123456], "▁secret": -10.123456789012345, "▁token": 12345',
    "The password must have 8 characters; tokens: 262144000000000; num_tokens: 4096",
    json.dumps({"sentencepiece.bpe.model": HEX, "revision": HEX[:40], "tokens": HEX, "key": HEX[:32]}),
    f'AutoTokenizer.from_pretrained("a/b", revision="{HEX[:40]}")',
)


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_like_a_secret_stops_nothing(text: str) -> None:
    assert [name for name, spelled in SPELLINGS.items() if found(spelled(text)) is not None] == []


def test_what_hf_xlmr_writes_and_its_own_pages_hold_no_secret(tmp_path: Path) -> None:
    convert("demo", tmp_path / "model", verify=False)
    to_sentence_transformers(tmp_path / "model", tmp_path / "sentences")
    pages = [path for ending in ("*.md", "*.ipynb") for path in (CHECKOUT / "notebooks").rglob(ending)]
    files = [*CHECKOUT.glob("*.md"), *pages, *(path for path in tmp_path.rglob("*") if path.is_file())]
    assert len(files) > 30
    assert {path.name: stopped for path in files if (stopped := found(path.read_bytes()))} == {}


def test_a_secret_that_two_blocks_share_is_seen_once_with_its_line() -> None:
    for size in range(1, 60):
        finder, data = SecretFinder(), f"a\nb\n{HUB}\n".encode()
        for start in range(0, len(data), size):
            finder.look(data[start : start + size])
        assert (finder.found, finder.line) == ("a token of the Hub", 3)


def test_every_mark_begins_in_small_letters() -> None:
    assert all(mark == mark.lower() for shape in SHAPES for mark in shape.marks)
