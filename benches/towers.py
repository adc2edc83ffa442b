#!/usr/bin/env python3
"""The user tower of a student in LiteRT and in Tercet: one event history, one thread, in one run.

    python3 benches/towers.py BUNDLE [--rounds 5]

The tower is rebuilt in TensorFlow from the bundle's weights and converted to LiteRT, as f32 and with
int8 weights (dynamic range), for a history that fills the bundle's window. Its answers, and those of the
Rust program (`--bench engines`) for the history that it chose, are compared with numpy's. Rounds are
interleaved; a round is the median of its passes, and the fastest round of each engine counts: what
others on the machine add is never less than nothing. LiteRT is called from Python, which adds some
two microseconds to its pass.

The wheels (TensorFlow converts, ai-edge-litert runs) go to `towers` in $CARGO_TARGET_DIR or ./target;
$TOWERS_VENV and $TOWERS_PROGRAM name an environment and a program that are there already.
"""
import argparse, json, os, statistics, struct, subprocess, sys, tempfile, time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TARGET = os.path.abspath(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")))
VENV = os.path.abspath(os.environ.get("TOWERS_VENV", os.path.join(TARGET, "towers")))
WHEELS = ["tensorflow-cpu==2.21.0", "ai-edge-litert==2.3.0"]
PASSES = 2000


def install():
    python = os.path.join(VENV, "bin", "python")
    if not os.path.exists(python):
        subprocess.check_call([sys.executable, "-m", "venv", VENV])
        subprocess.check_call([python, "-m", "pip", "install", "--quiet",
                               "--disable-pip-version-check", *WHEELS])
    return python


def program():
    if os.environ.get("TOWERS_PROGRAM"):
        return os.environ["TOWERS_PROGRAM"]
    out = subprocess.check_output(
        ["cargo", "build", "--release", "-p", "tercet-benches", "--no-default-features",
         "--bench", "engines", "--message-format", "json", "--target-dir", TARGET], cwd=ROOT)
    messages = [json.loads(line) for line in out.splitlines()]
    return next(m["executable"] for m in messages
                if m.get("executable") and m["target"]["name"] == "engines")


def weights(bundle):
    """Name -> f32 array, int8 weights multiplied with their scales."""
    import numpy as np
    with open(os.path.join(bundle, "user_tower.safetensors"), "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        data = file.read()
    types = {"F32": np.float32, "F16": np.float16, "I8": np.int8}
    raw = {}
    for name, t in header.items():
        if t.get("dtype") in types:
            start, end = t["data_offsets"]
            raw[name] = np.frombuffer(data[start:end], types[t["dtype"]]).reshape(t["shape"])
    scales = {name[: -len(".scale")]: raw.pop(name) for name in list(raw) if name.endswith(".scale")}
    return {name: x.astype(np.float32) * scales.get(name, np.float32(1)) for name, x in raw.items()}


def forward(m, w, x):
    """The tower's equations for events `x` [L, D], with the functions of module `m`."""
    heads, d = w["user.direct"].shape
    length = x.shape[0]
    hidden = m.relu(m.matmul(x, w["user.hidden.weight"]) + w["user.hidden.bias"])
    gate = m.sigmoid(m.matmul(x, w["user.gate.weight"]) + w["user.gate.bias"])
    decay = m.constant([[float(g) ** (length - 1 - j) for g in w["user.decays"]] for j in range(length)])
    gate = gate * decay
    scale = 1 / (m.sum(gate) + m.constant(w["user.prior"]))
    means = m.matmul(m.transpose(gate), hidden) * m.column(scale)
    passed = m.matmul(m.transpose(gate), x) * m.column(scale)
    value = w["user.value.weight"]
    parts = [m.matmul(means[h:h + 1], value[:, h * d:(h + 1) * d]) + passed[h:h + 1]
             for h in range(heads)]
    count = m.constant([[m.log1p(length) / 4]])
    summary = m.concat([*parts, count])
    user = sum(p * w["user.direct"][h:h + 1] for h, p in enumerate(parts))
    mixed = m.relu(m.matmul(summary, w["user.mix.weight"]) + w["user.mix.bias"])
    return (user + m.matmul(mixed, w["user.out.weight"]) + w["user.out.bias"]
            + m.matmul(summary, w["user.skip.weight"]))


class Numpy:
    def __init__(self):
        import numpy as np
        self.matmul, self.transpose = np.matmul, np.transpose
        self.relu = lambda x: np.maximum(x, 0)
        self.sigmoid = lambda x: 1 / (1 + np.exp(-x))
        self.sum = lambda x: x.sum(0)
        self.column = lambda x: x[:, None]
        self.concat = lambda xs: np.concatenate(xs, 1)
        self.constant = lambda x: np.asarray(x, np.float32)
        self.log1p = np.log1p


class TensorFlow:
    def __init__(self):
        import math, tensorflow as tf
        self.matmul, self.transpose = tf.matmul, tf.transpose
        self.relu, self.sigmoid = tf.nn.relu, tf.sigmoid
        self.sum = lambda x: tf.reduce_sum(x, 0)
        self.column = lambda x: tf.expand_dims(x, 1)
        self.concat = lambda xs: tf.concat(xs, 1)
        self.constant = lambda x: tf.constant(x, tf.float32)
        self.log1p = math.log1p


def measure(bundle, rounds):
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import numpy as np
    import tensorflow as tf
    from ai_edge_litert.interpreter import Interpreter

    with open(os.path.join(bundle, "manifest.json")) as file:
        manifest = json.load(file)
    w, length = weights(bundle), manifest["window"]
    x = np.random.default_rng(7).normal(0, 0.3, (length, manifest["dim"])).astype(np.float32)
    want = forward(Numpy(), w, x)
    function = tf.function(lambda x: forward(TensorFlow(), w, x),
                           input_signature=[tf.TensorSpec(x.shape, tf.float32)])
    engines = {}
    for name in ["LiteRT f32", "LiteRT int8"]:
        converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()])
        if name.endswith("int8"):
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        model = converter.convert()

        def load(model=model):
            interpreter = Interpreter(model_content=model, num_threads=1)
            interpreter.allocate_tensors()
            to = interpreter.get_input_details()[0]["index"]
            out = interpreter.get_output_details()[0]["index"]

            def run():
                interpreter.set_tensor(to, x)
                interpreter.invoke()
                return interpreter.get_tensor(out)
            return run

        error = float(np.abs(load()() - want).max() / np.abs(want).max())
        assert error < (1e-5 if name.endswith("f32") else 0.2), f"{name} is off by {error}"
        engines[name] = (load, error)

    def micros(f):
        start = time.perf_counter()
        f()
        return (time.perf_counter() - start) * 1e6

    def tercet():
        """-> (load + first pass, full pass, one more event) in us, and the error of the answer."""
        with tempfile.NamedTemporaryFile() as file:
            out = subprocess.check_output(
                [program()], env={**os.environ, "BUNDLE": bundle, "ANSWER": file.name}, text=True)
            answer = np.frombuffer(file.read(), np.float32).reshape(length + 1, -1)
        mine = forward(Numpy(), w, answer[:-1] + w["user.behaviors"][0])
        error = float(np.abs(answer[-1] - mine).max() / np.abs(mine).max())
        assert error < 1e-4, f"Tercet is off by {error}"
        line = next(line.split() for line in out.splitlines() if line.split()[:1] == ["compact"])
        event = next(line for line in out.splitlines() if line.startswith("session"))
        return float(line[1]), float(line[2]), float(event.split("event ")[1].split()[0]), error

    rows, errors = {}, {name: error for name, (_, error) in engines.items()}
    for _ in range(rounds):
        for name, (load, _) in engines.items():
            loads = statistics.median(micros(lambda: load()()) for _ in range(20))
            run = load()
            passes = statistics.median(micros(run) for _ in range(PASSES))
            rows.setdefault(name, []).append((loads, passes))
        load, full, event, errors["Tercet, compact"] = tercet()
        rows.setdefault("Tercet, compact", []).append((load, full))
        rows.setdefault("- one more event", []).append((None, event))
    print(f"{manifest['items']} items, dim {manifest['dim']}, {length} events, {len(w['user.decays'])} "
          f"heads; load average {os.getloadavg()[0]:.1f}; fastest of {rounds} rounds")
    base = min(p for _, p in rows["LiteRT f32"])
    print(f"{'':16} {'load + first us':>16} {'full pass us':>13} {'of LiteRT f32':>14} {'error':>9}")
    for name, values in rows.items():
        loads = [v for v, _ in values if v is not None]
        load = f"{min(loads):.0f}" if loads else "-"
        full = min(v for _, v in values)
        error = f"{errors[name]:.0e}" if name in errors else "-"
        print(f"{name:16} {load:>16} {full:>13.1f} {full / base:>14.2f} {error:>9}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside:
        return measure(args.bundle, args.rounds)
    # The environment's Python has the packages.
    subprocess.check_call([install(), __file__, args.bundle, "--rounds", str(args.rounds), "--inside"],
                          env={**os.environ, "TOWERS_PROGRAM": program()})


if __name__ == "__main__":
    main()
