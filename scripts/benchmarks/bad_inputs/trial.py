# SPDX-License-Identifier: Apache-2.0
"""One bad input: made, given to a command, judged; and the table of many."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from scripts.benchmarks import forked_command
from scripts.benchmarks.bad_inputs.commands import deny_large_files, deny_passing_over_permissions, words_of
from scripts.benchmarks.bad_inputs.ground import ROOT, ground_from
from scripts.benchmarks.bad_inputs.judge import MONAI, REFUSED, RIGHT, Verdict, judge, listing
from scripts.benchmarks.bad_inputs.kind import Kind

TIMEOUT = 120.0


def try_input(kind: Kind, seed: int, sound: Path, folder: Path) -> tuple[str, int | None, Verdict]:
    """Make an input, run its command and judge it; the folder is gone afterwards, unless something was wrong.

    Args:
        kind: of the input.
        seed: of the input; it decides the command too.
        sound: folder of `make_sound`.
        folder: of this input.

    Returns:
        The command, its exit code, and the verdict.
    """
    command = kind.commands[seed % len(kind.commands)]
    ground = ground_from(sound, folder, command, seed)
    named = kind.spoil(ground)
    ground.keep()
    before, bundle = listing(folder), _bundle()

    def deny() -> None:
        if kind.unprivileged:
            deny_passing_over_permissions()
        if kind.disk:
            deny_large_files(kind.disk)

    done = forked_command.run(words_of(ground), folder, TIMEOUT, deny)
    for closed in (ground.data / "images", ground.out, ground.models):
        if closed.is_dir():
            closed.chmod(0o755)
    verdict = judge(kind, ground, named, done, before)
    if _bundle() != bundle:
        verdict = Verdict("changed the bundle's own folder", verdict.sentence)
    if verdict.good:
        shutil.rmtree(folder)
    return command, done.code, verdict


def _bundle() -> dict[str, tuple[int, int]]:
    """Everything in the bundle's folder except for hidden files (an environment has thousands), results and caches."""
    found = listing(ROOT, (".", "docs/results"))
    return {name: state for name, state in found.items() if "cache" not in name}


def table(rows: Sequence[dict[str, str]]) -> str:
    """Counts for each kind and in all, as Markdown."""
    lines = [
        "| group | kind | commands | inputs | refused in one sentence | right result | MONAI's own message | wrong |",
        "|---|---|---|---|---|---|---|---|",
    ]
    kinds = list(dict.fromkeys((row["group"], row["kind"]) for row in rows))
    for group, kind in kinds:
        these = [row for row in rows if row["kind"] == kind]
        commands = ", ".join(dict.fromkeys(row["command"] for row in these))
        lines.append(f"| {group} | {kind} | {commands} | {_counts(these)} |")
    commands = len({row["command"] for row in rows})
    lines.append(f"| all | {len(kinds)} kinds | {commands} commands | {_counts(rows)} |")
    return "\n".join(lines)


def _counts(rows: Sequence[dict[str, str]]) -> str:
    outcomes = [row["outcome"] for row in rows]
    good = [outcomes.count(outcome) for outcome in (REFUSED, RIGHT, MONAI)]
    return " | ".join(map(str, [len(rows), *good, len(rows) - sum(good)]))
