"""Evaluates a bundle and draws its figures, step by step as in a notebook.

    python evaluate.py BUNDLE [DATA] [--out figures.svg]

DATA is a data set folder with interactions.csv. Without it the histories are made up: each
"user" has seen a few items of one category and is expected to want others of it.

Needs the package `tercet` (bindings/python) and numpy; the figures are written as SVG by hand, so
that no plotting library is needed.
"""

# %% What is in the bundle?
from __future__ import annotations

import argparse
from html import escape

import numpy as np

import tercet

arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
arguments.add_argument("bundle")
arguments.add_argument("data", nargs="?")
arguments.add_argument("--out", default="figures.svg")
options = arguments.parse_args()

bundle = tercet.open(options.bundle, verify=True)
print(bundle.info)
vectors = bundle.vectors()
norms = np.linalg.norm(vectors, axis=1)
print(f"vectors {vectors.shape}, norms {norms.min():.3f} to {norms.max():.3f}")

# %% Who is asked, and what should come out?
if options.data:
    split = tercet.read_split(options.data)
    histories, targets = split.histories, split.targets
else:
    column = bundle.info.attributes[0]
    groups: dict[str, list[str]] = {}
    for key, values in zip(bundle.keys(), bundle.attribute(column)):
        for value in values[:1]:
            groups.setdefault(value, []).append(key)
    rng = np.random.default_rng(0)
    histories, targets = [], []
    for items in groups.values():
        for _ in range(50):
            chosen = [str(i) for i in rng.permutation(items)]
            histories.append(chosen[:3])
            targets.append(chosen[3:])
print(f"{len(histories)} users")

# %% How good is it, by length of the list, and beside popularity?
lengths = (1, 2, 5, 10, 20)
measured = tercet.evaluate(bundle, histories, targets, k=lengths)
for name in ("recall", "ndcg", "hit", "coverage"):
    print(name, *(f"@{k} {measured[f'{name}@{k}']:.4f}" for k in lengths), sep="  ")

popularity = bundle.popularity()
popular = {}
if popularity is not None:
    keys = bundle.keys()
    order = [keys[place] for place in np.argsort(-popularity, kind="stable").tolist()]
    for k in lengths:
        shares = []
        for history, wanted in zip(histories, targets):
            best = [key for key in order if key not in set(history)][:k]
            shares.append(len(set(best) & set(wanted)) / len(set(wanted)))
        popular[k] = float(np.mean(shares))
    print("recall of popularity", *(f"@{k} {popular[k]:.4f}" for k in lengths), sep="  ")

# %% Figures: recall by length, and the spread of scores.
users = bundle.encode(histories[:200])
scores = bundle.search(users, min(50, len(bundle)))[1]
spread = np.median(scores, axis=0)


def chart(x0: int, title: str, xs: list[float], series: dict[str, list[float]]) -> str:
    low = min(0.0, *(min(ys) for ys in series.values()))
    high = max(max(ys) for ys in series.values()) or 1.0
    out = [f'<text x="{x0}" y="20" font-weight="bold">{escape(title)}</text>']
    out.append(f'<rect x="{x0}" y="30" width="300" height="200" fill="none" stroke="#999"/>')
    for (name, ys), color, at in zip(series.items(), ("#1565c0", "#c62828"), (250, 266)):
        points = " ".join(
            f"{x0 + 300 * (x - xs[0]) / (xs[-1] - xs[0]):.1f},{230 - 200 * (y - low) / (high - low):.1f}"
            for x, y in zip(xs, ys)
        )
        out.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="2"/>')
        label = f"{name}: {ys[0]:.3f} to {ys[-1]:.3f}"
        out.append(f'<text x="{x0}" y="{at}" fill="{color}">{escape(label)}</text>')
    return "\n".join(out)


recall = {"this bundle": [measured[f"recall@{k}"] for k in lengths]}
if popular:
    recall["popularity"] = [popular[k] for k in lengths]
with open(options.out, "w", encoding="utf-8") as file:
    file.write('<svg xmlns="http://www.w3.org/2000/svg" width="700" height="280" ')
    file.write('font-family="sans-serif" font-size="13">\n<rect width="700" height="280" fill="white"/>\n')
    file.write(chart(20, "recall by length of the list", [float(k) for k in lengths], recall))
    ranks = [float(i + 1) for i in range(len(spread))]
    file.write(chart(370, "median score by rank", ranks, {"score": [float(s) for s in spread]}))
    file.write("\n</svg>\n")
print(f"figures in {options.out}")
