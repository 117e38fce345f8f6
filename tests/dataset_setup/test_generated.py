# SPDX-License-Identifier: Apache-2.0
"""A file that a person edited is told from one that the command wrote."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from scripts.dataset_setup.generated import (
    is_generated,
    is_untouched,
    json_with_digest,
    read_generated,
    refuse_edited,
    yaml_with_digest,
)
from scripts.errors import UserError
from scripts.files import write_text

TEXTS = {
    "a.yaml": yaml_with_digest("# why\nspacing: [1.0, 2.0]\n"),
    "a.json": json_with_digest({"name": "ä", "test": []}),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_file_is_untouched_until_a_single_sign_changes(tmp_path: Path, name: str) -> None:
    path = tmp_path / "new folder" / name
    write_text(path, TEXTS[name])
    assert is_generated(path)
    assert is_untouched(path)
    refuse_edited(path, force=False)
    path.write_text(TEXTS[name] + " ", encoding="utf-8")
    assert is_generated(path)
    assert not is_untouched(path)
    with pytest.raises(UserError, match=rf"{name} was edited after"):
        refuse_edited(path, force=False)
    refuse_edited(path, force=True)


@pytest.mark.parametrize("text", ["spacing: 1\n", '{"training": []}', "", "[1]"])
def test_files_of_other_origin_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "other"
    path.write_text(text)
    assert not is_generated(path)
    assert read_generated(path) == {}
    with pytest.raises(UserError, match="was not written by"):
        refuse_edited(path, force=False)


def test_the_digest_does_not_disturb_the_content(tmp_path: Path) -> None:
    assert yaml.safe_load(TEXTS["a.yaml"]) == {"spacing": [1.0, 2.0]}
    write_text(tmp_path / "a.json", TEXTS["a.json"])
    assert read_generated(tmp_path / "a.json")["name"] == "ä"


def test_nothing_is_left_beside_a_written_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a.yaml", "a: 1\n")
    assert [file.name for file in tmp_path.iterdir()] == ["a.yaml"]


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_text(tmp_path / "file" / "a.yaml", "a: 1\n")
