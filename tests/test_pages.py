# SPDX-License-Identifier: Apache-2.0
"""What README and the pages of docs print exists: commands, options, config files, modules, paths and links."""

from __future__ import annotations

import ast
import importlib
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from scripts.cli.commands import COMMANDS, main
from scripts.cli.overrides import check_overrides
from scripts.cli.rules import check_settings
from scripts.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "models/README.md",
    ROOT / "tests/golden/README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
PLACEHOLDERS = re.compile(r"[A-Z]{3,}|(?:^|/)B/|^B\.|\.\.\.|mine|^(?:dev|inference|none)\.\w+$")
"""Names in commands that stand for a reader's own file or folder."""

MONAI_OPTIONS = {
    *("config_file", "meta_file", "args_file", "logging_file", "tracking", "experiment_name", "debug", "filepath")
}
FOREIGN_OPTIONS = {
    *("nnodes", "nproc_per_node", "rdzv_backend", "rdzv_endpoint", "rdzv_id", "standalone", "max_restarts"),  # torchrun
    *("nodes", "gpus-per-node", "logdir", "no-deps", "backend-store-uri", "help"),
    *("repo", "name", "bundle_dir"),  # push_to_hf_hub
    "max_stpes",  # docs/errors.md: a misspelt option
}
OLD_NAMES = [
    *("scripts.engine", "scripts.terms", "scripts.functional", "scripts.workflows", "scripts.benchmarks"),
    *("scripts/engine", "scripts/terms", "scripts/functional", "scripts/workflows", "scripts/benchmarks"),
    *("scripts.new_dataset", "scripts.convert_left_atrium", "scripts.cli.new_dataset", "scripts.cli.export"),
    *("tap_layer", "unlabelled_from", "rank_unlabelled", "state_*.pt", "data_source", "TapInferer", "BundleError"),
]


