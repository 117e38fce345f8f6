# SPDX-License-Identifier: Apache-2.0
"""Atomic writes, CSV text, and checks of paths."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch

from scripts.data.datalist import load_cases
from scripts.data.spec import DatasetSpec
from scripts.dataset_setup.roles import Request, gather
from scripts.errors import UserError
from scripts.files import (
    atomic_write,
    csv_text,
    link_or_copy,
    read_text,
    require_file,
    require_folders,
    require_images,
    save_atomically,
    write_text,
)
from scripts.images.find import find_images
from scripts.images.read import read_volume
from tests.scan_folder import make_folder
from tests.volume_files import affine, save, volume


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_with_its_whole_content_in_a_new_folder(tmp_path):
    path = tmp_path / "new/deep/a.txt"
    with atomic_write(path, ending=".txt") as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == ".txt"
        temporary.write_text("content")
        assert not path.exists()
    assert path.read_text() == "content"
    assert names(path.parent) == ["a.txt"]


def test_after_an_error_the_old_file_is_unchanged_and_no_temporary_file_is_left(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(KeyError), atomic_write(path) as temporary:
        temporary.write_text("half of the ne")
        raise KeyError("stopped")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_process_killed_while_it_replaces_a_file_leaves_one_of_its_versions(tmp_path):
    """Killed after 0 to 9 ms of writing the same file over and over."""
    path = tmp_path / "a.pt"
    size = 100_000
    for delay in range(10):
        child = os.fork()
        if child == 0:
            for value in range(1_000_000):
                save_atomically(torch.full((size,), value), path)
        while not path.exists():
            time.sleep(0.001)
        time.sleep(delay / 1000)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        content = torch.load(path, weights_only=True)
        assert len(content) == size and bool((content == content[0]).all())
        path.unlink()


def test_a_text_is_written_in_utf_8(tmp_path):
    write_text(tmp_path / "a.txt", "µm\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc2\xb5m\n"


def test_a_folder_that_cannot_be_written_to_is_a_user_error_that_names_the_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"a\.txt"):
        write_text(tmp_path / "file/a.txt", "content")
    with pytest.raises(UserError, match=r"a\.pt"):
        save_atomically({}, tmp_path / "file/a.pt")


def test_an_error_while_saving_keeps_the_old_file(tmp_path):
    class Unpicklable:
        def __reduce__(self):
            raise OSError("disk full")

    path = tmp_path / "a.pt"
    save_atomically({"value": 1}, path)
    with pytest.raises(UserError, match="disk full"):
        save_atomically({"big": torch.ones(9), "bad": Unpicklable()}, path)
    assert torch.load(path) == {"value": 1}
    assert names(tmp_path) == ["a.pt"]


@pytest.mark.parametrize("words", ["[enforce fail at inline_container.cc:672] . unexpected pos", "iostream error"])
def test_a_full_disk_inside_torchs_writer_is_a_user_error(words, monkeypatch, tmp_path):
    def fail(*_):
        raise RuntimeError(words)

    monkeypatch.setattr("torch.save", fail)
    with pytest.raises(UserError, match=r"model\.pt"):
        save_atomically({}, tmp_path / "model.pt")


def test_another_runtime_error_of_saving_is_not_blamed_on_the_disk(tmp_path):
    class Broken:
        def __reduce__(self):
            raise RuntimeError("not serialisable")

    with pytest.raises(RuntimeError, match="not serialisable"):
        save_atomically(Broken(), tmp_path / "model.pt")


def test_csv_text_has_a_header_and_quotes_what_needs_it():
    assert csv_text(["case", "note"], [["a", "x, y"], ["b", 1.5]]) == 'case,note\na,"x, y"\nb,1.5\n'


def test_a_missing_file_is_refused_with_the_hint(tmp_path):
    require_file(Path(__file__), "train first")
    with pytest.raises(UserError, match=r"model\.pt .*train first"):
        require_file(tmp_path / "model.pt", "train first")
    with pytest.raises(UserError):
        require_file(tmp_path, "a folder is no file")


def test_folders_to_write_to_may_be_missing_and_are_not_created(tmp_path):
    require_folders([tmp_path, tmp_path / "new/deep"])
    assert not (tmp_path / "new").exists()


def test_a_file_or_a_write_protected_folder_to_write_to_is_refused(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}/file/out")):
        require_folders([tmp_path, tmp_path / "file/out"])
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write anywhere
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}/out")):
        require_folders([tmp_path / "out"])


def test_no_image_to_run_on_is_refused():
    require_images(["a.nii.gz"], "/data")
    with pytest.raises(UserError, match="/data"):
        require_images([], "/data")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_text_is_read_with_and_without_a_byte_order_mark(tmp_path, encoding):
    mark = "\ufeff" if encoding in ("utf-16-le", "utf-16-be") else ""
    (tmp_path / "list.txt").write_bytes((mark + "fälle/a.nii\r\nb.nii\r\n").encode(encoding))
    assert read_text(tmp_path / "list.txt") == "fälle/a.nii\nb.nii\n"
    assert find_images(tmp_path / "list.txt") == [str(tmp_path / "fälle/a.nii"), str(tmp_path / "b.nii")]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_datalist_of_windows_is_read(tmp_path, encoding):
    make_folder(tmp_path, labelled=2, unlabelled=1)
    lists = {
        "training": [{"image": rf"images\c{n}.nii.gz", "label": rf"labels\c{n}.nii.gz"} for n in range(2)],
        "unlabeled": ["images/c2.nii.gz"],
    }
    (tmp_path / "dataset.json").write_bytes(json.dumps(lists, indent=1).replace("\n", "\r\n").encode(encoding))
    cases = load_cases(DatasetSpec(tmp_path))
    assert [case["image"] for case in cases.labelled] == [str(tmp_path / f"images/c{n}.nii.gz") for n in range(2)]
    assert len(gather(Request(tmp_path, "mine"))[0]) == 3


def no_links(self: Path, target: Path) -> None:
    raise OSError(f"a required privilege is not held: {self}")


def test_a_file_is_copied_where_links_are_not_allowed(tmp_path, monkeypatch) -> None:
    (tmp_path / "file").write_text("1")
    link_or_copy(tmp_path / "file", tmp_path / "link")
    monkeypatch.setattr(Path, "symlink_to", no_links)
    link_or_copy(tmp_path / "file", tmp_path / "copy")
    assert (tmp_path / "link").is_symlink() and not (tmp_path / "copy").is_symlink()
    assert (tmp_path / "link").read_text() == (tmp_path / "copy").read_text() == "1"


@pytest.mark.parametrize("name", ["SCAN.NII.GZ", "SCAN.MHA", "SCAN.MHD"])
def test_endings_in_upper_case_are_read_without_links(name, tmp_path, monkeypatch) -> None:
    voxels, matrix = volume(), affine()
    lower = save(tmp_path / name.lower(), voxels, matrix)
    lower.rename(tmp_path / name)
    monkeypatch.setattr(Path, "symlink_to", no_links)
    header, read = read_volume(tmp_path / name)
    assert header.shape == voxels.shape and (read[0] == voxels).all()


def test_what_is_flushed_is_open_for_writing(tmp_path, monkeypatch) -> None:
    fcntl = pytest.importorskip("fcntl")
    modes = []
    monkeypatch.setattr(os, "fsync", lambda number: modes.append(fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE))
    write_text(tmp_path / "file", "1")
    assert modes == [os.O_RDWR]


@pytest.mark.parametrize("content", ["Größe".encode("latin-1"), "text".encode("utf-16-le")])
def test_text_in_another_encoding_is_refused_by_name(content, tmp_path) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"list\.txt.*UTF-8"):
        read_text(tmp_path / "list.txt")


def test_a_folder_in_the_place_of_a_file_is_named(tmp_path) -> None:
    with pytest.raises(UserError, match="is not a file"):
        require_file(tmp_path, "give a model")
