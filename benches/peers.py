#!/usr/bin/env python3
"""Top-100 inner-product retrieval: Tercet and other libraries on the same data, in one run.

Every (method, N) is measured in a process of its own, so that open time and memory are clean, one
thread each. A streaming-read probe (a small C program compiled here) runs right before and right
after it, over a buffer of the size that the method's scan must read, so that every figure can be
given as a share of the machine's limit in the same minute. Rounds are interleaved over methods.
Recall is measured before anything is timed; a method's answers are also checked for duplicates
and for rows that do not exist.

    python3 benches/peers.py all            everything below for 100,000 and 1,000,000 items
    python3 benches/peers.py install        the other libraries' wheels, in environments of their own
    python3 benches/peers.py prepare --n N  data
    python3 benches/peers.py build --n N    indexes and bundles, kept until deleted
    python3 benches/peers.py run --n N --rounds 3 [--only METHOD,...]
    python3 benches/peers.py report         benches/results/peers.md and peers.svg

Each step continues where an earlier call stopped. Work files go to $PEERS_DIR, or to `peers` in
$CARGO_TARGET_DIR or ./target: 6 GB for both sizes.
"""
import argparse, datetime, json, os, platform, statistics as st, subprocess, sys, time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TARGET = os.path.abspath(os.environ.get("CARGO_TARGET_DIR", os.path.join(ROOT, "target")))
W = os.path.abspath(os.environ.get("PEERS_DIR", os.path.join(TARGET, "peers")))
D, K, NQ, SEED = 64, 100, 256, 20240917
# ScaNN wants other versions of what the rest needs.
VENVS = {
    "venv": ["numpy==2.4.6", "faiss-cpu==1.15.1", "usearch==2.26.6", "hnswlib==0.8.0",
             "sqlite-vec==0.1.9", "apsw", "onnx", "onnxruntime==1.31.1"],
    "venv-scann": ["numpy", "scann==1.4.2"],
}


def python(name):
    venv = "venv-scann" if name.startswith("scann") else "venv"
    return os.path.join(W, venv, "bin", "python")


def install():
    for venv, wheels in VENVS.items():
        done = os.path.join(W, venv, ".complete")
        if os.path.exists(done):
            continue
        subprocess.check_call([sys.executable, "-m", "venv", os.path.join(W, venv)])
        pip = os.path.join(W, venv, "bin", "pip")
        subprocess.check_call([pip, "install", "--quiet", "--disable-pip-version-check", *wheels])
        open(done, "w").close()


def tercet_bin():
    """Builds the benchmark program once a call and returns its path; $PEERS_PROGRAM names one
    that is built already."""
    if os.environ.get("PEERS_PROGRAM"): return os.environ["PEERS_PROGRAM"]
    if not hasattr(tercet_bin, "path"):
        out = subprocess.check_output(
            ["cargo", "build", "--release", "-p", "tercet-benches", "--no-default-features",
             "--bench", "retrieval", "--message-format", "json", "--target-dir", TARGET], cwd=ROOT)
        for line in out.splitlines():
            message = json.loads(line)
            if message.get("executable") and message["target"]["name"] == "retrieval":
                tercet_bin.path = message["executable"]
    return tercet_bin.path


def tercet_methods():
    out = subprocess.check_output([tercet_bin(), "list"], text=True)
    return {name: int(scan) or None for name, scan in (line.split() for line in out.splitlines())}

# ------------------------------------------------------------------ probe
PROBE_C = r"""
#include <stdio.h>
#include <stdlib.h>
#include <stdint.h>
#include <string.h>
#include <pthread.h>
#include <time.h>
static double cpu(){struct timespec t;clock_gettime(CLOCK_PROCESS_CPUTIME_ID,&t);return t.tv_sec+1e-9*t.tv_nsec;}
static double now(){struct timespec t;clock_gettime(CLOCK_MONOTONIC,&t);return t.tv_sec+1e-9*t.tv_nsec;}
typedef uint64_t v8 __attribute__((vector_size(64)));
static volatile uint64_t sink; static char*buf; static size_t bytes; static int nt;
static void scan(const char*p,size_t n){
  v8 a={0},b={0},c={0},d={0}; const v8*q=(const v8*)p; size_t m=n/64;
  for(size_t i=0;i+4<=m;i+=4){a^=q[i];b^=q[i+1];c^=q[i+2];d^=q[i+3];}
  a^=b;c^=d;a^=c; sink+=a[0]^a[7];
}
static void*worker(void*x){size_t i=(size_t)x;size_t per=(bytes/nt)/256*256;scan(buf+i*per,per);return 0;}
static int cmp(const void*a,const void*b){double x=*(double*)a,y=*(double*)b;return x<y?-1:x>y;}
int main(int c,char**v){
  bytes=strtoull(v[1],0,10)/256*256; nt=atoi(v[2]); double secs=atof(v[3]);
  buf=aligned_alloc(4096,(bytes+4095)/4096*4096); memset(buf,7,bytes);
  static double t[100000]; int n=0; double end=now()+secs; double c0=cpu();
  while((now()<end||n<5)&&n<100000){double s=now();
    if(nt==1)scan(buf,bytes); else {pthread_t th[16];for(size_t i=1;i<nt;i++)pthread_create(th+i,0,worker,(void*)i);worker(0);for(int i=1;i<nt;i++)pthread_join(th[i],0);}
    t[n++]=now()-s;}
  double c1=cpu()-c0; qsort(t,n,8,cmp); printf("%.4f %.4f %.4f\n",bytes/t[n/2]/1e9,bytes/t[0]/1e9,(double)bytes*n/c1/1e9); return 0;}
"""

