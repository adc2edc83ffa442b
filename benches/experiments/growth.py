"""Measures commands, makes shards of many items, and tells how costs grow; see growth.sh.

usage: growth.py measure OUT.json COMMAND…     CPU seconds and peak memory of a command
       growth.py pressed OUT.json MIB FOLDER… -- COMMAND…
                                               the same in a control group of so much memory, once
                                               the folders' files are out of the page cache
       growth.py groups                        whether there are control groups to make
       growth.py shards ITEMS.csv N FOLDER [BUNDLE]
                                               vectors of N items, the first of them a shop's: random
                                               ones, or around those of a bundle
       growth.py report RUNS_FOLDER PLOT.svg   prints the tables, writes the plot
"""
import json
import math
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import threading
import time

SHARD_ROWS = 250_000
DIM = 64


def peaks(pid, seen, stop):
    """Follows the anonymous memory of a process, 50 times a second, until it ends."""
    while not stop.wait(0.02):
        try:
            with open(f"/proc/{pid}/status") as status:
                for line in status:
                    if line.startswith("RssAnon:"):
                        seen[0] = max(seen[0], int(line.split()[1]) * 1024)
        except OSError:
            return


class Group:
    """A control group that bounds the memory of its processes, pages of files included."""

    def __init__(self, limit):
        self.limit = limit
        root, self.v2 = self.root()
        self.path = os.path.join(root, f"tercet-growth-{os.getpid()}")
        os.mkdir(self.path)
        self.set("memory.max" if self.v2 else "memory.limit_in_bytes", limit)
        # Where there is swap, it would be more memory.
        swap = "memory.swap.max" if self.v2 else "memory.memsw.limit_in_bytes"
        if os.path.exists(os.path.join(self.path, swap)):
            self.set(swap, 0 if self.v2 else limit)

    @staticmethod
    def root():
        """Where groups with a memory limit can be made, and whether that is version 2."""
        if os.access("/sys/fs/cgroup/memory/memory.limit_in_bytes", os.R_OK):
            if os.access("/sys/fs/cgroup/memory", os.W_OK):
                return "/sys/fs/cgroup/memory", False
        try:
            with open("/sys/fs/cgroup/cgroup.subtree_control") as controllers:
                if "memory" in controllers.read().split() and os.access("/sys/fs/cgroup", os.W_OK):
                    return "/sys/fs/cgroup", True
        except OSError:
            pass
        raise LookupError("no control groups for memory that may be made here")

    def set(self, name, value):
        with open(os.path.join(self.path, name), "w") as file:
            file.write(str(value))

    def get(self, name):
        try:
            with open(os.path.join(self.path, name)) as file:
                return file.read()
        except OSError:
            return ""

    def join(self):
        """For the new process, before it becomes the command."""
        self.set("cgroup.procs", os.getpid())

    def peak(self):
        """The most that the group held: the limit, if it was felt."""
        return int(self.get("memory.peak" if self.v2 else "memory.max_usage_in_bytes") or 0)


