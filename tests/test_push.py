"""A folder goes to the Hub whole or not at all, whatever breaks; a Hub on this machine sees what is sent."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from multiprocessing.connection import wait
from pathlib import Path
from traceback import walk_stack
from typing import Any

import huggingface_hub
import in_process
import pytest
import torch
import transformers
from local_hub import FOREIGN, GOOD_TOKEN, READ_TOKEN, Fault, LocalHub, running_hub
from patience import PATIENCE
from warm_processes import PROGRAM, Running, begun
from warm_processes import run as run_warm

from hf_xlmr.cli.console import show_push_plan
from hf_xlmr.conversion import convert, to_sentence_transformers
from hf_xlmr.errors import HfXlmrError, InputError, IntegrityError
from hf_xlmr.hub import hub_errors
from hf_xlmr.hub.hub_errors import HubRefusal, told_by_the_hub
from hf_xlmr.model.opened_folder import OpenedFolder
from hf_xlmr.progress import SILENT, ProgressTask
from hf_xlmr.publishing.folder_to_push import FolderToPush, look_at
from hf_xlmr.publishing.pushing import PushReport, Standing, plan_push, plan_upload, push

REPO = "me/model"
WITH_LICENCE = {"languages": ["de", "no"], "licence": "mit"}


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A verified folder of five shards."""
    folder = tmp_path_factory.mktemp("converted") / "model"
    return convert("demo", folder, max_shard_size="400KB", **WITH_LICENCE).output


@pytest.fixture
def folder(converted: Path, tmp_path: Path) -> Path:
    return shutil.copytree(converted, tmp_path / "model")


@pytest.fixture(scope="module")
def looked(converted: Path) -> FolderToPush:
    """The first step of a push, whatever the Hub answers to the others."""
    return look_at(converted)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A Hub, and huggingface_hub as HF_ENDPOINT and HF_HUB_DISABLE_XET would make it; it does not wait to try again."""
    with running_hub() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", os.devnull)
        monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _seconds: None)
        yield hub
        huggingface_hub.utils.close_session()


def api(hub: LocalHub, token: str = GOOD_TOKEN) -> huggingface_hub.HfApi:
    return huggingface_hub.HfApi(endpoint=hub.endpoint, token=token)


def pushed(
    folder: Path | FolderToPush, hub: LocalHub, repo_id: str = REPO, *, token: str = GOOD_TOKEN, **options: Any
) -> PushReport:
    if isinstance(folder, FolderToPush):
        return push(plan_upload(folder, repo_id, api=api(hub, token), **options))
    return push(plan_push(folder, repo_id, api=api(hub, token), **options))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def environment(hub: LocalHub, home: Path, **more: str) -> dict[str, str]:
    ours = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": GOOD_TOKEN}
    return {**os.environ, **ours, **more}


def run(*arguments: str | Path, token: str = GOOD_TOKEN) -> subprocess.CompletedProcess[str]:
    """The program in this process, where the fixture `hub` has told huggingface_hub its endpoint."""
    return in_process.run("push", *arguments, HF_TOKEN=token)


def meanwhile(step: str, does: Callable[[], object]) -> Fault:
    """What happens once while the Hub is asked, which answers well."""
    return Fault(step, does=does, times=1, goes_well=True)


def commits(hub: LocalHub, repo_id: str = REPO) -> int:
    """Beside the one with which a repository begins."""
    return len(hub.repositories[repo_id].commits) - 1


# ---- a push ----------------------------------------------------------------------------------------------------------


def test_a_folder_is_published_in_one_commit_after_its_weights(folder: Path, hub: LocalHub) -> None:
    report = pushed(folder, hub)
    assert hub.files(REPO) == contents(folder) and commits(hub) == 1
    assert report.address == f"{hub.endpoint}/{REPO}" and report.commit == hub.repositories[REPO].branches["main"]
    assert report.standing is Standing.verified and report.is_new and not report.findings and not report.notes
    assert report.sent == {name: len(content) for name, content in contents(folder).items()}
    writes = [request.path for request in hub.writes]
    assert [path for path in writes if "/commit/" in path] == writes[-1:]
    large = {content for name, content in contents(folder).items() if name.endswith(("safetensors", "model", "r.json"))}
    assert hub.uploaded == sum(map(len, large))  # the two copies of the SentencePiece model went once


TEXTS = ["The train leaves.", "Der Zug"]
LOAD = f"""
import sys, torch, transformers
model = transformers.AutoModelForMaskedLM.from_pretrained(sys.argv[1], cache_dir=sys.argv[3]).eval()
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1], cache_dir=sys.argv[3])
with torch.no_grad():
    torch.save(model(**tokenizer({TEXTS}, padding=True, return_tensors="pt")).logits, sys.argv[2])
