#!/usr/bin/env python3
"""Split a data set folder anew: of every user, the last tenth of the items met is test, the tenth
before it validation.

    temporal_split.py FROM TO

FROM needs a timestamp per row; a row without one (-1) is its user's last. What counts is when a user
first met an item, so that a later cart or purchase of the same item does not move the cut. Users with
fewer than three items are all training. Everything but the split stays as it is.
"""
import csv
import gzip
import shutil
import sys
from collections import defaultdict
from pathlib import Path


def main(source: Path, target: Path) -> None:
    with gzip.open(source / "interactions.csv.gz", "rt", newline="") as f:
        rows = list(csv.DictReader(f))
    users = defaultdict(list)
    for at, row in enumerate(rows):
        time = int(row["timestamp"])
        key = (time if time >= 0 else float("inf"), int(row.get("position") or 0), at)
        users[row["user_id"]].append((key, row))
    target.mkdir(parents=True)
    with gzip.open(target / "interactions.csv.gz", "wt", newline="") as f:
        columns = [c for c in rows[0] if c not in ("position", "split")] + ["position", "split"]
        out = csv.DictWriter(f, columns)
        out.writeheader()
        for events in users.values():
            events.sort(key=lambda e: e[0])
            met = {}
            for position, (_, row) in enumerate(events):
                met.setdefault(row["item_id"], position)
            firsts = sorted(met.values())
            held = max(1, round(len(firsts) / 10))
            if len(firsts) < 3:
                valid = test = len(events)
            else:
                valid, test = firsts[-2 * held], firsts[-held]
            for position, (_, row) in enumerate(events):
                row["position"] = position
                row["split"] = "train" if position < valid else "valid" if position < test else "test"
                out.writerow(row)
    for name in ("items.csv.gz", "users.csv.gz"):
        if (source / name).exists():
            shutil.copy(source / name, target)
    if (source / "features").is_dir():
        shutil.copytree(source / "features", target / "features")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
