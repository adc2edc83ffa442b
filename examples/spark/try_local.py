#!/usr/bin/env python3
"""Runs both jobs on a cluster of this machine and compares them with one process.

    python -m venv venv && venv/bin/pip install pyspark onnxruntime numpy 'pandas<3' pyarrow
    venv/bin/python try_local.py --bundle shop.tercet --items 1000000

The cluster has two executors of one core each. One of them is killed in the middle of the first
job; the shards must be those of one process, byte for byte, all the same. With `--tercet COMMAND`
the lists of the second job must be those that the SDK gives, item by item. Wants JDK 17 and Linux.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import embed_catalogue
import recommend
import shards


def features(tower, first, count):
    """Random features of some items; a tenth lacks one modality, and nobody has `graph`."""
    columns = {}
    for m, (name, dim) in enumerate(tower.modalities):
        if name == "graph":
            continue
        random = np.random.default_rng((m, first))
        values = random.standard_normal((count, dim), dtype=np.float32)
        absent = random.random(count) < 0.1 * m
        columns[name] = [None if gone else x for x, gone in zip(values, absent)]
    return columns


def write_catalogue(path, tower, items, keys, step=20_000):
    import pyarrow as pa
    import pyarrow.parquet as pq

    os.makedirs(path)
    for at, first in enumerate(range(0, items, step)):
        count = min(step, items - first)
        columns = {
            "row": pa.array(range(first, first + count), pa.int64()),
            "item_id": pa.array(keys(first, count)),
        }
        for name, values in features(tower, first, count).items():
            columns[name] = pa.array(values, pa.list_(pa.float32()))
        pq.write_table(pa.table(columns), os.path.join(path, f"{at:05}.parquet"))


def one_process(path, tower, folder, plan):
    """The same shards without Spark."""
    import pyarrow.parquet as pq

    os.makedirs(folder)
    table = {}
    for file in sorted(os.listdir(path)):
        part = pq.read_table(os.path.join(path, file))
        for name in part.column_names:
            values = part.column(name).to_pylist() if name in ("row", "item_id") else [
                None if x.values is None else np.asarray(x.values) for x in part.column(name)
            ]
            table.setdefault(name, []).extend(values)
        while len(table["row"]) >= plan["rows"]:
            flush(table, tower, folder, plan, plan["rows"])
    if table["row"]:
        flush(table, tower, folder, plan, len(table["row"]))


def flush(table, tower, folder, plan, count):
    head = {name: values[:count] for name, values in table.items()}
    for values in table.values():
        del values[:count]
    columns = {name: head.get(name, [None] * count) for name, _ in tower.modalities}
    part = head["row"][0] // plan["rows"]
    embed_catalogue.write_shard(tower, folder, plan, part, head["row"], head["item_id"], columns)


def descendants():
    """Process ids and command lines below this process."""
    parents, commands = {}, {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/stat") as file:
                parents[int(pid)] = int(file.read().rsplit(")", 1)[1].split()[1])
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                commands[int(pid)] = file.read().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
    found, below = [], {os.getpid()}
    while True:
        more = {p for p, parent in parents.items() if parent in below} - below
        if not more:
            return found
        below |= more
        found.extend((p, commands.get(p, "")) for p in more)


def kill_an_executor(folder, wanted, log):
    """Waits for some shards, then kills one executor of our own cluster."""
    while not log.get("stop"):
        made = [f for f in os.listdir(folder)] if os.path.isdir(folder) else []
        if len([f for f in made if not f.startswith(".")]) >= wanted:
            executors = [p for p, c in descendants() if "CoarseGrainedExecutorBackend" in c]
            if executors:
                os.kill(executors[0], signal.SIGKILL)
                log["killed"] = executors[0]
                log["shards"] = len(made)
                return
        time.sleep(0.05)


def digests(folder):
    out = {}
    for file in sorted(os.listdir(folder)):
        if not file.startswith("."):
            with open(os.path.join(folder, file), "rb") as content:
                out[file] = hashlib.sha256(content.read()).hexdigest()
    return out


def by_the_sdk(tercet, bundle, history, k):
    """(id, score) of the best k items, best first, by the command `tercet`."""
    command = [tercet, "recommend", "--bundle", bundle, "--history", ",".join(history), "-k", str(k), "--json"]
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        raise SystemExit(done.stderr.decode())
    return [(x["id"], x["score"]) for x in json.loads(done.stdout)["items"]]


def same_list(got, wanted, near=1e-4):
    """Whether both have the same scores place by place, and the same item at each place but among
    items whose scores are as near as that, which may have changed places, the last one also with
    an item that is no longer listed."""
    if len(got) != len(wanted):
        return False
    scores, last = dict(wanted), wanted[-1][1] if wanted else 0.0
    for (item, score), (other, expected) in zip(got, wanted):
        if abs(score - expected) > near:
            return False
        if item != other and abs(scores.get(item, last) - score) > near:
            return False
    return True


def main():
    parser = argparse.ArgumentParser(description="the jobs on a local cluster, against one process")
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--rows", type=int, default=25_000)
    parser.add_argument("--users", type=int, default=2_000)
    parser.add_argument("--keys", help="file of item ids to begin with, one a line")
    parser.add_argument("--tercet", help="the command, whose lists must be the same")
    parser.add_argument("--work", help="folder to keep; a temporary one when absent")
    args = parser.parse_args()
    work = args.work or tempfile.mkdtemp(prefix="tercet-spark-")
    os.makedirs(work, exist_ok=True)
    tower = embed_catalogue.Tower(args.bundle)
    catalogue = os.path.join(work, "items.parquet")
    first_keys = []
    if args.keys:
        with open(args.keys, encoding="utf-8") as file:
            first_keys = file.read().split()

    def keys(first, count):
        return [
            first_keys[i] if i < len(first_keys) else f"new-{i}" for i in range(first, first + count)
        ]

    write_catalogue(catalogue, tower, args.items, keys)
    plan = {"items": args.items, "rows": args.rows, "parts": -(-args.items // args.rows)}
    print(f"{args.items} items in {plan['parts']} shards, work in {work}", flush=True)

    start = time.process_time(), time.monotonic()
    one = os.path.join(work, "one")
    one_process(catalogue, tower, one, plan)
    print(
        f"one process: {time.monotonic() - start[1]:.1f} s, {time.process_time() - start[0]:.1f} s of CPU",
        flush=True,
    )

    # Executors start their own Python, which looks for the modules here.
    os.environ["PYTHONPATH"] = HERE
    os.environ["PYSPARK_PYTHON"] = sys.executable
    from pyspark.sql import SparkSession

    spark = (
        SparkSession.builder.master("local-cluster[2,1,1024]")
        .config("spark.executor.memory", "900m")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.executorEnv.PYTHONPATH", HERE)
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", "2000")
        .config("spark.sql.adaptive.enabled", "false")
        .getOrCreate()
    )
    spark.sparkContext.setLogLevel("ERROR")
    many = os.path.join(work, "many")
    log = {}
    killer = threading.Thread(target=kill_an_executor, args=(many, plan["parts"] // 4, log))
    killer.start()
    begun = time.monotonic()
    try:
        made = embed_catalogue.run(spark, catalogue, tower, many, args.rows)
    finally:
        log["stop"] = True
        killer.join()
    print(f"cluster: {time.monotonic() - begun:.1f} s, {made} shards, {log}", flush=True)
    assert "killed" in log, "no executor was killed"
    assert digests(one) == digests(many), "the cluster's shards differ"
    print("the shards are equal, byte for byte", flush=True)
    # Some shards are lost: only those are made again.
    lost = [shards.name(p, plan["parts"]) for p in (0, plan["parts"] - 1)]
    for file in lost:
        os.remove(os.path.join(many, file))
    assert embed_catalogue.run(spark, catalogue, tower, many, args.rows) == len(set(lost))
    assert digests(one) == digests(many)
    print(f"{len(set(lost))} lost shards were made again", flush=True)

    bundle = recommend.Bundle(args.bundle)
    random = np.random.default_rng(1)
    count = len(bundle.order)
    known = [bundle.key(row).decode() for row in range(count)]
    users = [
        {"user_id": f"u{i}", "history": [known[j] for j in random.integers(0, count, i % 9)] + ["?"]}
        for i in range(args.users)
    ]
    out = os.path.join(work, "best.parquet")
    shutil.rmtree(out, ignore_errors=True)
    begun = time.monotonic()
    frame = spark.createDataFrame(users, "user_id string, history array<string>").repartition(8)
    job = recommend.job(os.path.abspath(args.bundle), 10)
    frame.mapInPandas(job, recommend.SCHEMA).write.parquet(out)
    print(f"recommend: {args.users} users in {time.monotonic() - begun:.1f} s", flush=True)
    got = {row["user_id"]: row["items"] for row in spark.read.parquet(out).collect()}
    assert len(got) == len(users)
    for user in users[:100]:
        rows = [bundle.find(item) for item in user["history"]]
        rows = [row for row in rows if row is not None]
        ((ids, scores),) = bundle.recommend([rows], 10)
        items = got[user["user_id"]]
        assert np.allclose([x["score"] for x in items], scores, atol=1e-4)
        assert not {x["id"] for x in items} & set(user["history"])
        assert len(items) == min(10, count - len(set(rows)))
    with open(os.path.join(work, "sample.json"), "w", encoding="utf-8") as file:
        best = {u["user_id"]: [x["id"] for x in got[u["user_id"]]] for u in users[:20]}
        json.dump({"users": users[:20], "best": best}, file)
    print("the lists are those of one process")
    if args.tercet:
        exact = 0
        for user in users:
            items = [(x["id"], x["score"]) for x in got[user["user_id"]]]
            wanted = by_the_sdk(args.tercet, args.bundle, user["history"], 10)
            assert same_list(items, wanted), f"{user}: {items}, by the SDK {wanted}"
            exact += [item for item, _ in items] == [item for item, _ in wanted]
        print(f"the lists are the SDK's: {exact} of {len(users)} in the very order, the others but for ties")
    spark.stop()
    if not args.work:
        shutil.rmtree(work)


if __name__ == "__main__":
    main()
