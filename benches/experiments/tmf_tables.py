"""Prints what the answers on a fixed shelf are worth, from the *.SCORING.json files of a folder.

usage: tmf_tables.py RUNS_FOLDER
"""
import json
import pathlib
import re
import statistics
import sys

METRICS = ["hit@1", "valid@1", "hit_valid@1", "mrr@10", "ndcg@5"]


def cell(values):
    values = [v for v in values if v is not None]
    if not values:
        return "-"
    mean = statistics.fmean(values)
    return f"{mean:.3f}" + (f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else "")


def main(folder):
    groups = {}
    for path in sorted(folder.glob("*.json")):
        match = re.fullmatch(r"(.+?)(?:-\d+)?\.(vector|likelihood|label|free|trie)\.json", path.name)
        if match:
            metrics = json.loads(path.read_text())["metrics"]
            groups.setdefault(match.groups(), []).append(metrics)
    print("| run | scored by | seeds | " + " | ".join(METRICS) + " |")
    print("|---|---|--:|" + "--:|" * len(METRICS))
    for (name, scoring), rows in groups.items():
        cells = " | ".join(cell([r.get(m) for r in rows]) for m in METRICS)
        print(f"| {name} | {scoring} | {len(rows)} | {cells} |")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