def probe_bin():
    os.makedirs(W, exist_ok=True)
    exe = os.path.join(W, "stream_probe")
    if not os.path.exists(exe):
        src = exe + ".c"
        open(src, "w").write(PROBE_C)
        subprocess.check_call(["gcc", "-O3", "-march=native", "-pthread", "-o", exe, src])
    return exe

def stream(nbytes, threads, secs=0.25):
    """-> (median GB/s, best GB/s, GB per CPU second) of reading a buffer of nbytes over and over."""
    o = subprocess.check_output([os.path.abspath(probe_bin()), str(int(nbytes)), str(threads), str(secs)])
    a, b, c = o.split()
    return float(a), float(b), float(c)

# ------------------------------------------------------------------ data
def d(n): return os.path.join(W, "work", f"n{n}")

def prepare(n):
    if os.path.exists(f"{d(n)}/q8.npy"): return
    import numpy as np
    os.makedirs(d(n), exist_ok=True)
    g = np.random.default_rng(SEED)
    nc = 1000
    spec = ((1 + np.arange(D) / 8.0) ** -0.5).astype(np.float32)   # decaying spectrum: effective dimension well under 64
    rot = np.linalg.qr(g.standard_normal((D, D)))[0].astype(np.float32)
    cent = g.standard_normal((nc, D), dtype=np.float32)
    w = 1.0 / np.arange(1, nc + 1) ** 0.5          # cluster sizes: mild Zipf
    w /= w.sum()
    lab = g.choice(nc, size=n, p=w)
    x = ((cent[lab] + 1.0 * g.standard_normal((n, D), dtype=np.float32)) * spec) @ rot
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    x *= g.lognormal(0.0, 0.15, size=(n, 1)).astype(np.float32)  # popularity-like norms
    ql = g.choice(nc, size=NQ, p=w)                # a user: mean of two clusters plus noise
    ql2 = g.choice(nc, size=NQ, p=w)
    q = ((0.7 * cent[ql] + 0.3 * cent[ql2] + 0.6 * g.standard_normal((NQ, D), dtype=np.float32)) * spec) @ rot
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    x = np.ascontiguousarray(x, dtype=np.float32); q = np.ascontiguousarray(q, dtype=np.float32)
    s = x @ q.T
    gt = np.argsort(-s, axis=0, kind="stable")[:K].T.astype(np.int32) if n <= 100000 else \
        np.stack([(lambda c: c[np.argsort(-s[c, i], kind="stable")][:K])(np.argpartition(-s[:, i], K)[:K + 1]) for i in range(NQ)]).astype(np.int32)
    xn = x / np.linalg.norm(x, axis=1, keepdims=True)
    sc = xn @ q.T
    gtc = np.stack([(lambda c: c[np.argsort(-sc[c, i])][:K])(np.argpartition(-sc[:, i], K)[:K + 1]) for i in range(NQ)]).astype(np.int32)
    np.save(f"{d(n)}/x.npy", x); np.save(f"{d(n)}/q.npy", q)
    np.save(f"{d(n)}/gt.npy", np.ascontiguousarray(gt)); np.save(f"{d(n)}/gtcos.npy", np.ascontiguousarray(gtc))
    np.save(f"{d(n)}/x16.npy", x.astype(np.float16))
    sx = float(np.quantile(np.abs(x), 0.9999)) / 127; sq = float(np.abs(q).max()) / 127
    np.save(f"{d(n)}/x8.npy", np.clip(np.rint(x / sx), -127, 127).astype(np.int8))
    np.save(f"{d(n)}/q8.npy", np.clip(np.rint(q / sq), -127, 127).astype(np.int8))
    mu = x.mean(0)
    np.save(f"{d(n)}/xb.npy", np.packbits(x > mu, axis=1)); np.save(f"{d(n)}/qb.npy", np.packbits(q > mu, axis=1))
    print("prepared", n, "share of top-100 in the query's first cluster:", round(float((lab[gt] == ql[:, None]).mean()), 3))

# ------------------------------------------------------------------ methods
# each: build(n) writes files, returns list of files; open(n, threads) -> fn(queries_index_slice) -> ids
M = {}
def method(name, scan_bytes=None, needs=None):
    """scan_bytes: bytes per item that an exhaustive scan reads (None: index walks less)."""
    def deco(cls):
        M[name] = (cls, scan_bytes); return cls
    return deco