"""


def test_what_was_published_is_loaded_by_plain_transformers(
    looked: FolderToPush, hub: LocalHub, tmp_path: Path
) -> None:
    pushed(looked, hub)
    command = [sys.executable, "-c", LOAD, REPO, tmp_path / "logits.pt", tmp_path / "cache"]
    done = run_warm(command, env=environment(hub, tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    model = transformers.AutoModelForMaskedLM.from_pretrained(looked.path).eval()
    batch = transformers.AutoTokenizer.from_pretrained(looked.path)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(torch.load(tmp_path / "logits.pt"), model(**batch).logits)


def test_a_dry_run_shows_all_and_writes_nothing(looked: FolderToPush, hub: LocalHub, tmp_path: Path) -> None:
    done = run(looked.path, REPO, "--dry-run")
    assert done.returncode == 0 and not done.stderr
    assert not hub.writes and not hub.repositories
    assert all(name in done.stdout for name in contents(looked.path)) and f"{hub.endpoint}/{REPO}" in done.stdout
    assert GOOD_TOKEN not in done.stdout


@pytest.fixture
def opens(folder: Path) -> Iterator[Counter[str]]:
    """How often each file of the folder is opened, but for what Transformers opens itself."""
    found: Counter[str] = Counter()
    active = True

    def noted(event: str, arguments: tuple[Any, ...]) -> None:
        if active and event == "open" and str(arguments[0]).startswith(f"{folder}/"):
            callers = {str(frame.f_globals.get("__name__")).partition(".")[0] for frame, _line in walk_stack(None)}
            found[str(arguments[0]).removeprefix(f"{folder}/")] += "transformers" not in callers

    sys.addaudithook(noted)  # it stays for the life of the process
    yield found
    active = False


def test_a_dry_run_opens_the_folder_once(
    folder: Path, hub: LocalHub, opens: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    blocks = OpenedFolder.blocks
    monkeypatch.setattr(OpenedFolder, "blocks", lambda opened, name: [read.append(name), blocks(opened, name)][1])
    plan = plan_push(folder, REPO, api=api(hub))
    once = ("README.md", "config.json", "fairseq/conversion.json")
    assert {name: opens[name] for name in once} == dict.fromkeys(once, 1)
    assert sorted(read) == sorted(contents(folder)) == sorted(plan.report.sent)  # the content of each, weights too


def test_the_program_ends_with_the_address(folder: Path, hub: LocalHub, tmp_path: Path) -> None:
    """It reads where the Hub is out of variables."""
    command = [PROGRAM, "push", folder, REPO, "--json"]
    home = environment(hub, tmp_path / "home")
    done = run_warm(command, env=home)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["address"], report["commit"]) == (f"{hub.endpoint}/{REPO}", hub.repositories[REPO].branches["main"])
    again = run(folder, "model")  # a name alone is one's own
    assert again.stdout.splitlines()[-1] == f"nothing to send, all is there: {hub.endpoint}/{REPO}"


def test_nothing_is_sent_twice(looked: FolderToPush, hub: LocalHub) -> None:
    first = pushed(looked, hub)
    hub.forget()
    again = pushed(looked, hub)
    assert not hub.writes and commits(hub) == 1
    assert again.commit == first.commit and not again.sent and again.unchanged == first.sent


def test_what_changed_alone_is_sent(folder: Path, hub: LocalHub) -> None:
    pushed(folder, hub)
    hub.forget()
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\nMore.\n")
    report = pushed(folder, hub)
    assert list(report.sent) == ["README.md"] and not hub.uploaded
    assert hub.files(REPO) == contents(folder) and commits(hub) == 2


def test_a_file_of_the_same_size_may_be_another(looked: FolderToPush, hub: LocalHub) -> None:
    hub.create(REPO, files={name: bytes(len(content)) for name, content in contents(looked.path).items()})
    assert set(pushed(looked, hub).sent) == contents(looked.path).keys()
    assert hub.files(REPO) == contents(looked.path)


def test_weights_of_an_earlier_layout_go_in_the_same_commit(
    looked: FolderToPush, hub: LocalHub, tmp_path: Path
) -> None:
    whole = convert("demo", tmp_path / "whole", **WITH_LICENCE).output
    stale = {name for name in contents(looked.path) if name.startswith("model")}
    pushed(looked, hub)
    shown = hub.repositories[REPO].commits[hub.repositories[REPO].branches["main"]]
    shown["notes.txt"] = shown["config.json"]
    report = pushed(whole, hub)
    assert set(report.deleted) == stale and commits(hub) == 2
    assert (hub.files(REPO) or {}).keys() == contents(whole).keys() | {"notes.txt"}  # what is no weight stays


def test_a_branch_is_made_and_main_left_alone(looked: FolderToPush, hub: LocalHub) -> None:
    hub.create(REPO, files={"README.md": b"# Old\n"})
    report = pushed(looked, hub, branch="v2")
    assert report.address == f"{hub.endpoint}/{REPO}/tree/v2"
    assert hub.files(REPO) == {"README.md": b"# Old\n"} and hub.files(REPO, "v2") == contents(looked.path)
    pushed(looked, hub)
    same = pushed(looked, hub, branch="v3")  # as main is
    assert hub.files(REPO, "v3") == contents(looked.path) and not same.sent and commits(hub) == 3 - 1


def test_a_pull_request_leaves_main_alone_and_is_made_once(looked: FolderToPush, hub: LocalHub) -> None:
    hub.create(REPO, files={"README.md": b"# Old\n"})
    report = pushed(looked, hub, create_pr=True)
    assert report.address == f"{hub.endpoint}/{REPO}/discussions/1"
    assert hub.files(REPO) == {"README.md": b"# Old\n"} and hub.files(REPO, "refs/pr/1") == contents(looked.path)
    hub.forget()
    assert pushed(looked, hub, create_pr=True).address == report.address
    assert not hub.writes and list(hub.repositories[REPO].titles) == [1]


def test_who_may_not_write_may_propose(looked: FolderToPush, hub: LocalHub) -> None:
    hub.create(REPO)
    with pytest.raises(HubRefusal, match=r"may not write to me/model.*create_pr=True"):
        pushed(looked, hub, token=FOREIGN)
    assert hub.files(REPO) == {} and not hub.uploaded
    assert pushed(looked, hub, token=FOREIGN, create_pr=True).address.endswith("/discussions/1")


def test_nothing_can_be_proposed_to_what_is_not_there(looked: FolderToPush, hub: LocalHub) -> None:
    with pytest.raises(InputError, match="there is no repository of that name that the token may see: leave it out"):
        pushed(looked, hub, create_pr=True)
    hub.create(REPO)
    with pytest.raises(InputError, match="no branch v2"):
        pushed(looked, hub, create_pr=True, branch="v2")
    assert not hub.writes


def test_private_is_private(looked: FolderToPush, hub: LocalHub) -> None:
    assert pushed(looked, hub, private=True).is_private and hub.repositories[REPO].private
    hub.create("me/public")
    with pytest.raises(InputError, match="me/public exists and is public"):
        pushed(looked, hub, "me/public", private=True)
    assert hub.files("me/public") == {}


def test_multipart_transfers(looked: FolderToPush, hub: LocalHub) -> None:
    hub.part_bytes = 100_000
    pushed(looked, hub)
    assert hub.files(REPO) == contents(looked.path) and max(request.received for request in hub.requests) <= 100_000


# ---- faults ----------------------------------------------------------------------------------------------------------

STEPS = {
    "account": r"GET /api/whoami-v2",
    "repository": r"GET /api/models/me/model",
    "tree": r"GET /api/models/me/model/tree/.*",
    "card": r"POST /api/validate-yaml",
    "creation": r"POST /api/repos/create",
    "branch": r"POST /api/models/me/model/branch/v2",
    "modes": r"POST /api/models/me/model/preupload/v2",
    "batch": r"POST /me/model\.git/info/lfs/objects/batch",
    "object": r"PUT /objects/.*",
    "check": r"POST /me/model\.git/info/lfs/verify",
    "commit": r"POST /api/models/me/model/commit/v2",
}
XET_TOKEN = r"GET /api/models/me/model/xet-write-token/main"
ANSWERS: dict[str, tuple[dict[str, Any], str]] = {
    "dropped": ({}, "check your network"),
    "401": ({"status": 401}, "log in with"),
    "403": ({"status": 403, "message": "not yours"}, "may not write.*: not yours"),
    "413": ({"status": 413}, "max_shard_size"),
    "429": ({"status": 429, "headers": {"Retry-After": "7"}}, "try again in 7 seconds"),
    "500": ({"status": 500}, "try again later"),
}


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("step", STEPS)
def test_after_any_fault_the_old_is_seen_and_the_next_run_ends_it(
    step: str, answer: str, looked: FolderToPush, hub: LocalHub
) -> None:
    (fault, sentence), is_new = ANSWERS[answer], step == "creation"
    if not is_new:
        hub.create(REPO, files={"README.md": b"# Old\n"})
    old = hub.files(REPO)
    hub.faults = [Fault(STEPS[step], **fault)]
    with pytest.raises(HubRefusal, match=sentence) as refused:
        pushed(looked, hub, branch="v2")
    assert "\n" not in str(refused.value) and refused.value.status == fault.get("status")
    assert hub.files(REPO) == old and hub.files(REPO, "v2") in (None, old)
    sent = sum(len(content) for content in hub.objects.values())
    hub.forget()
    pushed(looked, hub, branch="v2")
    assert hub.files(REPO, "v2") == contents(looked.path) and (is_new or hub.files(REPO) == old)
    assert hub.uploaded == sum(len(content) for content in hub.objects.values()) - sent  # what was there, stayed


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ({"status": 402}, "the plan of me does not cover this"),
        ({"status": 409}, "somebody is changing it now"),
        ({"status": 412}, "somebody has changed me/model since it was checked"),
        ({"status": 418, "message": "I am a teapot"}, r"the Hub refuses this .status 418: I am a teapot"),
        ({"status": 429, "headers": {"ratelimit": '"api";r=0;t=55'}}, "try again in 55 seconds"),
        ({"status": 429}, "try again in some minutes"),
    ],
)
def test_every_answer_says_what_to_do(
    fault: dict[str, Any], sentence: str, looked: FolderToPush, hub: LocalHub
) -> None:
    hub.faults = [Fault(r"POST /api/models/me/model/commit/main", **fault)]
    with pytest.raises(HubRefusal, match=sentence) as refused:
        pushed(looked, hub)
    assert refused.value.status == fault["status"] and hub.files(REPO) == {}


@pytest.mark.parametrize("answer", ["401", "403"])
def test_what_the_hub_refuses_to_xet_is_told_alike(
    answer: str, looked: FolderToPush, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answers come out of hf_xet, which has errors of its own."""
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
    fault, sentence = ANSWERS[answer]
    hub.faults = [Fault(XET_TOKEN, **fault)]
    with pytest.raises(HubRefusal, match=sentence.partition(".*")[0]) as refused:
        pushed(looked, hub)
    assert refused.value.status == int(answer) and hub.files(REPO) == {} and not hub.uploaded


