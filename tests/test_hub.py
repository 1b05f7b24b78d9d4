"""Pushing to the Hub, against a stand-in for its client that keeps repositories in directories."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import polars as pl
import pytest
from datasets import load_dataset, load_from_disk
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import filter_repo_objects

import curate.hub as hub
from curate.cli import cli, run
from curate.errors import CurateError
from tests.job import curate, rows

ME = {
    "name": "me",
    "orgs": [{"name": "lab"}],
    "auth": {"accessToken": {"role": "write"}},
}
NAME = "me/kept"


def http_error(kind: type[HfHubHTTPError], status: int, said: str) -> HfHubHTTPError:
    """An error as the client makes it of a response."""
    response: Any = SimpleNamespace(headers={}, status_code=status, request=None)
    return kind(f"{status} Client Error.\n\n{said}", response=response, server_message=said)


class Hub:
    """What the Hub has, and the calls that it got."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.private: dict[str, bool] = {}
        self.calls: list[str] = []

    def files(self, name: str) -> list[str]:
        folder = self.root / name
        return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())

    def whoami(self) -> dict[str, Any]:
        self.calls.append("whoami")
        return ME

    def dataset_info(self, repo_id: str) -> Any:
        self.calls.append("dataset_info")
        if repo_id not in self.private:
            raise http_error(RepositoryNotFoundError, 404, "Repository not found")
        siblings = [SimpleNamespace(rfilename=name) for name in self.files(repo_id)]
        return SimpleNamespace(private=self.private[repo_id], siblings=siblings)

    def create_repo(self, repo_id: str, *, repo_type: str, private: bool, exist_ok: bool) -> str:
        self.calls.append("create_repo")
        assert repo_type == "dataset"
        assert exist_ok
        self.private.setdefault(repo_id, private)
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        (self.root / repo_id / ".gitattributes").touch()
        return f"https://huggingface.co/datasets/{repo_id}"

    def upload_folder(
        self, *, folder_path: Path, repo_id: str, repo_type: str, commit_message: str,
        ignore_patterns: list[str], delete_patterns: list[str],
    ) -> None:  # fmt: skip
        """As the library does it: what matches is deleted, unless it is uploaded."""
        self.calls.append("upload_folder")
        assert repo_type == "dataset"
        assert commit_message.startswith("Selected by curate ")
        names = [str(p.relative_to(folder_path)) for p in folder_path.rglob("*") if p.is_file()]
        for name in filter_repo_objects(self.files(repo_id), allow_patterns=delete_patterns):
            if name != ".gitattributes":
                (self.root / repo_id / name).unlink()
        for name in filter_repo_objects(names, ignore_patterns=ignore_patterns):
            target = self.root / repo_id / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder_path / name, target)


