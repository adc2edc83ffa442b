#!/usr/bin/env python3
"""Item vectors of a catalogue of any size, by the fusion tower of a bundle.

    spark-submit --py-files shards.py embed_catalogue.py \\
        --catalogue items.parquet --bundle shop.tercet --out shards
    tercet export --student RUN --data DATA --shards shards --out large.tercet

The catalogue is Parquet with a column `row` (0, 1, 2, ... in the order of the table), `item_id`, and
a column of number arrays for each modality in the bundle's manifest; null, or no such column, where
an item lacks the modality. Rows are cut into shards by their number alone, so neither the number of
executors nor a lost one changes a byte. Run again, it makes only the shards that are missing.

The folders must be reachable from every executor. Wants pyspark, pandas, pyarrow, numpy and
onnxruntime there.
"""

import argparse
import hashlib
import json
import os

import numpy as np

import shards

# One tower in each Python worker, which serves many tasks.
_sessions = {}


def session(path):
    if path not in _sessions:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        # Spark runs as many tasks as there are cores.
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        _sessions[path] = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
    return _sessions[path]


class Tower:
    """The fusion tower of a bundle; small enough to be sent to executors."""

    def __init__(self, bundle, batch=256):
        with open(os.path.join(bundle, "manifest.json"), encoding="utf-8") as file:
            manifest = json.load(file)
        if not manifest["engine"].get("fusion_tower"):
            raise SystemExit(f"{bundle} has no fusion tower")
        self.path = os.path.abspath(os.path.join(bundle, manifest["engine"]["fusion_tower"]))
        self.dim = manifest["dim"]
        self.modalities = [(m["name"], m["dim"]) for m in manifest["modalities"]]
        # Matrix products may round otherwise for another number of rows: it is always this one.
        self.batch = batch
        with open(self.path, "rb") as file:
            self.digest = hashlib.sha256(file.read()).hexdigest()

    def encode(self, columns):
        """Vectors [n, D] of a table of items: a dict from modality to a list of arrays or None."""
        n = len(next(iter(columns.values())))
        vectors = np.empty((n, self.dim), np.float32)
        for start in range(0, n, self.batch):
            count = min(self.batch, n - start)
            present = np.zeros((self.batch, len(self.modalities)), np.float32)
            inputs = {"present": present}
            for m, (name, dim) in enumerate(self.modalities):
                values = np.zeros((self.batch, dim), np.float32)
                for i, x in enumerate(columns[name][start : start + count]):
                    if x is None:
                        continue
                    if len(x) != dim or not np.isfinite(x).all():
                        raise ValueError(
                            f"row {start + i} of a shard: {name} has {len(x)} values,"
                            f" expected {dim} finite ones"
                        )
                    values[i], present[i, m] = x, 1
                inputs[name] = values
            (output,) = session(self.path).run(["item_vector"], inputs)
            vectors[start : start + count] = output[:count]
        return vectors


def write_shard(tower, folder, plan, part, rows, keys, columns):
    """Embeds the items of one shard and writes it."""
    items, size = plan["items"], plan["rows"]
    first = part * size
    if rows != list(range(first, min(first + size, items))):
        raise ValueError(f"`row` does not count the items of shard {part} from {first} on")
    facts = shards.facts(part, plan["parts"], first, items, tower.digest)
    shards.write(folder, facts, keys, tower.encode(columns))


def embed(tower, folder, plan):
    """What an executor does with a partition, which is sorted by row: a shard after another."""

    def run(batches):
        import pandas

        part, rows, keys, columns = None, [], [], {name: [] for name, _ in tower.modalities}

        def flush():
            write_shard(tower, folder, plan, part, rows, keys, columns)
            done = pandas.DataFrame({"part": [part], "items": [len(rows)]})
            for values in (rows, keys, *columns.values()):
                values.clear()
            return done

        for frame in batches:
            for value, group in frame.groupby("part", sort=True):
                if part is not None and value != part:
                    yield flush()
                part = int(value)
                rows.extend(group["row"].tolist())
                keys.extend(group["item_id"].tolist())
                for name, values in columns.items():
                    values.extend(group[name] if name in group else [None] * len(group))
        if part is not None:
            yield flush()

    return run


def finished(folder, plan, model):
    """Parts that are there already; those of another job are an error."""
    done = []
    for file in os.listdir(folder):
        if file.startswith((".", "_")):
            continue
        facts = shards.read_metadata(os.path.join(folder, file))
        part = int(facts.get("part", -1))
        first = part * plan["rows"]
        if facts != shards.facts(part, plan["parts"], first, plan["items"], model):
            raise SystemExit(f"{folder} holds {file} of another job: remove it, or take another one")
        done.append(part)
    return done


def run(spark, catalogue, tower, folder, size):
    """Writes all shards; the number of those written now."""
    from pyspark.sql import functions as f

    table = spark.read.parquet(catalogue)
    count = table.agg(f.count("row"), f.count("*"), f.min("row"), f.max("row")).first()
    items = count[1]
    if items == 0 or count[0] != items or count[2] != 0 or count[3] != items - 1:
        raise SystemExit("the column `row` must number the items from 0 without gaps")
    plan = {"items": items, "rows": size, "parts": -(-items // size)}
    # Executors have folders of their own to work in.
    folder = os.path.abspath(folder)
    os.makedirs(folder, exist_ok=True)
    done = finished(folder, plan, tower.digest)
    present = [f.col(name) for name, _ in tower.modalities if name in table.columns]
    part = f.floor(f.col("row") / size).cast("int")
    todo = table.select(f.col("row"), f.col("item_id"), part.alias("part"), *present)
    if done:
        todo = todo.where(~f.col("part").isin(done))
    left = plan["parts"] - len(done)
    if left == 0:
        return 0
    # Some shards to a task, several tasks to a core: little is lost with an executor.
    tasks = min(left, 8 * spark.sparkContext.defaultParallelism)
    todo = todo.repartition(tasks, "part").sortWithinPartitions("part", "row")
    made = todo.mapInPandas(embed(tower, folder, plan), "part int, items long").collect()
    lacking = set(range(plan["parts"])) - set(finished(folder, plan, tower.digest))
    if lacking:
        raise SystemExit(f"{len(lacking)} shards are missing, {min(lacking)} for one")
    return len(made)


def main():
    parser = argparse.ArgumentParser(description="item vectors of a catalogue, in shards")
    parser.add_argument("--catalogue", required=True, help="Parquet: row, item_id, modalities")
    parser.add_argument("--bundle", required=True, help="bundle whose fusion tower is to be run")
    parser.add_argument("--out", required=True, help="folder of shards")
    parser.add_argument("--rows", type=int, default=50_000, help="items in a shard")
    args = parser.parse_args()
    if args.rows < 1:
        parser.error("--rows must be positive")

    from pyspark.sql import SparkSession

    spark = SparkSession.builder.appName("embed catalogue").getOrCreate()
    try:
        made = run(spark, args.catalogue, Tower(args.bundle), args.out, args.rows)
        print(f"{made} shards written to {args.out}")
    finally:
        spark.stop()


if __name__ == "__main__":
    main()
