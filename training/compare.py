"""Two benchmark results, or two systems of one, compared clip by clip with paired tests.

python -m training.compare build/before build/after --system faithful
python -m training.compare build/benchmark build/benchmark --system faithful deepfilternet
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import wilcoxon

from training.degrade import CONDITIONS
from training.metrics import mean_interval
from training.report import ALL, COLUMNS, markdown_table

LEAST_CLIPS = 6  # with fewer no sign test can be significant


def read_clips(folder: Path, system: str) -> dict[int, dict[str, Any]]:
    """Results by clip of one system in the output folder of `training.evaluate`; failed clips are left out.

    Raises:
        ValueError: if there are none.
    """
    rows = [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted((folder / "clips" / system).glob("[0-9]*.json"))
    ]
    clips = {row["row_id"]: row for row in rows if "error" not in row}
    if not clips:
        raise ValueError(f"{folder} has no results of {system}: run `python -m training.evaluate --out {folder}`")
    return clips


def paired(before: Mapping[int, Mapping[str, Any]], after: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Differences (after less before) of every figure over the clips that both have, by condition.

    The test is Wilcoxon's signed-rank test (1945), two-sided, exact or normal as scipy chooses; p values are not
    corrected for their number.

    Returns:
        Rows of `figure`, `condition`, `clips`, `mean`, `low`, `high` (95 %), `larger` (share of the clips whose value
        grew), and `p`, none where too few clips differ.

    Raises:
        ValueError: if they have no clip in common, or a clip of the same number is another one.
    """
    shared = sorted(set(before) & set(after))
    if not shared:
        raise ValueError("the two results have no clip in common")
    if different := [clip for clip in shared if before[clip]["identity"]["row"] != after[clip]["identity"]["row"]]:
        raise ValueError(f"clip {different[0]} is not the same in the two results: they are of different manifests")
    found = []
    for column in COLUMNS:
        for condition in (ALL, *CONDITIONS):
            clips = [c for c in shared if condition in (ALL, before[c]["condition"])]
            values = np.array(
                [
                    (before[c][column.key], after[c][column.key])
                    for c in clips
                    if column.key in before[c] and column.key in after[c]
                ],
                dtype=np.float64,
            )
            if not len(values):
                continue
            change = values[:, 1] - values[:, 0]
            low, high = mean_interval(list(change))
            testable = np.count_nonzero(change) >= LEAST_CLIPS
            found.append(
                {
                    "figure": column.title,
                    "condition": condition,
                    "clips": len(change),
                    "mean": float(change.mean()),
                    "low": low,
                    "high": high,
                    "larger": float(np.mean(change > 0)),
                    "p": float(wilcoxon(change).pvalue) if testable else None,
                }
            )
    return found


def markdown(rows: Sequence[Mapping[str, Any]], before: str, after: str) -> str:
    header = ["Figure", "Condition", "Clips", "Change [95 %]", "Larger in", "p (Wilcoxon)"]
    cells = [
        [
            row["figure"],
            row["condition"],
            str(row["clips"]),
            f"{row['mean']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]",
            f"{100 * row['larger']:.0f} %",
            "-" if row["p"] is None else f"{row['p']:.2g}",
        ]
        for row in rows
    ]
    return "\n".join([f"# {after} against {before}", "", *markdown_table(header, cells), ""])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m training.compare", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("before", type=Path, help="output folder of training.evaluate")
    parser.add_argument("after", type=Path, help="another one, or the same")
    parser.add_argument("--system", nargs="+", default=["faithful"], help="one name for both, or one for each")
    parser.add_argument("--out", type=Path, help="write the table here as well")
    options = parser.parse_args(argv)
    try:
        if len(options.system) > 2:
            raise ValueError("--system takes one name or two")
        names = options.system[0], options.system[-1]
        rows = paired(read_clips(options.before, names[0]), read_clips(options.after, names[1]))
        text = markdown(rows, f"{options.before.name}/{names[0]}", f"{options.after.name}/{names[1]}")
        if options.out:
            options.out.write_text(text, encoding="utf-8")
    except (ValueError, OSError) as error:
        print(f"compare: {error}", file=sys.stderr)
        return 1
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