@pytest.fixture
def there(here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: Any) -> Hub:
    """A Hub that can be reached, by somebody with a token."""
    fake = Hub(tmp_path_factory.mktemp("hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "get_token", lambda: "hf_token")
    for name in ("whoami", "dataset_info", "create_repo", "upload_folder"):
        assert hasattr(HfApi, name)
        monkeypatch.setattr(HfApi, name, _method(getattr(fake, name)))
    return fake


def _method(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda _, *args, **options: function(*args, **options)


def select(*arguments: str) -> int:
    return curate("recipe.yaml", "--out", "out", *arguments)


def test_what_is_pushed_loads_as_the_rows_kept(
    there: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert select("--push-to-hub", NAME) == 0
    assert f"pushed to https://huggingface.co/datasets/{NAME}" in capsys.readouterr().out
    remote = there.root / NAME
    loaded, own = load_dataset(str(remote), split="train"), load_from_disk("out")["train"]
    assert loaded.features == own.features
    assert loaded.to_list() == own.to_list()
    assert loaded.features["note"] == rows().features["note"]
    assert pl.read_parquet(remote / "scores.parquet").equals(pl.read_parquet("out/scores.parquet"))
    written = {str(p.relative_to("out")) for p in Path("out").rglob("*") if p.is_file()}
    assert {*there.files(NAME)} == written | {".gitattributes"}
    assert there.private == {NAME: True}


def test_pushing_later_is_the_same(there: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert select("--quiet", "--push-to-hub", NAME) == 0
    assert run(cli, ["push", "out", "lab/kept", "--public"]) == 0
    assert capsys.readouterr().out == "pushed to https://huggingface.co/datasets/lab/kept\n"
    assert there.files(NAME) == there.files("lab/kept")
    assert there.private == {NAME: True, "lab/kept": False}


def test_the_json_summary_is_one_document(there: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert select("--json", "--push-to-hub", NAME) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["pushed"] == f"https://huggingface.co/datasets/{NAME}"


def test_a_second_push_leaves_nothing_of_the_first(there: Hub) -> None:
    """Shards of another number would else be taken for kept rows."""
    assert select("--quiet", "--push-to-hub", NAME) == 0
    remote = there.root / NAME
    shutil.copy(next((remote / "train").glob("*.arrow")), remote / "train" / "data-9.arrow")
    (remote / "LICENSE").write_text("the owner's")
    again = ("--set", "selection.policy=random", "--set", "selection.keep.fraction=0.25")
    assert select("--quiet", "--overwrite", "--push-to-hub", NAME, *again) == 0
    assert load_dataset(str(remote), split="train").num_rows == 18
    assert "windows.parquet" not in there.files(NAME)
    assert "LICENSE" in there.files(NAME)


def test_partial_and_hidden_files_stay_here(there: Hub) -> None:
    assert select("--quiet") == 0
    for name in (".hidden", ".git/config", "verify.partial.jsonl"):
        path = Path("out") / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    assert run(cli, ["push", "out", NAME, "--quiet"]) == 0
    assert not [name for name in there.files(NAME) if "partial" in name or "git/" in name]
    assert ".hidden" not in there.files(NAME)


REFUSED: dict[str, tuple[str, str]] = {
    "kept": ("kept", "it must be NAMESPACE/NAME"),
    "deep": ("a/b/c", "Repo id must be in the form"),
    "characters": ("me/what?", "must use alphanumeric chars"),
    "stranger": ("you/kept", "me is no member of you; push to me/ or lab/"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_names_that_cannot_be_pushed_to(
    there: Hub, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, why = REFUSED[case]
    assert select("--push-to-hub", name) == 2
    message = capsys.readouterr().err
    assert why in message
    assert message.count("\n") == 1
    assert not Path("out").exists()
    assert "create_repo" not in there.calls


def _refuse(monkeypatch: pytest.MonkeyPatch, method: str, error: BaseException) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(HfApi, method, fail)


def test_no_run_for_nothing_offline(
    there: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert select("--push-to-hub", NAME) == 2
    assert capsys.readouterr().err == (
        "curate: me/kept: cannot be pushed offline; unset HF_HUB_OFFLINE.\n"
    )
    assert not Path("out").exists()
    assert there.calls == []


def test_no_run_for_nothing_without_a_token(
    there: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(hub, "get_token", lambda: None)
    assert select("--push-to-hub", NAME) == 2
    assert "run `hf auth login` or set HF_TOKEN" in capsys.readouterr().err
    assert not Path("out").exists()
    assert there.calls == []


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (http_error(HfHubHTTPError, 401, "Invalid credentials"), "the token is not accepted"),
        (http_error(HfHubHTTPError, 503, "Down for maintenance."), "Down for maintenance."),
        (LocalTokenNotFoundError("Token is required"), "Token is required."),
        (ConnectionError("Name or service not known"), "Name or service not known."),
    ],
    ids=["401", "503", "token", "network"],
)
def test_no_run_for_nothing_if_the_hub_says_no(
    there: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    error: Exception, why: str,
) -> None:  # fmt: skip
    _refuse(monkeypatch, "whoami", error)
    assert select("--push-to-hub", NAME) == 2
    message = capsys.readouterr().err
    assert message.startswith("curate: me/kept: cannot be pushed: ")
    assert why in message
    assert message.count("\n") == 1
    assert not Path("out").exists()


def test_no_run_for_nothing_with_a_token_for_reading(
    there: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(ME, "auth", {"accessToken": {"role": "read"}})
    assert select("--push-to-hub", NAME) == 2
    assert "the token is for reading only" in capsys.readouterr().err


def test_a_fine_grained_token_may_know_namespaces_that_we_do_not(
    there: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ME, "auth", {"accessToken": {"role": "fineGrained"}})
    assert select("--quiet", "--push-to-hub", "other/kept") == 0
    assert "README.md" in there.files("other/kept")


def test_foreign_datasets_are_left_alone(there: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    there.create_repo(NAME, repo_type="dataset", private=True, exist_ok=True)
    (there.root / NAME / "README.md").write_text("mine")
    assert select("--push-to-hub", NAME) == 2
    assert "is a dataset that curate did not push" in capsys.readouterr().err
    assert (there.root / NAME / "README.md").read_text() == "mine"
    (there.root / NAME / "README.md").unlink()
    assert select("--quiet", "--push-to-hub", NAME) == 0  # one that is there and empty


def test_visibility_is_what_was_asked_for(there: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert select("--quiet", "--push-to-hub", NAME) == 0
    assert run(cli, ["push", "out", NAME, "--public"]) == 2
    assert "is there and private" in capsys.readouterr().err
    there.private[NAME] = False
    assert run(cli, ["push", "out", NAME]) == 2
    assert "is there and public; give --public" in capsys.readouterr().err
    assert run(cli, ["push", "out", NAME, "--public", "--quiet"]) == 0
    assert select("--public") == 2
    assert "--public: is for --push-to-hub" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (http_error(HfHubHTTPError, 403, "Forbidden"), "the token may not do that"),
        (ConnectionError("Connection reset by peer"), "Connection reset by peer"),
        (RuntimeError("xet: upload timed out"), "xet: upload timed out"),
    ],
    ids=["403", "network", "uploader"],
)
@pytest.mark.parametrize("method", ["create_repo", "upload_folder"])
def test_a_failed_push_loses_nothing(
    there: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    method: str, error: Exception, why: str,
) -> None:  # fmt: skip
    working = getattr(HfApi, method)
    _refuse(monkeypatch, method, error)
    assert select("--push-to-hub", NAME, "--public") == 1
    found = capsys.readouterr()
    assert "kept 36 of 72 rows" in found.out
    assert "pushed" not in found.out
    assert found.err == (
        f"curate: out is written, but pushing it failed: {why}"
        f"{'; use one that may write there' if '403' in str(error) else ''}. "
        "Try again with `curate push out me/kept --public`.\n"
    )
    assert load_from_disk("out")["train"].num_rows == 36
    monkeypatch.setattr(HfApi, method, working)
    assert run(cli, found.err.split("`")[1].split()[1:]) == 0
    assert load_dataset(str(there.root / NAME), split="train").num_rows == 36


def test_an_interrupted_push_says_what_is_there(
    there: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _refuse(monkeypatch, "upload_folder", KeyboardInterrupt())
    assert select("--push-to-hub", NAME) == 130
    assert capsys.readouterr().err == (
        "\ncurate: interrupted; out is written, but not pushed; "
        "`curate push out me/kept` does that.\n"
    )
    assert load_from_disk("out")["train"].num_rows == 36


def test_only_finished_directories_are_pushed(
    there: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(cli, ["push", "nowhere", NAME]) == 2
    assert capsys.readouterr().err == "curate: nowhere: is no directory of curate select.\n"
    Path("empty").mkdir()
    assert run(cli, ["push", "empty", NAME]) == 2
    assert "it has no provenance.json" in capsys.readouterr().err
    assert there.calls == []


def test_errors_are_ours(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    _refuse(monkeypatch, "dataset_info", http_error(HfHubHTTPError, 500, "Internal"))
    with pytest.raises(CurateError, match="cannot be pushed: Internal"):
        hub.check_push(NAME)