def ld(n, f, mm=True):
    import numpy as np
    return np.load(f"{d(n)}/{f}.npy", mmap_mode="r" if mm else None)

def topk_rows(s):
    import numpy as np
    if s.ndim == 1: s = s[None]
    p = np.argpartition(-s, K, axis=1)[:, :K]
    o = np.argsort(-np.take_along_axis(s, p, 1), axis=1)
    return np.take_along_axis(p, o, 1)

@method("numpy_f32_mmap", 4 * D)
class _:
    imports = "numpy"
    @staticmethod
    def files(n): return [f"{d(n)}/x.npy"]
    @staticmethod
    def open(n, t):
        x = ld(n, "x"); q = ld(n, "q", False)
        def f(a, b):
            return topk_rows(x @ q[a]) if b - a == 1 else topk_rows(q[a:b] @ x.T)
        return f

def faiss_method(name, spec, scan, search=None, file=None, train=None, post=None, mmap=False, binary=False):
    fn = file or name
    @method(name, scan)
    class _:
        imports = "faiss"
        @staticmethod
        def files(n): return [f"{d(n)}/{fn}.faiss"]
        @staticmethod
        def build(n):
            if os.path.exists(f"{d(n)}/{fn}.faiss"): return
            import faiss, numpy as np
            if binary:
                x = ld(n, "xb", False); ix = faiss.IndexBinaryFlat(D); ix.add(x)
                faiss.write_index_binary(ix, f"{d(n)}/{fn}.faiss"); return
            x = ld(n, "x", False)
            s = spec(n) if callable(spec) else spec
            ix = faiss.index_factory(D, s, faiss.METRIC_INNER_PRODUCT)
            if post: post(ix)
            if not ix.is_trained:
                g = np.random.default_rng(1)
                tr = x[g.choice(n, min(n, 200000), replace=False)]
                ix.train(tr)
            ix.add(x)
            faiss.write_index(ix, f"{d(n)}/{fn}.faiss")
        @staticmethod
        def open(n, t):
            import faiss
            faiss.omp_set_num_threads(t)
            p = f"{d(n)}/{fn}.faiss"
            if binary:
                q = ld(n, "qb", False); x = ld(n, "x"); qf = ld(n, "q", False)
                ix = faiss.read_index_binary(p)
                rr = search
                def f(a, b):
                    import numpy as np
                    _, I = ix.search(q[a:b], rr or K)
                    if not rr: return I
                    out = []
                    for i in range(b - a):
                        c = np.sort(I[i]); s = x[c] @ qf[a + i]
                        j = np.argpartition(-s, K)[:K]; out.append(c[j[np.argsort(-s[j])]])
                    return np.stack(out)
                return f
            ix = faiss.read_index(p, faiss.IO_FLAG_MMAP) if mmap else faiss.read_index(p)
            if search: search(faiss, ix)
            q = ld(n, "q", False)
            def f(a, b): return ix.search(q[a:b], K)[1]
            return f
    return _

def _par(s):
    def f(faiss, ix): faiss.ParameterSpace().set_index_parameters(ix, s)
    return f
def _kf(v):
    def f(faiss, ix): ix.k_factor = v
    return f
