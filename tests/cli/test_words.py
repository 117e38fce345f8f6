# SPDX-License-Identifier: Apache-2.0
"""Values that MONAI would drop (None) or change (#) arrive as they were written."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import pytest

from scripts.cli.overrides import check_overrides
from scripts.cli.runs import run_in_monai
from scripts.cli.words import words_that_monai_keeps
from scripts.errors import UserError
from tests import forked_command

FILE = """
imports: ["$import json"]
number: 5
name: plain
names: [a, b]
block: {inner: 1}
target: out.json
run: ["$open(@target, 'w').write(json.dumps([@number, @name, @names, @block]))"]
"""

WORDS = [
    (["--number", "None"], [None, "plain", ["a", "b"], {"inner": 1}]),
    (["--number=null", "--name", "ha#sh"], [None, "ha#sh", ["a", "b"], {"inner": 1}]),
    (["--name", "/data/a b#1.2.840@x"], [5, "/data/a b#1.2.840@x", ["a", "b"], {"inner": 1}]),
    (["--names", "['x#1','it']", "--name=#"], [5, "#", ["x#1", "it"], {"inner": 1}]),
    (["--block::inner", "None"], [5, "plain", ["a", "b"], {"inner": None}]),
    (["--block#inner", "7"], [5, "plain", ["a", "b"], {"inner": 7}]),
    (["--name", "$'%d' % @number"], [5, "5", ["a", "b"], {"inner": 1}]),
]


@pytest.mark.parametrize(("words", "values"), WORDS, ids=lambda case: " ".join(map(str, case)))
def test_values_arrive_as_they_were_written(words, values, tmp_path) -> None:
    (tmp_path / "run.yaml").write_text(FILE)
    target = tmp_path / "out#put.json"
    run_in_monai(["run", "--config_file", str(tmp_path / "run.yaml"), "--target", str(target), *words])
    assert json.loads(target.read_text()) == values


@pytest.mark.parametrize(
    "words",
    [
        ["--max_steps", "5", "--name", "$@a#b", "--other=%x.yaml#key", "--train#trainer#amp", "true"],
        ["training", "--tracking", "None", "--config_file", "a#b.yaml", "--terms", "{'x': '@a#b'}", "--flag"],
    ],
)
def test_other_words_stay_as_they_are(words) -> None:
    assert words_that_monai_keeps(words) == words


def test_monais_own_command_starts_again_with_words_that_it_keeps(tmp_path) -> None:
    """The check of the command line is the first code of the bundle that MONAI runs; the second start is a real one."""
    (tmp_path / "run.yaml").write_text("initialize: [{_target_: scripts.cli.start.begin}]" + FILE)
    words = ["run", "--config_file", str(tmp_path / "run.yaml"), "--target", str(tmp_path / "o#t"), "--number", "None"]
    done = forked_command.run(["monai.bundle", *words], tmp_path, prepare=partial(os.chdir, Path(__file__).parents[2]))
    assert done.code == 0, done.errors
    assert json.loads((tmp_path / "o#t").read_text())[0] is None
    assert r"\x23" in done.output and "$None" in done.output


@pytest.mark.parametrize(
    ("text", "named"),
    [("dataset_dir: /data/ha#sh", r"\$'/data/ha\\x23sh'"), ('names: [a, "liver #1"]', r"\$'liver \\x231'")],
)
def test_text_with_a_hash_in_a_file_is_refused_with_the_way_to_write_it(text, named, tmp_path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"run: ['$1']\n{text}\n")
    main = "/venv/lib/python3.11/site-packages/monai/bundle/__main__.py"
    with pytest.raises(UserError, match=named) as caught:
        check_overrides([main, "run", "--config_file", str(file)])
    assert "mine.yaml" in str(caught.value) and text.partition(":")[0] in str(caught.value)
