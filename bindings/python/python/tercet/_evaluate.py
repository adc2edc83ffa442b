"""Metrics of a bundle, computed on what a device would compute."""

from __future__ import annotations

import csv
import gzip
import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Sequence

import numpy as np
import numpy.typing as npt

from ._bundle import Bundle

_BATCH = 256


@dataclass
class Split:
    """Histories and what came after them, one entry per user."""

    users: list[str] = field(default_factory=list)
    histories: list[list[str]] = field(default_factory=list)
    behaviors: list[list[str]] = field(default_factory=list)
    targets: list[list[str]] = field(default_factory=list)


def read_split(folder: str | os.PathLike[str], split: str = "test") -> Split:
    """Reads a data set folder: targets from the lines of ``split`` in ``interactions.csv``
    (or ``.csv.gz``), histories from the parts before it (train, then valid).

    Users without a line of that split are left out.
    """
    parts = {"valid": ["train"], "test": ["train", "valid"]}
    if split not in parts:
        raise ValueError(f"split is {split!r}, expected 'valid' or 'test'")
    path = Path(folder) / "interactions.csv"
    if path.exists():
        text: io.TextIOBase = path.open(newline="", encoding="utf-8")
    else:
        text = io.TextIOWrapper(
            gzip.open(path.with_suffix(".csv.gz")), encoding="utf-8", newline=""
        )
    seen: dict[str, list[tuple[int, float, int, str, str]]] = {}
    wanted: dict[str, list[str]] = {}
    with text:
        for number, line in enumerate(csv.DictReader(text)):
            user, item, part = line["user_id"], line["item_id"], line["split"]
            if part == split:
                wanted.setdefault(user, []).append(item)
            elif part in parts[split]:
                time = float(line.get("timestamp") or line.get("position") or 0)
                entry = (parts[split].index(part), time, number, item, line.get("behavior") or "any")
                seen.setdefault(user, []).append(entry)
    out = Split()
    for user, targets in wanted.items():
        events = sorted(seen.get(user, []))
        out.users.append(user)
        out.targets.append(targets)
        out.histories.append([event[3] for event in events])
        out.behaviors.append([event[4] for event in events])
    return out


def evaluate(
    bundle: Bundle,
    histories: Sequence[Sequence[str]],
    targets: Sequence[Sequence[str]],
    *,
    k: Sequence[int] = (10, 20),
    behaviors: Sequence[Sequence[str]] | None = None,
    exclude_seen: bool = True,
    filter: str | None = None,
) -> dict[str, float]:
    """Ranks all items for each history and compares with what came after.

    Returns ``name@k`` for recall (share of a user's targets found), precision, ndcg (binary
    gains, ideal of ``min(k, targets)``), hit, mrr (reciprocal rank of the first hit within k)
    as means over users with targets, and coverage (share of all items shown to anybody).
    Targets that the bundle does not have count as missed.
    """
    if len(histories) != len(targets):
        raise ValueError(f"{len(histories)} histories, but {len(targets)} lists of targets")
    if not k or min(k) < 1:
        raise ValueError(f"k is {list(k)}, expected numbers from 1 on")
    users = [i for i, wanted in enumerate(targets) if wanted]
    if not users:
        raise ValueError("no user has a target")
    depth = min(max(k), len(bundle))
    discount = 1.0 / np.log2(np.arange(2, depth + 2))
    sums = {f"{name}@{n}": 0.0 for name in ("recall", "precision", "ndcg", "hit", "mrr") for n in k}
    shown = {n: np.zeros(len(bundle), dtype=bool) for n in k}
    for start in range(0, len(users), _BATCH):
        part = users[start : start + _BATCH]
        vectors = bundle.encode(
            [histories[i] for i in part],
            None if behaviors is None else [behaviors[i] for i in part],
        )
        exclude = [histories[i] for i in part] if exclude_seen else None
        rows, _ = bundle.search(vectors, depth, exclude=exclude, filter=filter)
        for i, best in zip(part, rows):
            wanted = set(targets[i])
            known = bundle.rows(sorted(wanted))
            found: npt.NDArray[np.bool_] = np.isin(best, known[known >= 0])
            for n in k:
                hits = found[:n]
                count = int(hits.sum())
                ideal = float(discount[: min(n, len(wanted))].sum())
                sums[f"recall@{n}"] += count / len(wanted)
                sums[f"precision@{n}"] += count / n
                sums[f"ndcg@{n}"] += float(discount[: len(hits)][hits].sum()) / ideal
                sums[f"hit@{n}"] += count > 0
                sums[f"mrr@{n}"] += 1.0 / (int(hits.argmax()) + 1) if count else 0.0
                shown[n][best[:n][best[:n] >= 0]] = True
    metrics = {name: total / len(users) for name, total in sums.items()}
    metrics.update({f"coverage@{n}": float(shown[n].mean()) for n in k})
    return metrics
