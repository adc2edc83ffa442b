#!/usr/bin/env python3
"""Recommendations for any number of users, from a bundle, as a batch job.

    spark-submit recommend.py --bundle shop.tercet --users users.parquet --out best.parquet -k 20

Users are Parquet with `user_id` and `history`, an array of item ids, oldest first. The result has
`user_id` and `items`, an array of (id, score), best first, without items of the history. The user
tower runs through onnxruntime, the item table is mapped and scanned in blocks for many users at
once. Items that the bundle does not know are passed over.

The bundle must be reachable from every executor, and its table int8, f16 or f32. Wants pyspark,
pandas, pyarrow, numpy and onnxruntime there.
"""

import argparse
import json
import os
import struct

import numpy as np

SCHEMA = "user_id string, items array<struct<id: string, score: float>>"

# Users of one pass over the table, and rows of the table that are decoded at a time.
USERS, ROWS = 256, 32768

# One bundle in each Python worker, which serves many tasks.
_bundles = {}


class Bundle:
    def __init__(self, path):
        import onnxruntime

        with open(os.path.join(path, "manifest.json"), encoding="utf-8") as file:
            self.manifest = json.load(file)
        self.dim, self.window = self.manifest["dim"], self.manifest["window"]
        scheme = self.manifest["table"]["scheme"]
        if scheme not in ("int8", "f16", "f32"):
            raise ValueError(f"a table of {scheme}; export it with --table int8, f16 or f32")
        tensors = self.map(os.path.join(path, "items.safetensors"))
        self.codes = tensors["codes"]
        self.scales, self.bias = tensors.get("scales"), tensors.get("bias")
        self.offsets, self.order = tensors["ids.offsets"], tensors["ids.order"]
        self.bytes = tensors["ids.bytes"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        tower = os.path.join(path, self.manifest["engine"]["user_tower"])
        self.tower = onnxruntime.InferenceSession(
            tower, options, providers=["CPUExecutionProvider"]
        )

    @staticmethod
    def map(path):
        """The tensors of a safetensors file, mapped: processes share them."""
        types = {"F32": "<f4", "F16": "<f2", "I8": "i1", "U8": "u1", "U32": "<u4", "U64": "<u8"}
        with open(path, "rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(size))
        header.pop("__metadata__", None)
        content = np.memmap(path, np.uint8, "r")
        tensors = {}
        for name, info in header.items():
            start, end = (8 + size + at for at in info["data_offsets"])
            tensors[name] = content[start:end].view(types[info["dtype"]]).reshape(info["shape"])
        return tensors

    def key(self, row):
        return bytes(self.bytes[self.offsets[row] : self.offsets[row + 1]])

    def find(self, item):
        """Row of an item by binary search, or None."""
        wanted, low, high = item.encode(), 0, len(self.order)
        while low < high:
            middle = (low + high) // 2
            if self.key(self.order[middle]) < wanted:
                low = middle + 1
            else:
                high = middle
        if low < len(self.order) and self.key(self.order[low]) == wanted:
            return int(self.order[low])
        return None

    def decode(self, rows):
        vectors = self.codes[rows].astype(np.float32)
        return vectors if self.scales is None else vectors * self.scales[rows][:, None]

    def vectors(self, histories):
        """User vectors [B, D] of lists of rows."""
        b, l = len(histories), self.window
        items = np.zeros((b, l, self.dim), np.float32)
        mask = np.zeros((b, l), np.float32)
        for i, rows in enumerate(histories):
            rows = rows[-l:]
            if rows:
                items[i, l - len(rows) :] = self.decode(np.array(rows))
                mask[i, l - len(rows) :] = 1
        inputs = {"items": items, "behaviors": np.zeros((b, l), np.int64), "mask": mask}
        return self.tower.run(["user_vector"], inputs)[0]

    def recommend(self, histories, k):
        """Rows and scores of the best k items for each list of rows."""
        users = self.vectors(histories)
        n = len(self.codes)
        seen = [np.unique(rows).astype(np.int64) for rows in histories]
        best = [(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in histories]
        for start in range(0, n, ROWS):
            rows = slice(start, min(start + ROWS, n))
            scores = users @ self.decode(rows).T
            if self.bias is not None:
                scores += self.bias[rows]
            for i, row in enumerate(scores):
                inside = seen[i][(seen[i] >= start) & (seen[i] < rows.stop)]
                row[inside - start] = -np.inf
                top = np.arange(len(row))
                if len(top) > k:
                    top = np.argpartition(-row, k - 1)[:k]
                ids = np.concatenate([best[i][0], top + start])
                values = np.concatenate([best[i][1], row[top]])
                # Ties go to the lower row.
                order = np.lexsort((ids, -values))[:k]
                best[i] = ids[order], values[order]
        return [(ids[np.isfinite(v)], v[np.isfinite(v)]) for ids, v in best]


def job(path, k):
    """What an executor does with its users."""

    def run(frames):
        import pandas

        if path not in _bundles:
            _bundles[path] = Bundle(path)
        bundle = _bundles[path]
        for frame in frames:
            for start in range(0, len(frame), USERS):
                part = frame.iloc[start : start + USERS]
                histories = []
                for items in part["history"]:
                    rows = [bundle.find(item) for item in (() if items is None else items)]
                    histories.append([row for row in rows if row is not None])
                lists = bundle.recommend(histories, k)
                items = [
                    [(bundle.key(row).decode(), float(score)) for row, score in zip(*found)]
                    for found in lists
                ]
                yield pandas.DataFrame({"user_id": part["user_id"].to_list(), "items": items})

    return run


def main():
    parser = argparse.ArgumentParser(description="recommendations for many users")
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--users", required=True, help="Parquet: user_id, history")
    parser.add_argument("--out", required=True, help="Parquet to write")
    parser.add_argument("-k", type=int, default=20)
    args = parser.parse_args()
    if args.k < 1:
        parser.error("-k must be positive")

    from pyspark.sql import SparkSession

    spark = SparkSession.builder.appName("recommend").getOrCreate()
    try:
        users = spark.read.parquet(args.users).select("user_id", "history")
        users = users.repartition(4 * spark.sparkContext.defaultParallelism)
        best = users.mapInPandas(job(os.path.abspath(args.bundle), args.k), SCHEMA)
        best.write.mode("error").parquet(args.out)
    finally:
        spark.stop()


if __name__ == "__main__":
    main()
