"""Prints what the answers on a fixed shelf are worth, from the *.SCORING.json files of a folder, and how often two
ways to score put the same item first, from the *.SCORING.lists beside them.

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
    print()
    print("| run | ways to score | seeds | same first item |")
    print("|---|---|--:|--:|")
    pairs = {}
    for path in sorted(folder.glob("*.label.lists")):
        name = path.name.removesuffix(".label.lists")
        for other in ("likelihood", "vector"):
            beside = folder / f"{name}.{other}.lists"
            if beside.is_file():
                key = (re.sub(r"-\d+$", "", name), f"label and {other}")
                pairs.setdefault(key, []).append(agreement(path, beside))
    for (name, ways), shares in pairs.items():
        print(f"| {name} | {ways} | {len(shares)} | {cell(shares)} |")


def agreement(one, other):
    """The share of queries for which both files have the same first item."""
    first = [[json.loads(line)["items"][:1] for line in path.read_text().splitlines()] for path in (one, other)]
    return statistics.fmean(a == b for a, b in zip(*first, strict=True))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