def test_a_fault_that_passes_is_ridden_out(looked: FolderToPush, hub: LocalHub) -> None:
    hub.faults = [Fault(STEPS["object"], times=2), Fault(STEPS["batch"], status=503, times=1, after=1)]
    pushed(looked, hub)
    assert hub.files(REPO) == contents(looked.path)


def test_an_upload_that_breaks_in_the_middle_goes_on_where_it_was(looked: FolderToPush, hub: LocalHub) -> None:
    hub.faults = [Fault(STEPS["object"], after=2, received=100_000)]
    with pytest.raises(HubRefusal, match="files that were sent are not sent again"):
        pushed(looked, hub)
    assert hub.files(REPO) == {} and len(hub.objects) == 2
    held = set(hub.objects)
    hub.forget()
    pushed(looked, hub)
    assert hub.files(REPO) == contents(looked.path)
    assert hub.uploaded == sum(len(content) for oid, content in hub.objects.items() if oid not in held)


@pytest.mark.parametrize("status", [None, 500, 504])
@pytest.mark.parametrize("create_pr", [False, True])
def test_a_commit_whose_answer_is_lost_is_found(
    status: int | None, create_pr: bool, looked: FolderToPush, hub: LocalHub
) -> None:
    hub.create(REPO)
    hub.faults = [Fault(r"POST .*/commit/main", status=status, is_after_the_deed=True)]
    report = pushed(looked, hub, create_pr=create_pr)
    assert report.address == f"{hub.endpoint}/{REPO}" + "/discussions/1" * create_pr
    assert hub.files(REPO, "refs/pr/1" if create_pr else "main") == contents(looked.path) and commits(hub) == 1


def test_what_nobody_can_tell_is_told_so(looked: FolderToPush, hub: LocalHub) -> None:
    """The network goes with the answer to the commit."""
    hub.faults = [Fault(r"POST .*/commit/main", is_after_the_deed=True)]
    plan = plan_upload(looked, REPO, api=api(hub))
    hub.faults.append(Fault(r"GET .*"))
    with pytest.raises(HubRefusal, match="it is not known whether me/model shows the model"):
        push(plan)
    hub.forget()
    assert hub.files(REPO) == contents(looked.path) and not pushed(looked, hub).sent and not hub.writes


def test_a_look_afterwards_that_fails_says_that_all_was_sent(looked: FolderToPush, hub: LocalHub) -> None:
    hub.create(REPO)
    hub.faults = [Fault(STEPS["tree"], status=500, after=1)]
    with pytest.raises(HubRefusal, match="all was sent: run the same command to see whether the Hub shows it"):
        pushed(looked, hub)
    hub.forget()
    assert hub.files(REPO) == contents(looked.path) and not pushed(looked, hub).sent


def test_a_commit_of_somebody_else_in_between_is_not_run_over(looked: FolderToPush, hub: LocalHub) -> None:
    repository = hub.create(REPO)
    plan = plan_upload(looked, REPO, api=api(hub))
    repository.commit("main", dict(repository.commits[repository.branches["main"]]))
    with pytest.raises(HubRefusal, match="somebody has changed me/model since"):
        push(plan)
    assert hub.files(REPO) == {}


def test_what_the_hub_keeps_out_is_no_success(looked: FolderToPush, hub: LocalHub) -> None:
    """A .gitignore there drops files without a word."""
    before = {".gitignore": b"config.json\n", "README.md": b"# Old\n"}
    hub.create(REPO, files=before)
    with pytest.raises(HubRefusal, match=r"\.gitignore of me/model names config\.json"):
        pushed(looked, hub)
    assert hub.files(REPO) == before


def test_weights_of_others_stay_in_the_repository(looked: FolderToPush, hub: LocalHub) -> None:
    others = ("other/model.safetensors", "model.fp16.safetensors", "model_ema.safetensors", "models/x.safetensors")
    hub.create(REPO, files=dict.fromkeys(others, b"theirs"))
    plan = plan_upload(looked, REPO, api=api(hub))
    assert not plan.report.deleted
    push(plan)
    assert set(others) <= hub.files(REPO).keys()


def test_what_stays_in_the_repository_is_named(looked: FolderToPush, hub: LocalHub, tmp_path: Path) -> None:
    theirs = {"adapter_config.json": b"{}", "modules.json": b"[]", "pytorch_model.bin": b"x", "eval.txt": b"1"}
    hub.create(REPO, files={**theirs, ".gitattributes": b"", "README.md": b"# Old\n"})
    report = pushed(looked, hub)
    assert set(report.stays) == theirs.keys()
    for name in ("adapter_config.json", "modules.json", "pytorch_model.bin"):
        assert [note for note in report.notes if note.startswith(f"{name} stays")], name
    shown = run(looked.path, REPO, "--dry-run").stdout
    assert "stays there" in shown and "eval.txt" in shown
    assert theirs.keys() <= (hub.files(REPO) or {}).keys()


def test_a_pull_request_of_another_title_or_content_is_not_taken_for_ours(looked: FolderToPush, hub: LocalHub) -> None:
    hub.create(REPO, files={"README.md": b"# Old\n"})
    first = pushed(looked, hub, create_pr=True)
    repository = hub.repositories[REPO]
    title = repository.titles[1]
    repository.titles[1] = "Push another"
    second = pushed(looked, hub, create_pr=True)
    repository.titles[1] = title
    repository.commit("refs/pr/1", repository.commits[repository.branches["main"]])
    repository.titles[2] = "Push another"
    third = pushed(looked, hub, create_pr=True)
    addresses = [f"{hub.endpoint}/{REPO}/discussions/{number}" for number in (1, 2, 3)]
    assert [first.address, second.address, third.address] == addresses


def test_names_that_no_terminal_shows_and_links_to_folders_are_left_out(folder: Path, hub: LocalHub) -> None:
    (folder / "two\nlines.txt").write_text("odd", encoding="utf-8")
    (folder / "elsewhere").symlink_to(folder.parent, target_is_directory=True)
    report = pushed(folder, hub)
    assert report.left_out == {
        "elsewhere/": "a link to a folder",
        "two\nlines.txt": "a name that the Hub does not accept",
    }
    assert set(hub.files(REPO) or ()) == set(report.sent)