nl = lambda n: 1024 if n <= 200000 else 4096
faiss_method("faiss_flat", "Flat", 4 * D)
faiss_method("faiss_sqfp16", "SQfp16", 2 * D)
faiss_method("faiss_sq8", "SQ8", D)
faiss_method("faiss_sq4", "SQ4", D // 2)
faiss_method("faiss_binary", None, D // 8, binary=True)
faiss_method("faiss_binary_rerank1000", None, D // 8, binary=True, search=1000, file="faiss_binary")
faiss_method("faiss_pq32x4fs", "PQ32x4fs", D // 4)
faiss_method("faiss_pq32x4fs_refine4", "PQ32x4fs,RFlat", D // 4, search=_kf(4))
faiss_method("faiss_pq32x4fs_refine10", "PQ32x4fs,RFlat", D // 4, search=_kf(10), file="faiss_pq32x4fs_refine4")
faiss_method("faiss_ivfsq8_np8", lambda n: f"IVF{nl(n)},SQ8", None, search=_par("nprobe=8"), file="faiss_ivfsq8")
faiss_method("faiss_ivfsq8_np32", lambda n: f"IVF{nl(n)},SQ8", None, search=_par("nprobe=32"), file="faiss_ivfsq8")
faiss_method("faiss_ivfsq8_np128", lambda n: f"IVF{nl(n)},SQ8", None, search=_par("nprobe=128"), file="faiss_ivfsq8")
faiss_method("faiss_ivfpqfs_np32_refine4", lambda n: f"IVF{nl(n)},PQ32x4fs,RFlat", None,
             search=lambda fa, ix: (_par("nprobe=32")(fa, fa.downcast_index(ix.base_index)), _kf(4)(fa, ix)), file="faiss_ivfpqfs")
for ef in (128, 256, 512):
    faiss_method(f"faiss_hnsw16_ef{ef}", "HNSW16,Flat", None, search=_par(f"efSearch={ef}"), file="faiss_hnsw16",
                 post=lambda ix: setattr(ix.hnsw, "efConstruction", 100))

def usearch_exact(name, dt, scan, rr=None):
    @method(name, scan)
    class _:
        imports = "usearch.index"
        @staticmethod
        def files(n): return [f"{d(n)}/{dict(f32='x', f16='x16', i8='x8', b1='xb')[dt]}.npy"]
        @staticmethod
        def open(n, t):
            from usearch.index import search, MetricKind
            import numpy as np
            x = ld(n, dict(f32="x", f16="x16", i8="x8", b1="xb")[dt])
            q = ld(n, dict(f32="q", f16="q", i8="q8", b1="qb")[dt], False)
            if dt == "f16": q = q.astype(np.float16)
            mk = MetricKind.Hamming if dt == "b1" else MetricKind.IP
            kw = {"dtype": "b1"} if dt == "b1" else {}
            def f(a, b):
                m = search(x, q[a:b] if b - a > 1 else q[a], K, mk, exact=True, threads=t, **kw)
                k = m.keys
                return k[None] if k.ndim == 1 else k
            return f

usearch_exact("usearch_exact_f32", "f32", 4 * D)
usearch_exact("usearch_exact_f16", "f16", 2 * D)
usearch_exact("usearch_exact_i8", "i8", D)
usearch_exact("usearch_exact_b1", "b1", D // 8)

def usearch_hnsw(dt, ef):
    @method(f"usearch_hnsw16_{dt}_ef{ef}", None)
    class _:
        imports = "usearch.index"
        @staticmethod
        def files(n): return [f"{d(n)}/usearch_{dt}.bin"]
        @staticmethod
        def build(n):
            if os.path.exists(f"{d(n)}/usearch_{dt}.bin"): return
            from usearch.index import Index
            import numpy as np
            ix = Index(ndim=D, metric="ip", dtype=dt, connectivity=16, expansion_add=100)
            x = ld(n, "x8" if dt == "i8" else "x", False)
            ix.add(np.arange(n), x, threads=2); ix.save(f"{d(n)}/usearch_{dt}.bin")
        @staticmethod
        def open(n, t):
            from usearch.index import Index
            ix = Index(ndim=D, metric="ip", dtype=dt, connectivity=16, expansion_add=100)
            ix.view(f"{d(n)}/usearch_{dt}.bin"); ix.expansion_search = ef
            q = ld(n, "q8" if dt == "i8" else "q", False)
            def f(a, b):
                m = ix.search(q[a:b] if b - a > 1 else q[a], K, threads=t)
                return m.keys[None] if m.keys.ndim == 1 else m.keys
            return f
for dt in ("f32", "i8"):
    for ef in (128, 256): usearch_hnsw(dt, ef)

def hnswlib_m(ef):
    @method(f"hnswlib_m16_ef{ef}", None)
    class _:
        imports = "hnswlib"
        @staticmethod
        def files(n): return [f"{d(n)}/hnswlib.bin"]
        @staticmethod
        def build(n):
            if os.path.exists(f"{d(n)}/hnswlib.bin"): return
            import hnswlib
            ix = hnswlib.Index(space="ip", dim=D); ix.init_index(n, M=16, ef_construction=100, random_seed=1)
            ix.add_items(ld(n, "x", False), num_threads=2); ix.save_index(f"{d(n)}/hnswlib.bin")
        @staticmethod
        def open(n, t):
            import hnswlib
            ix = hnswlib.Index(space="ip", dim=D); ix.load_index(f"{d(n)}/hnswlib.bin"); ix.set_ef(ef); ix.set_num_threads(t)
            q = ld(n, "q", False)
            return lambda a, b: ix.knn_query(q[a:b], K, num_threads=t)[0]
for ef in (128, 256, 512): hnswlib_m(ef)

def ort_m(name, int8, scan):
    @method(name, scan)
    class _:
        imports = "onnxruntime"
        @staticmethod
        def files(n): return [f"{d(n)}/{name}.onnx"]
        @staticmethod
        def build(n):
            p = f"{d(n)}/{name}.onnx"
            if os.path.exists(p): return
            import numpy as np, onnx
            from onnx import helper as h, numpy_helper as nh, TensorProto as T
            if int8:
                w = nh.from_array(np.ascontiguousarray(ld(n, "x8", False).T), "w")
                nodes = [h.make_node("MatMulInteger", ["q", "w"], ["s"]), h.make_node("TopK", ["s", "k"], ["v", "i"], axis=1)]
                inp = h.make_tensor_value_info("q", T.INT8, ["b", D]); ov = T.INT32
            else:
                w = nh.from_array(np.ascontiguousarray(ld(n, "x", False).T), "w")
                nodes = [h.make_node("MatMul", ["q", "w"], ["s"]), h.make_node("TopK", ["s", "k"], ["v", "i"], axis=1)]
                inp = h.make_tensor_value_info("q", T.FLOAT, ["b", D]); ov = T.FLOAT
            g = h.make_graph(nodes, "g", [inp], [h.make_tensor_value_info("v", ov, ["b", K]), h.make_tensor_value_info("i", T.INT64, ["b", K])],
                             [w, nh.from_array(np.array([K], np.int64), "k")])
            onnx.save(h.make_model(g, opset_imports=[h.make_opsetid("", 17)], ir_version=9), p)
        @staticmethod
        def open(n, t):
            import onnxruntime as o
            so = o.SessionOptions(); so.intra_op_num_threads = t; so.inter_op_num_threads = 1; so.log_severity_level = 3
            s = o.InferenceSession(f"{d(n)}/{name}.onnx", so, providers=["CPUExecutionProvider"])
            q = ld(n, "q8" if int8 else "q", False)
            return lambda a, b: s.run(["i"], {"q": q[a:b]})[0]
ort_m("ort_matmul_f32_topk", False, 4 * D)
ort_m("ort_matmulinteger_topk", True, D)

def sqlite_m(name, col, scan):
    @method(name, scan)
    class _:
        imports = "sqlite_vec"
        gt = "gtcos"
        @staticmethod
        def files(n): return [f"{d(n)}/{name}.db"]
        @staticmethod
        def build(n):
            p = f"{d(n)}/{name}.db"
            if os.path.exists(p): return
            import apsw, sqlite_vec, numpy as np
            c = apsw.Connection(p + ".part"); c.enable_load_extension(True); c.load_extension(sqlite_vec.loadable_path())
            if col == "float":
                c.execute(f"create virtual table v using vec0(e float[{D}] distance_metric=cosine)"); x = ld(n, "x", False); ins = "insert into v(rowid,e) values(?,?)"
            elif col == "int8":
                c.execute(f"create virtual table v using vec0(e int8[{D}] distance_metric=cosine)"); x = ld(n, "x8", False); ins = "insert into v(rowid,e) values(?,vec_int8(?))"
            else:
                c.execute(f"create virtual table v using vec0(e bit[{D}])"); x = ld(n, "xb", False); ins = "insert into v(rowid,e) values(?,vec_bit(?))"
            with c: c.executemany(ins, ((i + 1, x[i].tobytes()) for i in range(n)))
            c.close(); os.rename(p + ".part", p)
        @staticmethod
        def open(n, t):
            import apsw, sqlite_vec, numpy as np
            c = apsw.Connection(f"{d(n)}/{name}.db", flags=apsw.SQLITE_OPEN_READONLY); c.enable_load_extension(True); c.load_extension(sqlite_vec.loadable_path())
            list(c.execute("pragma mmap_size=2000000000"))
            q = ld(n, {"float": "q", "int8": "q8", "bit": "qb"}[col], False)
            fn = {"float": "?", "int8": "vec_int8(?)", "bit": "vec_bit(?)"}[col]
            sql = f"select rowid from v where e match {fn} and k={K}"
            def f(a, b):
                return np.array([[r[0] - 1 for r in c.execute(sql, (q[i].tobytes(),))] for i in range(a, b)])
            return f
sqlite_m("sqlitevec_f32", "float", 4 * D)
sqlite_m("sqlitevec_int8", "int8", D)
sqlite_m("sqlitevec_bit", "bit", D // 8)

def scann_m(name, kind, scan):
    @method(name, scan)
    class _:
        imports = "scann"
        @staticmethod
        def files(n):
            p = f"{d(n)}/{name}.dir"
            return [os.path.join(p, f) for f in os.listdir(p)] if os.path.isdir(p) else []
        @staticmethod
        def build(n):
            p = f"{d(n)}/{name}.dir"
            if os.path.isdir(p) and os.listdir(p): return
            import scann, numpy as np
            b = scann.scann_ops_pybind.builder(np.array(ld(n, "x", False)), K, "dot_product").set_n_training_threads(2)
            if kind == "bf": b = b.score_brute_force()
            elif kind == "bf8": b = b.score_brute_force(quantize=True)
            elif kind == "tree_ah":
                L = 1000 if n <= 200000 else 2000
                b = b.tree(num_leaves=L, num_leaves_to_search=100, training_sample_size=min(n, 250000)).score_ah(2, anisotropic_quantization_threshold=0.2).reorder(400)
            elif kind == "ah":
                b = b.score_ah(2, anisotropic_quantization_threshold=0.2, training_sample_size=min(n, 250000)).reorder(400)
            s = b.build(); os.makedirs(p, exist_ok=True); s.serialize(p)
        @staticmethod
        def open(n, t):
            import scann
            s = scann.scann_ops_pybind.load_searcher(f"{d(n)}/{name}.dir")
            try: s.set_num_threads(t)
            except Exception: pass
            q = ld(n, "q", False)
            def f(a, b):
                if b - a == 1: return s.search(q[a], K)[0][None]
                return (s.search_batched(q[a:b], K) if t == 1 else s.search_batched_parallel(q[a:b], K))[0]
            return f
scann_m("scann_bruteforce_f32", "bf", 4 * D)
scann_m("scann_bruteforce_int8", "bf8", D)
scann_m("scann_ah2_reorder400", "ah", D // 4)
scann_m("scann_tree_ah2_l100_reorder400", "tree_ah", None)

# ------------------------------------------------------------------ measuring
# What the comparison is about; others of the file can be named with --only.
PEERS = """faiss_flat faiss_sqfp16 faiss_sq8 faiss_pq32x4fs_refine4 faiss_pq32x4fs_refine10
faiss_ivfsq8_np32 faiss_ivfsq8_np128 usearch_exact_f32 usearch_exact_i8 usearch_hnsw16_i8_ef256
hnswlib_m16_ef512 ort_matmul_f32_topk ort_matmulinteger_topk sqlitevec_f32 sqlitevec_int8
scann_bruteforce_f32 scann_bruteforce_int8 scann_tree_ah2_l100_reorder400""".split()
# Graphs of a million items take an hour to build.
SMALL_ONLY = ("hnsw",)


def vm(field):
    for l in open("/proc/self/status"):
        if l.startswith(field): return int(l.split()[1]) / 1024
    return 0.0


def evict(files):
    for f in files:
        fd = os.open(f, os.O_RDONLY); os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED); os.close(fd)


def child(name, n, cold):
    """Measures one of the other libraries; prints a JSON line."""
    import importlib
    import numpy as np
    cls, scan = M[name]
    importlib.import_module(cls.imports)
    np.load(f"{d(n)}/q.npy")
    anon0 = vm("RssAnon")
    if cold: evict(cls.files(n))
    t0 = time.perf_counter(); f = cls.open(n, 1); r = f(0, 1); first = time.perf_counter() - t0
    anon = vm("RssAnon") - anon0
    gt = np.load(f"{d(n)}/{getattr(cls, 'gt', 'gt')}.npy")
    lat, cpu, ids = [], [], [np.asarray(r)]
    t_end = time.perf_counter() + 6
    for i in range(1, NQ):
        c0 = time.process_time(); a = time.perf_counter(); r = f(i, i + 1); b = time.perf_counter()
        lat.append(b - a); cpu.append(time.process_time() - c0); ids.append(np.asarray(r))
        if b > t_end and i >= 24: break
    for x in ids:
        assert len(np.unique(x[0])) == K and x[0].min() >= 0 and x[0].max() < n, "not 100 rows"
    rec = float(np.mean([len(np.intersect1d(ids[j][0], gt[j])) / K for j in range(len(ids))]))
    bl, blc = [], []
    f(0, 64)
    t_end = time.perf_counter() + 4
    for j in range(12):
        o = (j % (NQ // 64)) * 64
        c0 = time.process_time(); a = time.perf_counter(); f(o, o + 64); bl.append(time.perf_counter() - a); blc.append(time.process_time() - c0)
        if time.perf_counter() > t_end and j >= 2: break
    lat.sort(); bl.sort()
    print(json.dumps(dict(recall=rec, first_ms=first * 1e3, b1_min_ms=lat[0] * 1e3, b1_med_ms=st.median(lat) * 1e3,
        b1_cpu_med_ms=st.median(cpu) * 1e3, b64_min_ms=bl[0] * 1e3 / 64, b64_cpu_med_ms=st.median(blc) * 1e3 / 64,
        anon_mb=anon, file_mb=sum(os.path.getsize(x) for x in cls.files(n)) / 1e6)))


def chosen(n, only):
    names = dict(tercet_methods())
    names.update({m: M[m][1] for m in M if m in (only or PEERS)})
    if only: return {m: s for m, s in names.items() if m in only}
    return {m: s for m, s in names.items() if n <= 200000 or not any(x in m for x in SMALL_ONLY)}


def build(n, only):
    done = f"{d(n)}/built.txt"
    have = set(open(done).read().split()) if os.path.exists(done) else set()
    for m in chosen(n, only):
        if m in have: continue
        t0 = time.time()
        if m.startswith("tercet"):
            p = subprocess.run([tercet_bin(), "build", d(n), m], capture_output=True, text=True)
        elif hasattr(M[m][0], "build"):
            p = subprocess.run([python(m), os.path.abspath(__file__), "build-one", "--n", str(n), "--only", m],
                               env=dict(os.environ, PEERS_DIR=W), capture_output=True, text=True)
        else:
            continue
        if p.returncode:
            print("cannot build", m, p.stderr[-400:], file=sys.stderr); continue
        with open(done, "a") as f: f.write(m + "\n")
        print(f"built {m} for {n} in {time.time() - t0:.1f} s", flush=True)


def run(n, rounds, only):
    out = f"{d(n)}/measured.jsonl"
    have = {}
    if os.path.exists(out):
        for l in open(out):
            j = json.loads(l); have[j["method"]] = max(have.get(j["method"], -1), j["round"])
    methods = chosen(n, only)
    for r in range(rounds):
        for m, scan in methods.items():
            if have.get(m, -1) >= r: continue
            nb = n * (scan or 4 * D)
            s0 = stream(nb, 1)
            env = dict(os.environ, OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1", PEERS_DIR=W)
            if m.startswith("tercet"):
                p = subprocess.run([tercet_bin(), "run", d(n), m], env=env, capture_output=True, text=True)
            else:
                p = subprocess.run([python(m), os.path.abspath(__file__), "child", "--n", str(n), "--only", m],
                                   env=env, capture_output=True, text=True)
            s1 = stream(nb, 1)
            try: j = json.loads(p.stdout.strip().splitlines()[-1])
            except Exception:
                print("cannot measure", m, p.stderr[-300:], file=sys.stderr); continue
            j.update(method=m, n=n, round=r, scan_bytes=n * scan if scan else None, stream_cpu_gbs=(s0[2] + s1[2]) / 2,
                     stream_best_gbs=max(s0[1], s1[1]), load=os.getloadavg()[0], at=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"))
            with open(out, "a") as f: f.write(json.dumps(j) + "\n")
            print(f"{n} {r} {m:32s} b1 cpu {j['b1_cpu_med_ms']:8.3f} best {j['b1_min_ms']:8.3f} b64 cpu {j['b64_cpu_med_ms']:7.3f} recall {j['recall']:.4f} stream {j['stream_cpu_gbs']:.1f}", flush=True)


# ------------------------------------------------------------------ report
def measured(n):
    rows = {}
    path = f"{d(n)}/measured.jsonl"
    if os.path.exists(path):
        for l in open(path):
            j = json.loads(l); rows.setdefault(j["method"], []).append(j)
    return rows


def median(rounds, key):
    v = [r[key] for r in rounds if r.get(key) is not None]
    return st.median(v) if v else float("nan")


def share(rounds):
    """Of the streaming limit by CPU time, and best against best."""
    v = [(r["scan_bytes"] / r["stream_cpu_gbs"] / 1e6 / r["b1_cpu_med_ms"],
          r["scan_bytes"] / r["stream_best_gbs"] / 1e6 / r["b1_min_ms"]) for r in rounds if r.get("scan_bytes")]
    return (st.median(x[0] for x in v), st.median(x[1] for x in v)) if v else None


def report(sizes):
    cpu = next((l.split(":")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.machine())
    flags = next((l for l in open("/proc/cpuinfo") if l.startswith("flags")), "").split()
    simd = ", ".join(f for f in ("avx2", "avx_vnni", "avx512_vnni") if f in flags)
    versions = []
    for venv in VENVS:
        out = subprocess.run([os.path.join(W, venv, "bin", "pip"), "list", "--format", "json"], capture_output=True, text=True)
        wanted = {w.split("==")[0].replace("_", "-") for w in VENVS[venv]}
        versions += [f"{p['name']} {p['version']}" for p in json.loads(out.stdout or "[]") if p["name"] in wanted]
    dates = sorted({r["at"] for n in sizes for rows in measured(n).values() for r in rows})
    loads = [r["load"] for n in sizes for rows in measured(n).values() for r in rows]
    text = ["# Retrieval beside other libraries", "",
            f"{dates[0] if dates else ''}, {os.cpu_count()}-core {cpu} ({simd}), Linux {platform.release().split('-')[0]}, one thread, "
            f"load average {min(loads, default=0):.1f} to {max(loads, default=0):.1f}. {', '.join(sorted(set(versions)))}.", "",
            "`python3 benches/peers.py all`. Top 100 by inner product of 256 queries over clustered vectors of 64 values "
            "(1,000 clusters of uneven size, decaying spectrum, uneven norms; seed in the script). recall@100 is against exact f32. "
            "CPU ms is the median over queries, then over rounds; best ms the least wall time of any query. "
            "\"Of the limit\" is the CPU time of reading the scanned bytes once, by the probe around each measure, over that of a query; "
            "in brackets best against best. Bytes are those of vectors, scales and index. Anonymous memory is what opening and the first answer add. "
            "First answer: the others open with a cold page cache, Tercet with a warm one, and its warm open is given apart.", ""]
    for n in sizes:
        rows = measured(n)
        if not rows: continue
        text += [f"## {n:,} items", "",
                 "| method | recall@100 | CPU ms | best ms | of the limit | batch of 64, CPU ms a query | MB | anonymous MB | first answer ms | rounds |",
                 "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|"]
        for m, r in rows.items():
            s = share(r)
            limit = f"{s[0]:.2f} ({s[1]:.2f})" if s else "–"
            first = f"{median(r, 'first_ms'):.1f}" + (f", open {median(r, 'open_warm_ms'):.3f}" if "open_warm_ms" in r[0] else "")
            batch = f"{median(r, 'b64_cpu_med_ms'):.3f}" if median(r, "b64_cpu_med_ms") > 0 else "–"
            note = " (cosine)" if m.startswith("sqlite") else ""
            text.append(f"| {m}{note} | {median(r, 'recall'):.4f} | {median(r, 'b1_cpu_med_ms'):.3f} | {min(x['b1_min_ms'] for x in r):.3f} | {limit} | {batch} | "
                        f"{median(r, 'file_mb'):.1f} | {median(r, 'anon_mb'):.1f} | {first} | {len(r)} |")
        text += [""]
    text += ["![recall against CPU time](peers.svg)", ""]
    folder = os.path.join(ROOT, "benches", "results")
    open(os.path.join(folder, "peers.md"), "w").write("\n".join(text))
    open(os.path.join(folder, "peers.svg"), "w").write(plot(sizes))
    print("\n".join(text))


def plot(sizes):
    """Recall over CPU time of a query, a panel a size; time is logarithmic, to the left is better."""
    import math
    width, height, left, top = 460, 420, 60, 40
    colors = {"tercet": "#c0392b", "faiss": "#2c3e50", "scann": "#2980b9", "usearch": "#8e44ad", "hnswlib": "#16a085", "ort": "#7f8c8d", "sqlitevec": "#d35400"}
    svg = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{len(sizes) * (width + 90) + 30}" height="{height + 130}" font-family="sans-serif" font-size="11">',
           '<rect width="100%" height="100%" fill="white"/>']
    for i, n in enumerate(sizes):
        rows = {m: r for m, r in measured(n).items() if "filter" not in m and median(r, "recall") >= 0.8}
        if not rows: continue
        x0, y0 = left + i * (width + 90), top
        ts = [median(r, "b1_cpu_med_ms") for r in rows.values()]
        low, high = math.floor(math.log10(min(ts)) * 2) / 2, math.ceil(math.log10(max(ts)) * 2) / 2
        px = lambda t: x0 + (math.log10(t) - low) / (high - low) * width
        py = lambda r: y0 + (1 - r) / 0.2 * height
        svg.append(f'<text x="{x0}" y="{y0 - 14}" font-size="14">{n:,} items × {D}</text>')
        for e in range(math.ceil(low * 1), math.floor(high) + 1):
            for k in (1, 3):
                t = k * 10.0 ** e
                if low <= math.log10(t) <= high:
                    svg.append(f'<line x1="{px(t):.1f}" y1="{y0}" x2="{px(t):.1f}" y2="{y0 + height}" stroke="#ddd"/><text x="{px(t):.1f}" y="{y0 + height + 16}" text-anchor="middle">{t:g}</text>')
        for r in (0.8, 0.85, 0.9, 0.95, 0.99, 1.0):
            svg.append(f'<line x1="{x0}" y1="{py(r):.1f}" x2="{x0 + width}" y2="{py(r):.1f}" stroke="#ddd"/><text x="{x0 - 6}" y="{py(r) + 4:.1f}" text-anchor="end">{r:g}</text>')
        svg.append(f'<text x="{x0 + width / 2}" y="{y0 + height + 34}" text-anchor="middle">CPU ms a query (one thread)</text>')
        for m, r in rows.items():
            t, rec = median(r, "b1_cpu_med_ms"), median(r, "recall")
            color = colors.get(m.split("_")[0], "black")
            bold = ' font-weight="bold"' if m.startswith("tercet") else ""
            label = m.replace("tercet_", "").replace("_", " ")
            svg.append(f'<circle cx="{px(t):.1f}" cy="{py(rec):.1f}" r="4" fill="{color}"><title>{m}: {rec:.4f}, {t:.3f} ms</title></circle>'
                       f'<text x="{px(t) + 6:.1f}" y="{py(rec) + 3:.1f}" font-size="8" fill="{color}"{bold}>{label}</text>')
    for j, (name, color) in enumerate(colors.items()):
        svg.append(f'<circle cx="{left + j * 90}" cy="{top + height + 62}" r="4" fill="{color}"/><text x="{left + j * 90 + 8}" y="{top + height + 66}">{name}</text>')
    return "\n".join(svg + ["</svg>", ""])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["all", "install", "prepare", "build", "build-one", "run", "child", "report"])
    parser.add_argument("--n", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="")
    z = parser.parse_args()
    only = [x for x in z.only.split(",") if x]
    sizes = [z.n] if z.n else [100_000, 1_000_000]
    if z.step in ("all", "install"): install()
    for n in sizes:
        if z.step == "all": subprocess.check_call([python(""), os.path.abspath(__file__), "prepare", "--n", str(n)], env=dict(os.environ, PEERS_DIR=W))
        if z.step == "prepare": prepare(n)
        if z.step in ("all", "build"): build(n, only)
        if z.step in ("all", "run"): run(n, z.rounds, only)
    if z.step == "build-one": M[only[0]][0].build(z.n)
    if z.step == "child": child(only[0], z.n, True)
    if z.step in ("all", "report"): report(sizes)