def page_id(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def inline_code(page: Path) -> list[str]:
    return re.findall(r"`([^`]+)`", re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL))


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every command: lines of bash blocks, and inline code that begins with `python` or `make`."""
    blocks = re.findall(r"```bash\n(.*?)```", text_of(page), re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += [code for code in inline_code(page) if re.match(r"(OMP_\S+ )?(python -m|make|torchrun|sbatch) ", code)]
    for line in lines:
        words = shlex.split(line, comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words:
            yield words


def module_exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def files_in(value: str) -> list[str]:
    return [str(file) for file in ast.literal_eval(value)] if value.startswith("[") else [value]


def bundle_path(file: str) -> Path:
    return ROOT / file.removeprefix("B/")


def options_of(words: list[str]) -> dict[str, str]:
    """`--name value` and `--name=value`."""
    options, name = {}, ""
    for word in words:
        if word.startswith("--"):
            name, _, value = word[2:].partition("=")
            options[name] = value
        elif name:
            options[name] = f"{options[name]} {word}".strip()
    return options


def is_key(content: Any, key: str) -> bool:
    for part in key.split("::"):
        if isinstance(content, list) and part.isdigit() and int(part) < len(content):
            content = content[int(part)]
        elif isinstance(content, dict) and part in content:
            content = content[part]
        else:  # an argument of a class that takes its default so far
            return isinstance(content, dict) and "_target_" in content
    return True


def check_bundle_run(words: list[str]) -> None:
    options = options_of(words)
    if "config_file" not in options:  # named in a sentence
        return
    files = [file for file in files_in(options["config_file"]) if not PLACEHOLDERS.search(file.removeprefix("B/"))]
    for file in files:
        assert bundle_path(file).is_file(), f"{file} does not exist"
    if options["config_file"] in ("inference.json",):  # from inside model.ts
        files = ["configs/self_contained.yaml", "configs/inference.yaml"]
    content = ConfigParser.load_config_files([str(bundle_path(file)) for file in files])
    if words[0] and not words[0].startswith("--"):
        assert words[0] in content, f"there is no run id {words[0]} in {files}"
    unknown = [name for name in options if name not in MONAI_OPTIONS and not is_key(content, name)]
    assert not unknown, f"{unknown} are not keys of {files}"


def check_front_door(words: list[str]) -> None:
    assert not words or words[0] in COMMANDS or words[0] in ("COMMAND", "--help"), f"there is no command {words[0]}"


def check_module(words: list[str]) -> None:
    module = words[0]
    if module == "monai.bundle":
        if words[1] == "run":
            check_bundle_run(words[2:])
        for name in ("meta_file", "filepath"):
            file = options_of(words).get(name)
            assert file is None or words[1] == "run" or bundle_path(file).is_file(), f"{file} does not exist"
    elif module == "scripts":
        check_front_door(words[1:])
    elif module == "pytest":
        for word in words[1:]:
            assert not word.startswith("tests/") or (ROOT / word.split("::")[0]).exists(), f"{word} does not exist"
    else:
        assert module_exists(module), f"there is no module {module}"
        file = importlib.util.find_spec(module).origin
        if file and Path(file).is_relative_to(ROOT):
            source = "\n".join(map(text_of, Path(file).parent.glob("*.py")))  # options may be shared in a folder
            unknown = [name for name in options_of(words) if f'"--{name}"' not in source and name]
            own = set(unknown) - set(options_of(words[words.index("--") :] if "--" in words else []))
            assert not own, f"{module} has no option {sorted(own)}"


def check(words: list[str]) -> None:
    program = Path(words[0]).name
    if "-m" in words and (program == "torchrun" or (program.startswith("python") and words[1] == "-m")):
        check_module(words[words.index("-m") + 1 :])
    elif program == "make":
        targets = re.findall(r"^(\w+):", text_of(ROOT / "Makefile"), re.MULTILINE)
        assert words[-1] in targets or "=" in words[-1], f"make has no target {words[-1]}"
    elif program == "sbatch":
        assert any((ROOT / word).is_file() for word in words)
    for word in words:
        if re.fullmatch(r"(?:(?:configs|scripts|tests|docs)/[\w/.-]+|requirements[\w-]*)\.\w+", word):
            assert (ROOT / word).is_file() or word.endswith(".csv"), f"{word} does not exist"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_command_names_modules_files_and_keys_that_exist(page: Path) -> None:
    for words in commands(page):
        try:
            check(words)
        except AssertionError as error:
            raise AssertionError(f"`{' '.join(words)}`: {error}") from None


@pytest.fixture
def accept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[list[str]], None]:
    """Start a printed command up to where its work would begin, with a dataset `mine`."""
    dataset = tmp_path / "mine.yaml"
    dataset.write_text(text_of(ROOT / "configs/datasets/demo.yaml"), encoding="utf-8")
    known = tmp_path / "datasets.json"
    known.write_text(json.dumps(dict.fromkeys(("mine", "NAME"), str(dataset))), encoding="utf-8")

    def in_monai(words: list[str]) -> None:  # the words from `run` on
        check_settings(check_overrides(["", *words]))

    def export(options: Any, files: list[str], overrides: dict[str, str]) -> int:
        in_monai(
            [
                "run",
                "--config_file",
                str(files or [str(ROOT / "configs/inference.yaml")]),
                *(f"--{key}={value}" for key, value in overrides.items()),
            ]
        )
        return 0

    def start(words: list[str]) -> None:
        words = [re.sub(r"[\w/]*\bmine\.yaml", str(dataset), word).replace("B/configs", "configs") for word in words]
        words = [re.sub(r"^inference\.json$", "configs/inference.yaml", word) for word in words]
        if "monai.bundle" in words and "run" in words and any(word.startswith("--config_file") for word in words):
            in_monai(words[words.index("run") :])
        elif "scripts" in words and words[-1] not in ("scripts", "COMMAND"):
            assert main(words[words.index("scripts") + 1 :]) == 0

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("BUNDLE_DATASETS", str(known))
    monkeypatch.setattr("scripts.cli.commands.run_in_monai", in_monai)
    monkeypatch.setattr("scripts.cli.commands._advised_method", lambda files, options: [])
    monkeypatch.setattr("scripts.cli.commands.remember", lambda name, file: None)
    monkeypatch.setattr("scripts.dataset_setup.new_dataset.new_dataset", lambda request: dataset)
    monkeypatch.setattr("scripts.training.run_record.describe_weights", lambda path: {})
    monkeypatch.setattr("scripts.dataset_setup.left_atrium.convert", lambda folder, output, crop: None)
    for name in ("_export", "_parity", "_zip"):
        monkeypatch.setattr(f"scripts.cli.export.{name}", export)
    return start


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_command_is_accepted_as_it_is_printed(page: Path, accept: Callable, capsys) -> None:
    for words in commands(page):
        if "..." not in words:
            try:
                accept(words)
            except (UserError, AssertionError) as error:
                raise AssertionError(f"`{' '.join(words)}`: {error} {capsys.readouterr().err}") from None


def test_a_refused_command_would_be_noticed(accept: Callable) -> None:
    for line in (
        "python -m monai.bundle run training --config_file configs/train.yaml --max_steps 0",
        "python -m monai.bundle run training --config_file configs/train.yaml --dataset_dir \"['a.nii','b.nii']\"",
        "python -m monai.bundle run training --config_file configs/train.yaml seed 3",
        "python -m scripts predict",
        "python -m scripts predict IN --output_dir OUT --roi_size 3",
        "python -m scripts train nobody",
    ):
        with pytest.raises((UserError, AssertionError)):
            accept(shlex.split(line))


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_option_exists(page: Path) -> None:
    sources = "\n".join(text_of(file) for folder in ("scripts", "tests") for file in (ROOT / folder).rglob("*.py"))
    keys = set(re.findall(r"^(\w+):", "\n".join(map(text_of, (ROOT / "configs").rglob("*.yaml"))), re.MULTILINE))
    known = keys | MONAI_OPTIONS | FOREIGN_OPTIONS | set(re.findall(r'"--([\w-]+)"', sources))
    named = {name for code in inline_code(page) for name in re.findall(r"(?<![\w-])--([a-zA-Z][\w-]*)", code)}
    assert named <= known, sorted(named - known)


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_dotted_name_and_path_exists(page: Path) -> None:
    text = text_of(page)
    for name in set(re.findall(r"\b((?:scripts|tests)(?:\.\w+)+)", text)) - {"scripts.export"}:
        parts = name.split(".")
        depth = next(d for d in range(len(parts), 0, -1) if module_exists(".".join(parts[:d])))
        found = importlib.import_module(".".join(parts[:depth]))
        for part in parts[depth:]:
            assert hasattr(found, part), f"{name}: {'.'.join(parts[:depth])} has no {part}"
            found = getattr(found, part)
    for path in set(re.findall(r"`((?:scripts|tests|configs|docs|models)/[\w./-]*)`", text)):
        written = path in ("configs/train.json", "configs/inference.json") or not path.strip("/").count("/")
        assert written or (ROOT / path).exists() or re.fullmatch(r"models/model\.\w+", path), f"{path} does not exist"


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith(("http://", "https://")):
            file, _, anchor = target.partition("#")
            linked = (page.parent / file).resolve() if file else page
            assert linked.exists(), f"{target} does not exist"
            assert not anchor or anchor in anchors(linked), f"{linked.name} has no heading for #{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_no_page_uses_a_name_of_before(page: Path) -> None:
    text = text_of(page)
    assert not [name for name in OLD_NAMES if name in text]


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.parent.name == "docs" and p.stem != "CONTRIBUTING"], ids=page_id
)
def test_a_page_for_users_names_no_test_function(page: Path) -> None:
    assert not re.findall(r"(?<!--)\btest_\w+", re.sub(r"tests/[\w/]+\.py", "", text_of(page)))


def test_the_index_has_every_page_of_docs() -> None:
    index = text_of(ROOT / "docs/README.md")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, page.name
    results = text_of(ROOT / "docs/results/README.md")
    for page in (ROOT / "docs/results").iterdir():
        assert page.name == "README.md" or f"]({page.name})" in results, page.name


def test_a_wrong_command_would_be_noticed() -> None:
    for line in (
        "python -m scripts.nothing",
        "python -m scripts trian mine",
        "python -m monai.bundle run training --config_file configs/trian.yaml",
        "python -m monai.bundle run training --config_file configs/train.yaml --max_step 3",
        "python -m monai.bundle run train_it --config_file configs/train.yaml",
        "python -m pytest tests/none",
        "make demonstration",
    ):
        with pytest.raises(AssertionError):
            check(shlex.split(line))
