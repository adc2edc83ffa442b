"""Prints the tables of an experiment folder as Markdown: mean ± sample deviation over seeds.

usage: tables.py RUNS_FOLDER [METRIC]...
"""
import json
import pathlib
import re
import statistics
import sys

METRICS = ["recall@20", "ndcg@20"]


def load(path):
    return json.loads(path.read_text()) if path.exists() else None


def cell(values):
    values = [v for v in values if v is not None]
    if not values:
        return "-"
    mean = statistics.fmean(values)
    if len(values) == 1:
        return f"{mean:.4f}"
    return f"{mean:.4f} ± {statistics.stdev(values):.4f}"


def main(folder, metrics):
    groups = {}
    for report in sorted(folder.glob("*/report.json")):
        name = re.sub(r"-\d+$", "", report.parent.name)
        groups.setdefault(name, []).append(report.parent)
    names = " | ".join(metrics)
    print(f"| run | seeds | selected on | {names} | cold recall@20 | CPU s/epoch | peak MB |")
    print("|---|--:|---|" + "--:|" * (len(metrics) + 3))
    for name, runs in groups.items():
        reports = [load(r / "report.json") for r in runs]
        rows = [("", reports[0]["selected_on"], [r["test"] for r in reports])]
        honest = [r["selected_on_valid"]["test"] for r in reports if r.get("selected_on_valid")]
        if honest:
            rows.append((" (same runs)", "valid", honest))
        colds = []
        for r in runs:
            evaluated = load(r.parent / f"{r.name}.run.json")
            part = (evaluated or {}).get("slices", {}).get("items:cold")
            colds.append(part["metrics"]["recall@20"] if part else None)
        bundles = [load(r.parent / f"{r.name}.bundle.json") for r in runs]
        bundles = [b for b in bundles if b]
        if bundles:
            rows.append((" as int8 bundle", "valid", [b["metrics"] for b in bundles]))
        cpu = cell([r["cpu_seconds_per_epoch"] for r in reports])
        peak = max(r["peak_rss_mb"] or 0 for r in reports)
        for suffix, on, measured in rows:
            values = " | ".join(cell([m.get(k) for m in measured]) for k in metrics)
            print(f"| {name}{suffix} | {len(measured)} | {on} | {values} | {cell(colds)} | {cpu} | {peak:.0f} |")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]), sys.argv[2:] or METRICS)