def test_a_path_that_is_no_line_of_text_breaks_no_table(
    folder: Path, hub: LocalHub, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = folder.rename(folder.parent / "two\nlines")
    json_changed(odd / "tokenizer_config.json", model_max_length=10**30)
    show_push_plan(plan_push(odd, REPO, api=api(hub)).report)
    shown = "".join(capsys.readouterr().out.split())
    assert f"{odd.parent}/two\\nlines->me/model" in shown and "two\\nlinessayshow" in shown
    with pytest.raises(InputError, match="cannot open a path that is not UTF-8: rename it"):
        plan_push(odd.rename(folder.parent / os.fsdecode(b"not\xff")), REPO, api=api(hub))


def test_a_pull_request_that_is_only_planned_has_no_number(looked: FolderToPush, hub: LocalHub, tmp_path: Path) -> None:
    hub.create(REPO)
    shown = " ".join(run(looked.path, REPO, "--dry-run", "--create-pr").stdout.split())
    assert f"would be among {hub.endpoint}/{REPO}/discussions" in shown
    assert "as a pull request" in shown and not hub.writes


def test_secrets_and_leavings_stay_at_home(folder: Path, hub: LocalHub) -> None:
    names = {"id_rsa", "HF_TOKEN", "secrets.json", "optimizer.PT", "nohup.out", "wandb/log", "checkpoint-best/x"}
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("private", encoding="utf-8")
    plan = plan_push(folder, REPO, api=api(hub))
    assert not names & plan.report.sent.keys()
    assert {"id_rsa", "HF_TOKEN", "wandb/", "checkpoint-best/"} <= plan.report.left_out.keys()


@pytest.mark.parametrize("step", ["account", "tree", "card"])
def test_a_file_that_changes_while_the_folder_is_looked_at_is_not_published(
    step: str, folder: Path, hub: LocalHub
) -> None:
    """The Hub is asked between the look and the hashing: what was checked would not be what is sent."""
    hub.create(REPO)
    tokenizer = folder / "tokenizer_config.json"
    hub.faults = [meanwhile(STEPS[step], lambda: tokenizer.write_text(tokenizer.read_text() + "\n"))]
    with pytest.raises(InputError, match=r"tokenizer_config\.json was changed while it was looked at"):
        plan_push(folder, REPO, api=api(hub))
    assert hub.files(REPO) == {}


def test_a_link_that_leads_elsewhere_meanwhile_is_not_followed(folder: Path) -> None:
    for name in ("one.md", "two.md"):
        put(folder, name, f"# {name}\n")
    (folder / "LICENSE").symlink_to("one.md")

    class Meanwhile:
        def task(self, label: str, **_options: Any) -> AbstractContextManager[ProgressTask]:
            (folder / "LICENSE").unlink()
            (folder / "LICENSE").symlink_to("two.md")
            return SILENT.task(label)

    with pytest.raises(InputError, match="LICENSE was changed while it was looked at"):
        look_at(folder, progress=Meanwhile())


@pytest.mark.parametrize("step", ["modes", "object"])
def test_a_file_that_changes_while_others_are_sent_is_not_published(step: str, folder: Path, hub: LocalHub) -> None:
    """It is small, and would go with the commit, which comes last."""
    hub.create(REPO)
    card = folder / "README.md"
    hub.faults = [meanwhile(STEPS[step].replace("v2", "main"), lambda: card.write_text(card.read_text() + "\n"))]
    with pytest.raises(InputError, match=r"README\.md was changed while it was sent: nothing was published"):
        pushed(folder, hub)
    assert hub.files(REPO) == {}


def test_a_file_that_changes_meanwhile_is_not_published(folder: Path, hub: LocalHub) -> None:
    plan = plan_push(folder, REPO, api=api(hub))
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    with pytest.raises(InputError, match=r"config\.json was changed while it was sent"):
        push(plan)
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"No such file.*config\.json"):
        push(plan)
    assert not hub.repositories


PUSH = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
from hf_xlmr.cli.program import main
main()
"""


def pushing(folder: Path, environment: dict[str, str]) -> AbstractContextManager[Running]:
    """The program, while it pushes."""
    return begun([sys.executable, "-c", PUSH, "push", folder, REPO], env=environment)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_stopped_goes_on(
    number: signal.Signals, looked: FolderToPush, hub: LocalHub, tmp_path: Path
) -> None:
    hub.create(REPO, files={"README.md": b"# Old\n"})
    started = threading.Event()
    process: list[Running] = []

    def stop() -> None:
        started.wait()
        os.kill(process[0].pid, number)
        wait([process[0].sentinel])

    hub.faults = [Fault(STEPS["object"], after=2, does=stop)]
    with pushing(looked.path, environment(hub, tmp_path / "home")) as running:
        process.append(running)
        started.set()
        done = running.ended()
    assert hub.files(REPO) == {"README.md": b"# Old\n"}
    if number is signal.SIGINT:
        assert done.returncode == 130 and done.stderr.count("\n") == 1
        assert "run the same command to continue" in done.stderr
    else:
        assert done.returncode == -number
    held = set(hub.objects)
    hub.forget()
    pushed(looked, hub)
    assert hub.files(REPO) == contents(looked.path) and 2 <= len(held) < len(hub.objects)
    assert hub.uploaded == sum(len(content) for oid, content in hub.objects.items() if oid not in held)


STALLS = {"account": STEPS["account"], "object": STEPS["object"], "commit": r"POST .*/commit/main", "xet": XET_TOKEN}


@pytest.mark.parametrize("step", STALLS)
def test_ctrl_c_ends_the_program_while_the_hub_says_nothing(
    step: str, looked: FolderToPush, hub: LocalHub, tmp_path: Path
) -> None:
    """Compiled code such as hf_xet's, and threads of huggingface_hub, would wait for the Hub first."""
    hub.create(REPO, files={"README.md": b"# Old\n"})
    is_asked, is_over = threading.Event(), threading.Event()

    def stall() -> None:
        is_asked.set()
        is_over.wait()

    hub.faults = [Fault(STALLS[step], does=stall, after=3 if step == "object" else 0)]
    home = environment(hub, tmp_path / "home", HF_HUB_DISABLE_XET="0" if step == "xet" else "1")
    with pushing(looked.path, home) as running:
        try:
            assert is_asked.wait(PATIENCE)
            os.kill(running.pid, signal.SIGINT)
            done = running.ended(timeout=PATIENCE)
        finally:
            is_over.set()
    assert done.returncode == 130 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("hf-xlmr: interrupted: me/model has either its old content")
    assert hub.files(REPO) == {"README.md": b"# Old\n"}


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Ctrl-C is heard, also where these tests were started in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interrupts")
def test_an_interrupted_push_leaves_no_work_in_a_notebook(
    looked: FolderToPush, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """hf_xet would try for minutes more, in threads that Python does not see."""
    pytest.importorskip("hf_xet")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", False)
    plan, before = plan_upload(looked, REPO, api=api(hub)), set(threading.enumerate())
    hub.faults = [Fault(XET_TOKEN, does=lambda: signal.raise_signal(signal.SIGINT))]
    with pytest.raises(KeyboardInterrupt):
        push(plan)
    left = [thread for thread in threading.enumerate() if thread not in before and "run" in thread.name]
    for thread in left:
        thread.join(10)
    assert any("xet-write-token" in request.path for request in hub.requests)
    assert not any(thread.is_alive() for thread in left)  # none, where it was over before it was looked for
    hub.forget()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    pushed(looked, hub)
    assert hub.files(REPO) == contents(looked.path)


class Unreadable(io.BytesIO):
    """A file of our own, which huggingface_hub reads."""

    def read(self, *_size: int) -> bytes:  # type: ignore[override]
        raise ValueError("ours")


def hands_over_what_breaks(hub: LocalHub) -> None:
    hub.create(REPO)
    addition = huggingface_hub.CommitOperationAdd("model.safetensors", io.BytesIO(b"x"))
    addition.path_or_fileobj = Unreadable(b"x")
    api(hub).preupload_lfs_files(REPO, [addition])


def raises_from_another(_hub: LocalHub) -> None:
    raise RuntimeError("ours") from ValueError("ours too")


def asks_wrongly(hub: LocalHub) -> None:
    huggingface_hub.HfApi(endpoint=hub.endpoint, token=GOOD_TOKEN).repo_info("me/model", revisionn="x")  # type: ignore[call-arg]


OURS: dict[str, tuple[Callable[[LocalHub], object], type[Exception]]] = {
    "type": (lambda _hub: len(5), TypeError),  # type: ignore[arg-type]
    "key": (lambda _hub: {}["name"], KeyError),
    "value": (lambda _hub: int("x"), ValueError),
    "attribute": (lambda _hub: None.x, AttributeError),  # type: ignore[attr-defined]
    "json": (lambda _hub: json.loads("{"), ValueError),
    "pipe": (lambda _hub: os.write(3000, b""), OSError),
    "wrapped": (raises_from_another, RuntimeError),
    "memory": (lambda _hub: bytes(1 << 62), MemoryError),
    "callback": (hands_over_what_breaks, ValueError),
    "argument": (asks_wrongly, TypeError),
    "name": (lambda hub: api(hub).repo_info("a/b/c"), ValueError),
}


@pytest.mark.parametrize("name", OURS)
def test_a_mistake_of_our_own_is_not_reported_as_the_hubs(name: str, hub: LocalHub) -> None:
    does, error = OURS[name]
    with pytest.raises(error) as raised, told_by_the_hub(REPO):
        does(hub)
    assert not isinstance(raised.value, HubRefusal)


def test_a_token_that_no_header_can_hold_is_reported_as_a_token(looked: FolderToPush, hub: LocalHub) -> None:
    with pytest.raises(HubRefusal, match="the Hub rejects the token"):
        pushed(looked, hub, token="hf_ü")
    assert not hub.requests


@pytest.mark.parametrize(
    "answer", ["[]", "{}", "5", '{"name": "me", "orgs": [5]}', '{"name": "me", "auth": 5}', "<html>"]
)
def test_an_answer_that_is_not_the_hubs_is_reported_as_such(answer: str, looked: FolderToPush, hub: LocalHub) -> None:
    hub.faults = [Fault(STEPS["account"], status=200, body=answer.encode())]
    with pytest.raises(HubRefusal, match=r"the Hub's answer cannot be understood .*check HF_ENDPOINT"):
        plan_upload(looked, REPO, api=api(hub))
    hub.faults = [Fault(STEPS["card"], status=200, body=answer.encode())]
    if not answer.startswith("{"):
        with pytest.raises(HubRefusal, match="the Hub's answer cannot be understood"):
            plan_upload(looked, REPO, api=api(hub))


# ---- who pushes, and where -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("repo_id", "token", "sentence"),
    [
        (REPO, "hf_wrong", "the Hub rejects the token"),
        (REPO, READ_TOKEN, "the token may only read"),
        (
            "you/model",
            GOOD_TOKEN,
            "you/model does not exist, and this token can create repositories only of me and team",
        ),
    ],
)
def test_who_cannot_push_is_told_before_anything_is_read(
    repo_id: str, token: str, sentence: str, looked: FolderToPush, hub: LocalHub
) -> None:
    with pytest.raises(InputError) as refused:
        pushed(looked, hub, repo_id, token=token)
    assert str(refused.value).startswith(sentence) and "\n" not in str(refused.value)
    assert not hub.writes and not (token and token in str(refused.value))


