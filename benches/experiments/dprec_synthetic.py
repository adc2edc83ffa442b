"""Prints the table of DPRec's synthetic acceptance as Markdown: mean ± sample deviation over seeds,
and which of the expected relations hold.

usage: dprec_synthetic.py RUNS_FOLDER
"""
import datetime
import json
import os
import pathlib
import statistics
import sys
import tomllib

ROWS = {
    "A0": "full", "A1": "poor encoder", "A2": "memory only", "A3": "expansion only",
    "A4": "product with behaviour", "A5": "without item level", "A6": "without concepts",
    "A7": "without interests", "A8": "pairwise contrast only", "A9": "plain mean of perspectives",
    "A10": "no whitening", "A11": "no alignment", "lightgcn": "LightGCN",
}
SLICES = {"all": None, "warm": "items:>5", "cold": "items:0-2"}
PROBES = {"margin": "modality_margin", "NMI concepts": "nmi_concepts", "NMI clusters": "nmi_clusters",
          "entropy": "concept_entropy"}


def machine():
    """The processor's name and number of cores."""
    with open("/proc/cpuinfo") as f:
        names = [l.split(":", 1)[1].strip() for l in f if l.startswith("model name")]
    return f"{os.cpu_count()}-core {names[0] if names else 'machine'}"


def measure(folder):
    report = json.loads((folder / "report.json").read_text())
    sliced = json.loads((folder.parent / f"{folder.name}.run.json").read_text())
    lines = [json.loads(l) for l in (folder / "metrics.jsonl").read_text().splitlines()]
    best = next(l for l in lines if l["epoch"] == report["best_epoch"])
    out = {f"ndcg {k}": (sliced["metrics"] if s is None else sliced["slices"][s]["metrics"])["ndcg@20"]
           for k, s in SLICES.items()}
    out["recall all"] = sliced["metrics"]["recall@20"]
    for label, key in PROBES.items():
        if key in best["losses"]:
            out[label] = best["losses"][key]
    out["epoch"] = report["best_epoch"]
    out["CPU s/epoch"] = report["cpu_seconds_per_epoch"]
    return out


def main(runs):
    table = {}
    for name in ROWS:
        found = [measure(f) for f in sorted(runs.glob(f"{name}-*")) if (f / "report.json").exists()]
        if found:
            table[name] = {k: [f[k] for f in found] for k in found[0]}
    mean = lambda n, k: statistics.fmean(table[n][k])
    std = lambda n, k: statistics.stdev(table[n][k]) if len(table[n][k]) > 1 else 0.0

    columns = ["ndcg all", "ndcg warm", "ndcg cold", "recall all", *PROBES, "epoch", "CPU s/epoch"]
    print(f"# DPRec on a synthetic set with known structure, {datetime.date.today()}\n")
    print("`benches/experiments/dprec_synthetic.sh`: test rows at cut-off 20, mean ± sample deviation over")
    seeds = max(len(v["epoch"]) for v in table.values())
    print(f"{seeds} seeds, epoch chosen on validation. Warm items have more than 5 training rows, cold ones at most 2.")
    print(f"On a {machine()}.")
    with open(runs / "A0-1" / "config.toml", "rb") as f:
        config = tomllib.load(f)
    settings = {**{f"train.{k}": v for k, v in config["train"].items()}, **config["params"]}
    print("Settings of A0: " + ", ".join(f"`{k}={v}`" for k, v in settings.items()) + ".\n")
    print("| | run | " + " | ".join(columns) + " |")
    print("|---|---|" + "--:|" * len(columns))
    for name, label in ROWS.items():
        if name not in table:
            continue
        cells = []
        for c in columns:
            if c not in table[name]:
                cells.append("–")
            elif c in ("epoch", "CPU s/epoch"):
                cells.append(f"{mean(name, c):.1f}")
            else:
                cells.append(f"{mean(name, c):.4f} ± {std(name, c):.4f}")
        print(f"| {name} | {label} | " + " | ".join(cells) + " |")

    print("\n## Expected relations\n")
    print("| relation | left | right | holds |\n|---|--:|--:|---|")

    def row(text, left, right, holds):
        print(f"| {text} | {left:.4f} | {right:.4f} | {'yes' if holds else '**no**'} |")

    def better(a, b, column, text):
        if a in table and b in table and column in table[a] and column in table[b]:
            margin = 2 * max(std(a, column), std(b, column))
            x, y = mean(a, column), mean(b, column)
            row(f"{text}, by more than 2 deviations", x, y, x - y > margin)

    def at_least(a, b, column, text, slack=0.0):
        if a in table and b in table:
            x, y = mean(a, column), mean(b, column)
            row(text, x, y, x >= y * (1 - slack))

    for other in ("A1", "A4", "A8", "A11"):
        better("A0", other, "ndcg all", f"A0 > {other}, all items")
    at_least("A2", "A3", "ndcg warm", "A2 ≥ A3, warm items")
    at_least("A3", "A2", "ndcg cold", "A3 ≥ A2, cold items")
    for part in SLICES:
        for other in ("A2", "A3"):
            at_least("A0", other, f"ndcg {part}", f"A0 ≥ {other} − 1 %, {part} items", 0.01)
    at_least("A0", "A5", "margin", "A0 ≥ A5, cosine margin of an item's modalities")
    at_least("A0", "A6", "NMI clusters", "A0 ≥ A6, mutual information of item clusters and true groups")
    at_least("A0", "A7", "recall all", "A0 ≥ A7, recall@20")
    at_least("A0", "lightgcn", "ndcg all", "A0 ≥ LightGCN, all items")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]))
