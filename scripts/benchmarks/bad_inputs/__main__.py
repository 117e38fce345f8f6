# SPDX-License-Identifier: Apache-2.0
"""Give every command bad inputs of many kinds, and hold what it does against what is right.

    python -m scripts.benchmarks.bad_inputs --folder bad_inputs --results docs/results/bad_inputs.csv

Each input is a small sound dataset, its configuration, its model and a command line, spoilt in one seeded way. Right is
the right result, or an exit code that is not 0 with one sentence that names the file or key; wrong are a traceback, a
result that looks finished, and any change outside of the folders that the command writes to. Inputs lie in `--folder`
one after the other, the wrong ones stay there; a row is written for each, and a stopped campaign goes on behind them.
Ends with 1 if something was wrong.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from scripts.benchmarks import forked_command
from scripts.benchmarks.bad_inputs import checkpoints, datalists, files, names, overrides, volumes, yaml_files
from scripts.benchmarks.bad_inputs.ground import ROOT, make_sound
from scripts.benchmarks.bad_inputs.judge import MONAI, REFUSED, RIGHT
from scripts.benchmarks.bad_inputs.kind import Kind
from scripts.benchmarks.bad_inputs.trial import table, try_input
from scripts.benchmarks.rows import append_row, read_rows

GROUPS = {
    "files": files.KINDS, "volumes": volumes.KINDS, "names": names.KINDS, "datalists": datalists.KINDS,
    "YAML": yaml_files.KINDS, "command line": overrides.KINDS, "models": checkpoints.KINDS,
}  # fmt: skip
COLUMNS = ("group", "kind", "command", "seed", "outcome", "code", "seconds", "sentence")


def inputs(seeds: int) -> list[tuple[str, Kind, int]]:
    """All inputs: group, kind and seed, at least one for each command that meets the kind."""
    return [
        (group, kind, seed)
        for group, kinds in GROUPS.items()
        for kind in kinds
        for seed in range(max(seeds, kind.inputs, len(kind.commands)))
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the inputs lie")
    parser.add_argument("--results", type=Path, default=ROOT / "docs/results/bad_inputs.csv")
    parser.add_argument("--seeds", type=int, default=2, help="inputs of a kind, if it does not have more by itself")
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=list(GROUPS), help="of kinds")
    options = parser.parse_args(argv)
    folder = options.folder.resolve()
    forked_command.load_libraries()
    sound = make_sound(folder / f"sound_{os.getpid()}")
    done = {(row["kind"], row["seed"]) for row in read_rows(options.results)}
    for group, kind, seed in inputs(options.seeds):
        if (kind.name, str(seed)) in done or group not in options.groups:
            continue
        begin = time.monotonic()
        command, code, verdict = try_input(kind, seed, sound, folder / re.sub(r"\W+", "_", f"{kind.name} {seed}"))
        sentence = verdict.sentence.replace(f"{folder}/", "").replace(f"{ROOT}/", "")  # no paths of this machine
        values = (group, kind.name, command, seed, verdict.outcome, code, round(time.monotonic() - begin, 1))
        append_row(options.results, COLUMNS, dict(zip(COLUMNS, (*values, sentence), strict=True)))
        if not verdict.good:
            print(f"{kind.name} {seed} ({command}): {verdict.outcome}\n    {sentence}", flush=True)
    rows = read_rows(options.results)
    print(table(rows))
    wrong = sum(row["outcome"] not in (REFUSED, RIGHT, MONAI) for row in rows)
    if wrong:
        sys.exit(f"{wrong} of {len(rows)} inputs were not met as they should be.")


if __name__ == "__main__":
    main()