def drop(folder):
    """Takes the files of a folder out of the page cache: who reads them next is charged."""
    os.sync()
    for name in os.listdir(folder):
        with open(os.path.join(folder, name), "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def pressed(out, limit, folders, command):
    for folder in folders:
        drop(folder)
    group = Group(limit)
    try:
        measure(out, command, group)
    finally:
        os.rmdir(group.path)


def measure(out, command, group=None):
    """Runs a command; OUT.json gets its costs and what it printed, only if it succeeded."""
    seen, stop = [0], threading.Event()
    with tempfile.TemporaryFile() as answer:
        begun = time.monotonic()
        process = subprocess.Popen(command, stdout=answer, preexec_fn=group and group.join)
        watch = threading.Thread(target=peaks, args=(process.pid, seen, stop))
        watch.start()
        code = process.wait()
        seconds = time.monotonic() - begun
        stop.set()
        watch.join()
        if code:
            sys.exit(code)
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        answer.seek(0)
        text = answer.read().decode()
    result = {
        "command": command,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "peak_rss_bytes": used.ru_maxrss * 1024,
        "peak_anonymous_bytes": seen[0],
        "answer": json.loads(text) if text.strip() else None,
    }
    if group:
        result.update(
            limit_mib=group.limit >> 20,
            group_peak_bytes=group.peak(),
            seconds=seconds,
            read_bytes=used.ru_inblock * 512,
        )
    partial = out + ".partial"
    pathlib.Path(partial).write_text(json.dumps(result, indent=1) + "\n")
    os.replace(partial, out)


def make_shards(catalogue, items, folder, bundle=None):
    """A shard at a time: random vectors or, with a bundle whose table is in f32, its own vectors and
    further ones around them (cosine about 0.8). Random vectors have nothing to say about partitions,
    and no user is near any of them."""
    import numpy as np

    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "examples" / "spark"))
    import shards

    with open(catalogue) as lines:
        next(lines)
        known = [line.split(",", 1)[0] for line in lines]
    own = None if bundle is None else table_of(bundle)
    os.makedirs(folder, exist_ok=True)
    parts = -(-items // SHARD_ROWS)
    for part in range(parts):
        if os.path.exists(os.path.join(folder, shards.name(part, parts))):
            continue
        first = part * SHARD_ROWS
        rows = range(first, min(first + SHARD_ROWS, items))
        keys = [known[row] if row < len(known) else f"more-{row:09}" for row in rows]
        random = np.random.default_rng(part)
        vectors = random.standard_normal((len(rows), DIM), dtype="f4")
        if own is not None:
            near = own[random.integers(len(own), size=len(rows))]
            vectors = near + vectors * 0.75 * np.linalg.norm(near, axis=1, keepdims=True) / DIM**0.5
            there = max(0, min(len(own) - first, len(rows)))
            vectors[:there] = own[first : first + there]
        facts = shards.facts(part, parts, first, items, "vectors of growth.py")
        shards.write(folder, facts, keys, vectors.astype("f4"))


def table_of(bundle):
    """`[N, D]`: the item vectors of a bundle whose table is in f32."""
    import numpy as np

    raw = (pathlib.Path(bundle) / "items.safetensors").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    codes = json.loads(raw[8 : 8 + size])["codes"]
    if codes["dtype"] != "F32":
        sys.exit(f"{bundle}: the table is in {codes['dtype']}, expected F32")
    start, end = codes["data_offsets"]
    return np.frombuffer(raw[8 + size + start : 8 + size + end], "<f4").reshape(codes["shape"])


def slope(a, b, value):
    """The exponent between two points: 1 is in proportion."""
    low, high = value(a[1]), value(b[1])
    if not low or not high:
        return None
    return math.log(high / low) / math.log(b[0] / a[0])


def collect(folder, step):
    """(size, result) of a step's points, ascending."""
    found = []
    for path in folder.glob(f"{step}-*.json"):
        size = path.stem.removeprefix(f"{step}-")
        if size.isdigit():
            found.append((int(size), json.loads(path.read_text())))
    return sorted(found, key=lambda point: point[0])


def number(x):
    # A process that ends within 20 ms may have no peak.
    if not x:
        return "–"
    return f"{x:,.0f}" if x >= 100 else f"{x:.3g}"


INTERACTIONS = [
    ("synth", "data synth"),
    ("bpr", "BPR-MF, sparse, 2 epochs"),
    ("bpr-dense", "BPR-MF, dense, 1 epoch"),
    ("lightgcn", "LightGCN, 1 epoch of 10 steps"),
    ("student", "student, 20 steps of 256"),
    ("export", "export"),
]
ITEMS = [
    ("items-export", "export --shards"),
    ("items-inspect", "inspect"),
    ("items-recommend", "recommend"),
    ("items-limited", "recommend, 16 MiB of private memory"),
]
VALUES = [
    ("CPU s", lambda r: r["cpu_seconds"]),
    ("peak RSS, MB", lambda r: r["peak_rss_bytes"] / 1e6),
    ("of it anonymous, MB", lambda r: r["peak_anonymous_bytes"] / 1e6),
]
COLORS = ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf"]


def table(folder, steps, what):
    sizes = sorted({size for step, _ in steps for size, _ in collect(folder, step)})
    print(f"| {what} | | " + " | ".join(f"{size:,}" for size in sizes) + " | exponents between points | overall |")
    print("|---|---|" + "--:|" * len(sizes) + "---|--:|")
    for step, label in steps:
        points = collect(folder, step)
        for name, value in VALUES:
            by_size = {size: value(result) for size, result in points}
            cells = " | ".join(number(by_size.get(size)) for size in sizes)
            between = [slope(a, b, value) for a, b in zip(points, points[1:])]
            overall = slope(points[0], points[-1], value) if len(points) > 1 else None
            exponents = ", ".join("–" if s is None else f"{s:.2f}" for s in between)
            print(f"| {label} | {name} | {cells} | {exponents} | {'–' if overall is None else f'{overall:.2f}'} |")
    print()


def answers(folder):
    """What the steps themselves reported."""
    for step, rows in [
        ("bpr", [("CPU s an epoch, validation included", lambda a: a["cpu_seconds_per_epoch"])]),
        ("export", [("bundle, bytes", lambda a: a["bytes"]), ("bytes an item", lambda a: a["bytes"] / a["items"])]),
        ("items-export", [("bundle, bytes", lambda a: a["bytes"]), ("recall@100 of full precision", lambda a: a["quality"]["recall"])]),
        *[
            (step, [
                ("open, µs", lambda a: a["open"]["median_micros"]),
                ("first recommendation, µs", lambda a: a["first_recommendation"]["median_micros"]),
                ("scan, µs", lambda a: a["scan"]["median_micros"]),
                ("scan, GB/s", lambda a: a["scan"]["gigabytes_per_second"]),
            ])
            for step in ("bench", "items-bench")
        ],
    ]:
        for name, value in rows:
            cells = [f"{size:,}: {number(value(result['answer']))}" for size, result in collect(folder, step)]
            if cells:
                print(f"- {step}, {name}: " + " · ".join(cells))
    print()


def under_pressure(folder):
    """Steps in control groups: CPU, time, what was read, and what they reported."""
    points = [(size, step, result) for step in ("export", "recommend", "bench") for size, result in collect(folder, f"pressed-{step}")]
    if not points:
        return
    print("| items | in a control group | limit, MiB | peak of the group, MiB | CPU s | wall s | read, MB |")
    print("|--:|---|--:|--:|--:|--:|--:|")
    for size, step, r in points:
        print(f"| {size:,} | {step} | {r['limit_mib']:,} | {r['group_peak_bytes'] / 2**20:,.0f} | {number(r['cpu_seconds'])} | {number(r['seconds'])} | {r['read_bytes'] / 1e6:,.0f} |")
    print()
    for size, step, r in points:
        if step == "bench":
            a = r["answer"]
            cells = [f"{name} {number(a[key]['median_micros'])}" for name, key in [("open", "open"), ("first recommendation", "first_recommendation"), ("scan", "scan")]]
            print(f"- {size:,} items in {r['limit_mib']} MiB, µs: " + " · ".join(cells))
    print()


def lists(folder):
    """From a history to its best items."""
    rows = [(size, how, step, r["answer"]) for how, step in (("all", "lists"), ("partitions", "lists-partitioned")) for size, r in collect(folder, step)]
    if not rows:
        return
    kernel, k = rows[0][3]["kernel"], rows[0][3]["k"]
    print(f"| items | searched | recall@100 of full precision | history | best {k}, median µs | p95 | scan of all items, median µs | GB/s |")
    print("|--:|---|--:|--:|--:|--:|--:|--:|")
    for size, how, step, a in sorted(rows):
        export = json.loads((folder / f"{step}-export-{size}.json").read_text())["answer"]
        recall = export["quality"].get("recall_probing") or export["quality"]["recall"]
        if how == "partitions":
            how = f"{export['quality']['probes']} partitions"
        for one in a["recommend"]:
            print(f"| {size:,} | {how} | {recall:.4f} | {one['history']} | {one['median_micros']:,.0f} | {one['p95_micros']:,.0f} | {a['scan']['median_micros']:,.0f} | {a['scan']['gigabytes_per_second']:.1f} |")
    print(f"\nKernel `{kernel}`.\n")


def ticks(low, high):
    return [10.0**k for k in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]


def panel(svg, left, title, lines, axis):
    """One log-log panel: lines are (label, [(x, y)…]). A grey line has the exponent 1."""
    lines = [(label, [(x, y) for x, y in points if y]) for label, points in lines]
    values = [point for _, points in lines for point in points]
    if not values:
        return
    width, height, top = 400, 380, 40
    xs, ys = ticks(min(x for x, _ in values), max(x for x, _ in values)), ticks(min(y for _, y in values), max(y for _, y in values))
    def px(x):
        return left + width * (math.log10(x / xs[0])) / max(math.log10(xs[-1] / xs[0]), 1)
    def py(y):
        return top + height - height * (math.log10(y / ys[0])) / max(math.log10(ys[-1] / ys[0]), 1)
    svg.append(f'<text x="{left}" y="26" font-size="14">{title}</text>')
    for x in xs:
        svg.append(f'<line x1="{px(x):.1f}" y1="{top}" x2="{px(x):.1f}" y2="{top + height}" stroke="#ddd"/><text x="{px(x):.1f}" y="{top + height + 16}" text-anchor="middle">10^{round(math.log10(x))}</text>')
    for y in ys:
        svg.append(f'<line x1="{left}" y1="{py(y):.1f}" x2="{left + width}" y2="{py(y):.1f}" stroke="#ddd"/><text x="{left - 6}" y="{py(y) + 4:.1f}" text-anchor="end">{y:g}</text>')
    svg.append(f'<text x="{left + width / 2}" y="{top + height + 34}" text-anchor="middle">{axis}</text>')
    # As far as an exponent of 1 stays inside the panel.
    reach = min(math.log10(xs[-1] / xs[0]), math.log10(ys[-1] / ys[0]))
    svg.append(f'<line x1="{px(xs[0]):.1f}" y1="{py(ys[0]):.1f}" x2="{px(xs[0] * 10**reach):.1f}" y2="{py(ys[0] * 10**reach):.1f}" stroke="#999" stroke-dasharray="4 4"><title>in proportion</title></line>')
    for j, (label, points) in enumerate(lines):
        color = COLORS[j % len(COLORS)]
        path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in points)
        svg.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.5"/>')
        for x, y in points:
            svg.append(f'<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="4" fill="{color}"><title>{label}, {x:,}: {y:.4g}</title></circle>')
        at = top + height + 54 + 16 * j
        svg.append(f'<circle cx="{left + 4}" cy="{at - 4}" r="4" fill="{color}"/><text x="{left + 14}" y="{at}">{label}</text>')