def test_an_organization_is_ones_own(looked: FolderToPush, hub: LocalHub) -> None:
    assert pushed(looked, hub, "team/model").address == f"{hub.endpoint}/team/model"


@pytest.mark.parametrize("name", ["a/b/c", "me/.model", "me/model.git", "", "me/mo del"])
def test_a_name_that_cannot_be_is_refused_first(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a name on the Hub"):
        plan_push(tmp_path / "nothing", name)


@pytest.mark.parametrize(
    "branch", ["refs/pr/1", "", "a b", "v2?x", "a#b", "../main", "v2\n", "a..b", "HEAD", "v" * 300]
)
def test_a_branch_that_cannot_be_is_refused_first(branch: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="use a name such as"):
        plan_push(tmp_path / "nothing", REPO, branch=branch)


def test_without_a_token_the_program_says_how_to_get_one(looked: FolderToPush, hub: LocalHub, tmp_path: Path) -> None:
    done = run(looked.path, REPO, token="")
    assert done.returncode == 2 and not done.stdout and not hub.writes
    assert done.stderr.startswith("hf-xlmr: there is no token: log in with `hf auth login`, or set HF_TOKEN")
    assert done.stderr.count("\n") == 1


def test_a_dry_run_without_a_token_shows_the_folder_alone(folder: Path, hub: LocalHub, tmp_path: Path) -> None:
    (folder / "notes.bak").write_text("old", encoding="utf-8")
    (folder / "notes.txt").write_text("new", encoding="utf-8")
    done = run(folder, REPO, "--dry-run", token="")
    assert done.returncode == 3 and done.stderr.startswith("hf-xlmr: there is no token")
    assert (
        all(name in done.stdout for name in contents(folder))
        and "notes.bak: a copy from before a change" in done.stdout
    )
    assert "the Hub was not asked" in done.stdout and "to send" not in done.stdout
    assert "not asked for" in done.stdout and "notes.txt 3 B" in done.stdout and "--include NAME" in done.stdout
    assert "verified when converted, and unchanged since" in " ".join(done.stdout.split())
    as_json = run(folder, REPO, "--dry-run", "--json", token="")
    found = json.loads(as_json.stdout)
    assert (as_json.returncode, as_json.stderr, found["is_dry_run"]) == (3, done.stderr, True)
    assert found["files"].keys() | found["unknown"].keys() | found["left_out"].keys() == contents(folder).keys()


def test_a_dry_run_tells_a_refused_folder_from_a_hub_that_was_not_asked(folder: Path, hub: LocalHub) -> None:
    (folder / "README.md").unlink()
    assert run(folder, REPO, "--dry-run", token="").returncode == 2


@pytest.mark.parametrize("step", ["GET .*/whoami-v2", "POST .*/commit/main"])
def test_a_hub_that_hangs_is_given_up(
    step: str, looked: FolderToPush, hub: LocalHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_errors, "LONGEST_WAIT", (5.0, 0.5, 5.0, None))
    is_over = threading.Event()
    hub.faults.append(Fault(step, does=lambda: is_over.wait(PATIENCE)))
    with pytest.raises(HubRefusal, match="the Hub cannot be reached") as caught:
        pushed(looked, hub)
    is_over.set()
    assert caught.value.is_unanswered
    assert huggingface_hub.get_session().timeout.read is None  # as the user's own calls had it


def test_a_limit_of_waiting_that_the_user_set_stays(looked: FolderToPush, hub: LocalHub) -> None:
    seen = []
    huggingface_hub.get_session().timeout = 7
    hub.faults.append(meanwhile("GET .*/whoami-v2", lambda: seen.append(huggingface_hub.get_session().timeout.read)))
    pushed(looked, hub)
    assert [*seen, huggingface_hub.get_session().timeout.read] == [7, 7]


@pytest.mark.parametrize("command", [["push", "nowhere", REPO], ["convert", "demo", "out"]])
def test_an_endpoint_over_which_huggingface_hub_breaks_is_told(command: list[str], tmp_path: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": "http://["}
    done = subprocess.run(
        [PROGRAM, *command], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    told = "hf-xlmr: HF_ENDPOINT (http://[) is not an address: unset it, or set it to an address\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)


def test_without_a_network(looked: FolderToPush, hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> None:
    nowhere = huggingface_hub.HfApi(endpoint="http://127.0.0.1:9", token=GOOD_TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", nowhere.endpoint)
    with pytest.raises(InputError, match=r"the Hub cannot be reached.*HF_ENDPOINT \(http://127\.0\.0\.1:9\)"):
        plan_upload(looked, REPO, api=nowhere)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        plan_upload(looked, REPO, api=api(hub))
    assert not hub.requests


# ---- what is checked of the folder -----------------------------------------------------------------------------------


def json_changed(path: Path, **fields: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **fields}), encoding="utf-8")


def with_card(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "README.md").write_text(text, encoding="utf-8")


def first_shard(folder: Path) -> Path:
    return min(folder.glob("model-*.safetensors"))


def flip_last_bit(folder: Path) -> None:
    content = bytearray(first_shard(folder).read_bytes())
    content[-1] ^= 1
    first_shard(folder).write_bytes(content)


def append(path: Path, content: bytes) -> None:
    path.write_bytes(path.read_bytes() + content)


def swap_pieces(path: Path) -> None:
    """Two rare pieces change their ids, which nothing else of the folder shows."""
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    pieces = tokenizer["model"]["vocab"]
    pieces[100], pieces[200] = pieces[200], pieces[100]
    path.write_text(json.dumps(tokenizer), encoding="utf-8")


def as_large(folder: Path) -> None:
    with (folder / "results.json").open("wb") as file:
        file.truncate(51 * 10**9)  # a hole


def fields(name: str, **changes: object) -> Callable[[Path], object]:
    return lambda folder: json_changed(folder / name, **changes)


def without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def holding(name: str, content: bytes | str) -> Callable[[Path], object]:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(data)


CONVERSION, OPTIONS = "fairseq/conversion.json", "fairseq/options.json"
FAULTS: dict[str, tuple[Callable[[Path], object], type[HfXlmrError], str]] = {
    "no model": (without("config.json"), InputError, "it has no config.json"),
    "no shard": (lambda folder: first_shard(folder).unlink(), InputError, "is incomplete: model-00001"),
    "cut off": (
        lambda folder: first_shard(folder).write_bytes(first_shard(folder).read_bytes()[:-1]),
        IntegrityError,
        "is truncated or damaged",
    ),
    "changed weights": (flip_last_bit, IntegrityError, "other weights than those that were verified .model-00001"),
    "other pieces": (
        holding("fairseq/sentencepiece.bpe.model", b"another"),
        IntegrityError,
        "sentencepiece.bpe.model is not the file that .* describes",
    ),
    "not verified": (fields(CONVERSION, parity=None), InputError, "converted without the proof.*allow_unverified=True"),
    "other heads": (
        fields("config.json", num_attention_heads=2),
        InputError,
        "num_attention_heads is 2, and 4 by fairseq/conversion.json",
    ),
    "a decoder": (fields("config.json", is_decoder=True), InputError, "is_decoder is True, and must be False"),
    "other ids": (
        lambda folder: swap_pieces(folder / "tokenizer.json"),
        InputError,
        "the dictionary is not that of .*2 ids differ",
    ),
    "other pieces for Transformers": (
        lambda folder: append(folder / "sentencepiece.bpe.model", b"\xfa\x07\x00"),  # a field that nobody knows
        IntegrityError,
        "holds other files than the conversion wrote .sentencepiece.bpe.model",
    ),
    "a lost dictionary": (
        without("fairseq/dict.txt"),
        IntegrityError,
        "lacks fairseq/dict.txt, which the conversion wrote",
    ),
    "lost options": (without(OPTIONS), IntegrityError, f"lacks {OPTIONS}, which the conversion wrote"),
    "other options": (
        fields(OPTIONS, activation_fn="relu"),
        IntegrityError,
        f"other files than the conversion wrote .{OPTIONS}",
    ),
    "no hashes": (fields(CONVERSION, written=5), IntegrityError, "damaged: it does not say which files were written"),
    "an adapter without weights": (
        holding("adapter_config.json", '{"peft_type": "LORA"}'),
        InputError,
        "adapter_config.json makes Transformers look for adapter_model.safetensors",
    ),
    "no list of modules": (holding("modules.json", "{"), InputError, "modules.json is damaged: it lists no modules"),
    "modules of nothing": (holding("modules.json", "[5]"), InputError, "modules.json is damaged: it lists no modules"),
    "broken record": (fields(CONVERSION, parity=[]), IntegrityError, "damaged: it does not say which weights"),
    "epsilon": (
        fields("config.json", layer_norm_eps=1e-12),
        InputError,
        "layer_norm_eps 1e-12, BERT's.*hf-xlmr doctor.*despite_faults=True",
    ),
    "no card": (without("README.md"), InputError, "has no README.md.*library_name"),
    "bare no": (
        with_card("---\nlanguage:\n- de\n- no\n---\n"),
        InputError,
        'language has False, which is not a text .YAML reads a bare no as false: write "no"',
    ),
    "two licences": (with_card("---\nlicense: [mit, x]\n---\n"), InputError, "license has"),
    "a spelling": (with_card("---\nlicense: MIT\n---\n"), InputError, "license has 'MIT', which is not in the Hub"),
    "another licence": (with_card("---\nlicense: other\n---\n"), InputError, "there is no license_name"),
    "a script": (with_card("---\nlanguage: zh-Hans\n---\n"), InputError, "language has 'zh-Hans'.*ISO 639"),
    "tags": (with_card("---\ntags: [1]\n---\n"), InputError, "tags has 1, which is not a text"),
    "no YAML": (with_card("---\na: [\n---\n"), InputError, "begins with metadata that the Hub cannot read"),
    "too deep": (with_card(f"---\na: {'[' * 1200}\n---\n"), InputError, "metadata that the Hub cannot read"),
    "no text": (
        holding("README.md", b"---\nlicense: \xff\n---\n"),
        InputError,
        "begins with metadata that the Hub cannot read",
    ),
    "a rule": (with_card("---\nlicense: isc\n---\n"), InputError, 'the Hub refuses.*"license" must be'),
    "size": (as_large, InputError, "results.json has 51 GB, and the Hub accepts at most 50.*max_shard_size"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_folder_at_fault_is_refused_before_anything_is_written(name: str, folder: Path, hub: LocalHub) -> None:
    change, error, sentence = FAULTS[name]
    change(folder)
    with pytest.raises(error, match=sentence) as refused:
        plan_push(folder, REPO, api=api(hub))
    assert "\n" not in str(refused.value) and not hub.writes


def test_what_is_known_of_the_weights(folder: Path, hub: LocalHub) -> None:
    record = folder / "fairseq" / "conversion.json"
    json_changed(record, parity=None)
    assert plan_push(folder, REPO, api=api(hub), allow_unverified=True).report.standing is Standing.unverified
    flip_last_bit(folder)
    record.unlink()
    assert plan_push(folder, REPO, api=api(hub)).report.standing is Standing.unrecorded
    (folder / "finetuning.json").write_text("{}")
    assert plan_push(folder, REPO, api=api(hub)).report.standing is Standing.finetuned


def test_what_the_user_may_change_after_the_conversion(folder: Path, hub: LocalHub) -> None:
    """Plain Transformers also writes fields that say what their absence says."""
    transformers.AutoConfig.from_pretrained(folder, id2label={0: "a", 1: "b"}, hidden_dropout_prob=0.2).save_pretrained(
        folder
    )
    json_changed(folder / "tokenizer_config.json", model_max_length=128)
    (folder / "README.md").write_text((folder / "README.md").read_text() + "\nMore.\n")
    report = pushed(folder, hub)
    mine = {"README.md", "tokenizer_config.json", "fairseq/conversion.json"}
    assert report.standing is Standing.verified and set(report.held) == contents(folder).keys() - mine


def test_a_folder_whose_conversion_noted_fewer_files_says_what_was_compared(
    folder: Path, hub: LocalHub, tmp_path: Path
) -> None:
    record = folder / "fairseq" / "conversion.json"
    told = json.loads(record.read_text(encoding="utf-8"))
    del told["written"], told["config"]
    record.write_text(json.dumps(told), encoding="utf-8")
    done = run(folder, REPO, "--dry-run")
    assert done.returncode == 0, done.stderr
    shown = " ".join(done.stdout.split())
    assert "as converted 6 files; not compared: README.md, config.json, model.safetensors.index.json" in shown
    (folder / "fairseq" / "dict.txt").unlink()
    with pytest.raises(IntegrityError, match=r"lacks fairseq/dict\.txt"):
        plan_push(folder, REPO, api=api(hub))


def test_files_are_held_to_the_record_whether_weights_were_verified_or_trained(folder: Path, hub: LocalHub) -> None:
    json_changed(folder / "fairseq" / "conversion.json", parity=None)
    json_changed(folder / "tokenizer.json", version="1.0")  # written by another hand, and the same to every reader
    with pytest.raises(IntegrityError, match=r"other files than the conversion wrote .tokenizer\.json"):
        plan_push(folder, REPO, api=api(hub), allow_unverified=True)
    (folder / "finetuning.json").write_text("{}")
    held = plan_push(folder, REPO, api=api(hub)).report.held
    assert "fairseq/dict.txt" in held and not {"tokenizer.json", "config.json"} & {*held}
    (folder / "fairseq" / "dict.txt").unlink()
    with pytest.raises(IntegrityError, match=r"lacks fairseq/dict\.txt"):
        plan_push(folder, REPO, api=api(hub))


def test_mild_faults_are_told_and_others_are_taken_when_asked(folder: Path, hub: LocalHub) -> None:
    json_changed(folder / "tokenizer_config.json", model_max_length=10**30)
    assert [each.name for each in pushed(folder, hub).findings] == ["model_max_length"]
    json_changed(folder / "config.json", layer_norm_eps=1e-12)
    report = pushed(folder, hub, despite_faults=True)
    assert {each.name for each in report.findings} == {"model_max_length", "layer_norm_eps"}
    assert hub.files(REPO) == contents(folder)


def test_a_card_without_metadata_is_remarked_on(folder: Path, hub: LocalHub) -> None:
    with_card("# A model\n")(folder)
    notes = plan_push(folder, REPO, api=api(hub)).report.notes
    assert notes == (
        "README.md names no license, so nobody knows what they may do with it: add a line such as license: mit "
        "to the fields at its top",
        "README.md: empty or missing yaml metadata in repo card",
    )


def test_what_is_no_part_of_the_model_is_left_out_and_named(folder: Path, hub: LocalHub) -> None:
    whole = contents(folder)
    strange = {
        ".cache/x": ".cache/",
        ".DS_Store": ".DS_Store",
        "checkpoints/checkpoint-2/model.safetensors": "checkpoints/",
        "__pycache__/a.pyc": "__pycache__/",
        "runs/a/events.out.tfevents.1": "runs/",
        "train.log": "train.log",
        "model-00009-of-00009.safetensors": "model-00009-of-00009.safetensors",
        "offload/x.dat": "offload/",
        f"{'0a' * 16}/lm_head.bias.safetensors": f"{'0a' * 16}/",
        "fairseq/a.part": "fairseq/a.part",
        "training_args.bin": "training_args.bin",
        "pytorch_model.bin": "pytorch_model.bin",
    }
    for name in strange:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    (folder / "gone").symlink_to("nowhere")
    report = pushed(folder, hub)
    assert hub.files(REPO) == whole and set(report.left_out) == {*strange.values(), "gone"}
    assert "pickle" in report.left_out["training_args.bin"] and report.left_out["model-00009-of-00009.safetensors"]


def test_a_snapshot_of_links_is_sent_as_files(folder: Path, hub: LocalHub, tmp_path: Path) -> None:
    """As the cache of huggingface_hub is."""
    cached = tmp_path / "models--me--model"
    (cached / "blobs").mkdir(parents=True)
    snapshot = shutil.copytree(folder, cached / "snapshots" / ("0a" * 20))
    for number, path in enumerate(path for path in snapshot.rglob("*") if path.is_file()):
        blob = cached / "blobs" / f"{number:040x}"
        path.rename(blob)
        path.symlink_to(os.path.relpath(blob, path.parent))
    (tmp_path / "link").symlink_to(snapshot)
    for named in (snapshot, tmp_path / "link"):
        assert plan_push(named, REPO, api=api(hub)).report.sent.keys() == contents(folder).keys()
    pushed(snapshot, hub)
    assert hub.files(REPO) == contents(folder)


# ---- what belongs to a model -----------------------------------------------------------------------------------------

UNKNOWN = (
    "notes.txt",
    "data.csv",
    "train.py",
    "analysis.ipynb",
    "model.onnx",
    "screenshot.png",
    "config.json.before-fix",
)
SECRETS = (
    *("token.json", "id_rsa_github", "a.p12", "a.pfx", "a.jks", "a.kdbx", "credentials.yaml", "service-account-1.json"),
    *("client_secret_123.json", "kubeconfig", "prod.env", "_netrc", "pypirc", "server.key.bak", "hf_token.txt"),
    *("fairseq/id_ed25519", "aws_credentials", "openai-api-key.txt", "serviceAccountKey.json", "token (1).json"),
)
FILES_OF_A_MODEL = (
    *("LICENSE", "LICENSE.txt", "NOTICE.md", "README_zh.md", "generation_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "finetuning.json", "results.json", "results.md", "results.svg", "report.html"),
    *("eval_results.json", "predictions/README.md", "predictions/labels.tsv", "scores/results.json"),
    *("scores/predictions/README.md", "scores/predictions/en.conll", "figures/loss.png", "pipeline.py"),
    "transformers_tokenizer.py",
    *("config_sentence_transformers.json", "sentence_bert_config.json", "modules.json", "1_Pooling/config.json"),
)


def put(folder: Path, name: str, content: str = "{}") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return path


def test_what_is_not_known_to_belong_to_a_model_is_sent_when_asked_for(folder: Path, hub: LocalHub) -> None:
    whole = contents(folder)
    for name in (*UNKNOWN, "data/a/1.txt", "data/a/2.txt", "data/b.txt", "runs/1/log", "train.log"):
        put(folder, name, "mine")
    report = pushed(folder, hub)
    assert hub.files(REPO) == whole and report.unknown == {**dict.fromkeys(UNKNOWN[:-1], 4), "data/": 12}
    assert report.left_out == {UNKNOWN[-1]: "a copy from before a change", "runs/": "logs", "train.log": "logs"}
    report = pushed(folder, hub, include=["notes.txt", "data/a/", "*.log", "./data.csv"])
    sent = {"notes.txt", "data/a/1.txt", "data/a/2.txt", "train.log", "data.csv"}
    assert report.sent.keys() == sent and report.unknown.keys() == {*UNKNOWN[:-1], "data/b.txt"} - sent
    assert (hub.files(REPO) or {}).keys() == whole.keys() | sent


def test_a_picture_that_the_card_does_not_show_is_not_sent_unasked(folder: Path) -> None:
    for name in ("a.png", "banana.png", "notes.png"):
        put(folder, name)
    put(folder, "README.md", (folder / "README.md").read_text() + "\n<img src='./banana.png'> `notes.png`\n")
    looked = look_at(folder)
    assert "banana.png" in looked.files and looked.unknown.keys() == {"a.png", "notes.png"}


def test_what_belongs_to_a_model_is_sent_unasked(folder: Path, hub: LocalHub) -> None:
    for name in FILES_OF_A_MODEL:
        put(folder, name)
    (folder / "finetuning.json").unlink()  # it would be another model
    put(folder, "modules.json", json.dumps([{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]))
    own = {"xlmr-feature-extraction": {"impl": "pipeline.XLMRFeatureExtractionPipeline", "pt": ["AutoModel"]}}
    json_changed(folder / "config.json", custom_pipelines=own)
    tokenizer = {"AutoTokenizer": ["transformers_tokenizer.XLMRTokenizer", None]}
    json_changed(folder / "tokenizer_config.json", auto_map=tokenizer)
    with (folder / "README.md").open("a", encoding="utf-8") as card:
        card.write("\n![how it went](figures/loss.png)\n")
    report = pushed(folder, hub)
    assert not report.unknown and not report.left_out and hub.files(REPO) == contents(folder)


def test_a_secret_is_not_sent_even_when_asked_for(folder: Path, hub: LocalHub) -> None:
    for name in SECRETS:
        put(folder, name, "private")
    put(folder, "notes.txt", "mine")
    looked = look_at(folder, include=["*"])
    assert looked.left_out == dict.fromkeys(SECRETS, "a secret, by its name") and not looked.files.keys() & {*SECRETS}
    assert look_at(folder).left_out == looked.left_out and "notes.txt" in looked.files
    for name in SECRETS:
        with pytest.raises(InputError, match="was requested, but is never sent: it is a secret"):
            plan_push(folder, REPO, include=[name.replace("(", "[(]")], api=api(hub))
    assert not hub.requests


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        ("nothing.txt", "'nothing.txt' was requested, but no file has that name or matches that pattern"),
        ("", "'' was requested, but no file"),
        ("optimizer.pt", "never sent: it is a pickle"),
        (".git/config", "'.git/' was requested, but is never sent: it is hidden"),
        ("elsewhere.txt", "never sent: it is a link that leaves the folder"),
        ("pipe", "never sent: it is neither a file nor a folder"),
    ],
)
def test_what_is_asked_for_and_cannot_be_sent_is_told(pattern: str, sentence: str, folder: Path) -> None:
    put(folder, "optimizer.pt")
    put(folder, ".git/config")
    os.mkfifo(folder / "pipe")
    (folder / "elsewhere.txt").symlink_to("/etc/hosts")
    with pytest.raises(InputError) as refused:
        look_at(folder, include=[pattern])
    assert sentence in str(refused.value)


HF_TOKEN = "hf_" + "aBcDeFgHiJ" * 3  # as one looks
CONTENTS = {
    "a card": ("README.md", f"# A model\n\nlogin('{HF_TOKEN}')\n", "line 3 that looks like a token of the Hub"),
    "results": ("results.json", json.dumps({"settings": {"api": HF_TOKEN}}), "a token of the Hub"),
    "options": ("fairseq/options.json", json.dumps({"wandb": f"WANDB_API_KEY={'0f' * 20}"}), "a password or a key"),
    "a key": ("NOTICE", "x\n-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl\n", "line 2 that looks like a private key"),
    "an address": ("report.html", "<a href=https://me:pa55word@host.org/x>", "an address with a password"),
    "a license": ("LICENSE", "AKIA" + "ABCDEFGHIJKLMNOP", "a key of AWS"),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_secret_in_a_file_of_the_model_is_refused_by_name(name: str, folder: Path, hub: LocalHub) -> None:
    file, content, sentence = CONTENTS[name]
    (folder / "fairseq" / "conversion.json").unlink()
    put(folder, file, content)
    with pytest.raises(InputError, match=sentence) as refused:
        plan_push(folder, REPO, api=api(hub))
    assert str(refused.value).startswith(f"{file} has text in line ") and HF_TOKEN not in str(refused.value)
    assert not hub.requests


@pytest.mark.parametrize("padding", [0, 1 << 20, 3 << 20])
def test_a_secret_in_the_header_of_weights_is_refused_however_long_the_header_is(padding: int, folder: Path) -> None:
    """Of the weights themselves nothing is searched."""
    weights = {"a": {"dtype": "U8", "shape": [len(HF_TOKEN)], "data_offsets": [0, len(HF_TOKEN)]}}

    def save(**metadata: str) -> None:
        header = json.dumps({"__metadata__": {"padding": "x" * padding, **metadata}, **weights}).encode()
        content = len(header).to_bytes(8, "little") + header + HF_TOKEN.encode()
        (folder / "more.safetensors").write_bytes(content)

    save()
    assert look_at(folder, include=["more.safetensors"])
    save(note=HF_TOKEN)
    with pytest.raises(InputError, match=r"more\.safetensors has text in line 1"):
        look_at(folder, include=["more.safetensors"])


def test_a_secret_in_what_is_asked_for_is_refused_wherever_it_stands(folder: Path) -> None:
    notebook = json.dumps({"cells": [{"source": ["x\n" * 600_000, f'login("{HF_TOKEN}")']}]}, indent=1)
    files = {f"{encoding}.{kind}": encoding for encoding in ("utf-8", "utf-16") for kind in ("ipynb", "yaml")}
    for name, encoding in files.items():
        (folder / name).write_bytes(notebook.encode(encoding))
    put(folder, "b.md", f"Say hf_{'x' * 34}, or huggingface_hub, hf_tokenizer, sk-learn, user:password@host.")
    looked = look_at(folder, include=["b.md"])
    assert "b.md" in looked.files and files.keys() <= looked.unknown.keys()
    for name in files:
        with pytest.raises(InputError, match=rf"{name} has text in line 6 that looks like a token of the Hub"):
            look_at(folder, include=[name])


LINKS: dict[str, tuple[str, str, str]] = {
    "weights elsewhere": ("model-00001-of-00005.safetensors", "../other.safetensors", "a link that leaves the folder"),
    "a card elsewhere": ("README.md", "/etc/hosts", "a link that leaves the folder"),
    "nothing": ("tokenizer_config.json", "gone", "a broken link"),
    "a circle": ("tokenizer_config.json", "tokenizer_config.json", "a broken link"),
    "a secret": ("NOTICE", ".env", "a link to a secret"),
    "through a link": ("LICENSE", "inner", "a link that leaves the folder"),
}


@pytest.mark.parametrize("name", LINKS)
def test_links_lead_only_inside_the_folder(name: str, folder: Path) -> None:
    link, target, why = LINKS[name]
    put(folder, ".env", "KEY=1")
    put(folder.parent, "other.safetensors", "x")
    (folder / "inner").symlink_to("/etc/hosts")
    (folder / link).unlink(missing_ok=True)
    (folder / link).symlink_to(target)
    with pytest.raises(InputError, match=rf"{link} belongs to the model and is not sent: it is {why}"):
        look_at(folder)


def test_other_links_are_left_out(folder: Path) -> None:
    put(folder, ".env", "KEY=1")
    targets = {"out": "/etc/hosts", "gone": "nothing", "round": "round", "settings": ".env", "here": "config.json"}
    for name, target in targets.items():
        (folder / name).symlink_to(target)
    looked = look_at(folder, include=["here"])
    assert looked.left_out == {
        ".env": "hidden",
        "settings": "a link to a secret",
        "gone": "a broken link",
        "out": "a link that leaves the folder",
        "round": "a broken link",
    }
    assert looked.files["here"].path == folder / "config.json"


def test_links_inside_the_folder_and_hard_links_are_files(folder: Path, hub: LocalHub) -> None:
    """As git-annex and DVC make them."""
    whole = contents(folder)
    for number, path in enumerate(sorted(folder.glob("*.safetensors"))):
        (folder / ".store").mkdir(exist_ok=True)
        path.rename(folder / ".store" / str(number))
        path.symlink_to(Path(".store") / str(number))
    os.link(folder / "config.json", folder.parent / "another-name")
    report = pushed(folder, hub)
    assert hub.files(REPO) == whole and report.left_out == {".store/": "hidden"}


def test_a_folder_of_the_model_that_is_a_link_is_refused(folder: Path) -> None:
    (folder / "fairseq").rename(folder.parent / "fairseq")
    (folder / "fairseq").symlink_to(folder.parent / "fairseq", target_is_directory=True)
    with pytest.raises(InputError, match="fairseq belongs to the model and is not sent: it is a link"):
        look_at(folder)


def test_a_dry_run_without_a_network_tells_of_changed_weights(folder: Path, hub: LocalHub, tmp_path: Path) -> None:
    """What was verified is compared before any Hub is asked."""
    flip_last_bit(folder)
    done = run(folder, REPO, "--dry-run", token="")
    assert done.returncode == 1 and not done.stdout and not hub.requests
    assert "other weights than those that were verified" in done.stderr and done.stderr.count("\n") == 1


# ---- other folders ---------------------------------------------------------------------------------------------------


def test_a_folder_for_sentence_transformers(folder: Path, hub: LocalHub, tmp_path: Path) -> None:
    made = to_sentence_transformers(folder, tmp_path / "sentences").output
    assert pushed(made, hub).standing is Standing.verified
    assert hub.files(REPO) == contents(made) and "1_Pooling/config.json" in contents(made)
    shutil.rmtree(made / "1_Pooling")
    with pytest.raises(InputError, match=r"modules.json names 1_Pooling/config.json, which is missing: sentence-"):
        plan_push(made, REPO, api=api(hub))
    modules = json.loads((made / "modules.json").read_text())
    modules[1] = {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"}
    (made / "modules.json").write_text(json.dumps(modules))  # a module of no files, of which git keeps no folder
    assert "modules.json" in plan_push(made, REPO, api=api(hub)).report.sent


def test_an_adapter_with_its_weights_is_taken(folder: Path, hub: LocalHub) -> None:
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    shutil.copyfile(first_shard(folder), folder / "adapter_model.safetensors")
    assert "adapter_model.safetensors" in pushed(folder, hub).sent


def test_a_folder_of_anybodys(folder: Path, hub: LocalHub, tmp_path: Path) -> None:
    own = tmp_path / "own"
    transformers.AutoModelForMaskedLM.from_pretrained(folder).save_pretrained(own)
    transformers.AutoTokenizer.from_pretrained(folder).save_pretrained(own)
    shutil.copyfile(folder / "README.md", own / "README.md")
    assert pushed(own, hub).standing is Standing.unrecorded
    assert hub.files(REPO) == contents(own)