def plot(folder):
    panels = [
        (steps, what, title, value)
        for steps, what in [(INTERACTIONS, "interactions"), (ITEMS, "items of the table")]
        for title, value in [("CPU seconds", VALUES[0][1]), ("anonymous memory at its peak, MB", VALUES[2][1])]
    ]
    svg = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{len(panels) * 480 + 30}" height="580" font-family="sans-serif" font-size="11">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for at, (steps, what, title, value) in enumerate(panels):
        lines = [(label, [(size, value(r)) for size, r in collect(folder, step)]) for step, label in steps]
        panel(svg, 60 + at * 480, title, lines, what + "; dashed: in proportion")
    return "\n".join(svg + ["</svg>", ""])


def report(folder, target):
    folder = pathlib.Path(folder)
    table(folder, INTERACTIONS, "interactions")
    table(folder, ITEMS, "items")
    answers(folder)
    under_pressure(folder)
    lists(folder)
    pathlib.Path(target).write_text(plot(folder))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["measure", out, *command] if command:
            measure(out, command)
        case ["pressed", out, mib, *rest] if "--" in rest:
            at = rest.index("--")
            pressed(out, int(mib) << 20, rest[:at], rest[at + 1 :])
        case ["groups"]:
            try:
                Group.root()
            except LookupError as e:
                sys.exit(str(e))
        case ["shards", catalogue, items, folder, *bundle] if len(bundle) < 2:
            make_shards(catalogue, int(items), folder, *bundle)
        case ["report", folder, target]:
            report(folder, target)
        case _:
            sys.exit(__doc__)
