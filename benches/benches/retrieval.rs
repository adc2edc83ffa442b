//! Top 100 over the vectors of the comparison with other libraries: see `benches/peers.py`,
//! which makes the data, runs this program a process a method, and writes the report.
//!
//! ```text
//! retrieval build DIR METHOD    x.npy → METHOD.tercet
//! retrieval run DIR METHOD      one JSON line: recall, ms, bytes, memory
//! retrieval list                the methods
//! ```
//!
//! `DIR` holds `x.npy` [N, D], `q.npy` [Q, D] and `gt.npy` [Q, 100], the rows of the best items
//! by exact f32 products. Recall is measured over all queries before anything is timed.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use tercet::{
    Bundle, BundleWriter, Effort, Filter, ItemTable, ItemTableBuilder, Manifest, Row, Scheme,
    Search, Selection,
};
use tercet_benches::{anonymous_kib, thread_cpu_ms};

const K: usize = 100;
const BATCH: usize = 64;

/// A table and how it is searched.
struct Method {
    name: &'static str,
    /// Name of the bundle, which several methods share.
    table: &'static str,
    scheme: Scheme,
    tail: bool,
    /// Rows per partition on average.
    partition: Option<usize>,
    effort: Effort,
    /// One row in so many passes a filter.
    one_in: Option<usize>,
}

const fn flat(name: &'static str, scheme: Scheme, tail: bool) -> Method {
    Method {
        name,
        table: name,
        scheme,
        tail,
        partition: None,
        effort: Effort::Default,
        one_in: None,
    }
}

const fn probing(
    name: &'static str,
    table: &'static str,
    scheme: Scheme,
    effort: Effort,
) -> Method {
    Method {
        name,
        table,
        scheme,
        tail: false,
        partition: Some(244),
        effort,
        one_in: None,
    }
}

const fn filtered(name: &'static str, one_in: usize) -> Method {
    Method {
        one_in: Some(one_in),
        table: "tercet_int8",
        ..flat(name, Scheme::Int8, false)
    }
}

const METHODS: [Method; 28] = [
    flat("tercet_f32", Scheme::F32, false),
    flat("tercet_f16", Scheme::F16, false),
    flat("tercet_int8", Scheme::Int8, false),
    flat("tercet_int8_tail", Scheme::Int8, true),
    flat("tercet_int4", Scheme::Int4, false),
    flat("tercet_two_stage", Scheme::TwoStage, false),
    flat("tercet_two_stage_tail", Scheme::TwoStage, true),
    probing(
        "tercet_int8_part_exact",
        "tercet_int8_part",
        Scheme::Int8,
        Effort::Exact,
    ),
    probing(
        "tercet_int8_part_p32",
        "tercet_int8_part",
        Scheme::Int8,
        Effort::Probes(32),
    ),
    probing(
        "tercet_int8_part_p64",
        "tercet_int8_part",
        Scheme::Int8,
        Effort::Probes(64),
    ),
    probing(
        "tercet_int8_part_p96",
        "tercet_int8_part",
        Scheme::Int8,
        Effort::Probes(96),
    ),
    probing(
        "tercet_int8_part_p128",
        "tercet_int8_part",
        Scheme::Int8,
        Effort::Probes(128),
    ),
    probing(
        "tercet_int8_part_p160",
        "tercet_int8_part",
        Scheme::Int8,
        Effort::Probes(160),
    ),
    probing(
        "tercet_int8_part_p320",
        "tercet_int8_part",
        Scheme::Int8,
        Effort::Probes(320),
    ),
    probing(
        "tercet_two_stage_part_p320",
        "tercet_two_stage_part",
        Scheme::TwoStage,
        Effort::Probes(320),
    ),
    probing(
        "tercet_int8_part_p192",
        "tercet_int8_part",
        Scheme::Int8,
        Effort::Probes(192),
    ),
    probing(
        "tercet_int8_part_p256",
        "tercet_int8_part",
        Scheme::Int8,
        Effort::Probes(256),
    ),
    probing(
        "tercet_two_stage_part_p96",
        "tercet_two_stage_part",
        Scheme::TwoStage,
        Effort::Probes(96),
    ),
    probing(
        "tercet_two_stage_part_p128",
        "tercet_two_stage_part",
        Scheme::TwoStage,
        Effort::Probes(128),
    ),
    probing(
        "tercet_two_stage_part_p192",
        "tercet_two_stage_part",
        Scheme::TwoStage,
        Effort::Probes(192),
    ),
    probing(
        "tercet_two_stage_part_p256",
        "tercet_two_stage_part",
        Scheme::TwoStage,
        Effort::Probes(256),
    ),
    filtered("tercet_int8_filter_1_in_1", 1),
    filtered("tercet_int8_filter_1_in_2", 2),
    filtered("tercet_int8_filter_1_in_10", 10),
    filtered("tercet_int8_filter_1_in_50", 50),
    filtered("tercet_int8_filter_1_in_63", 63),
    filtered("tercet_int8_filter_1_in_100", 100),
    filtered("tercet_int8_filter_1_in_10000", 10_000),
];

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| a != "--bench")
        .collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        ["list"] => {
            for m in &METHODS {
                let bytes = match (m.partition, m.one_in) {
                    (None, None) => m.scheme.scan_bytes(64),
                    _ => 0,
                };
                println!("{} {bytes}", m.name);
            }
            Ok(())
        }
        ["build", dir, name] => build(Path::new(dir), method(name)?),
        ["run", dir, name] => run(Path::new(dir), method(name)?),
        // `cargo bench` calls every benchmark without arguments.
        [] => {
            println!("see benches/peers.py");
            Ok(())
        }
        _ => bail!("retrieval (build | run) DIR METHOD, or list"),
    }
}

fn method(name: &str) -> Result<&'static Method> {
    METHODS
        .iter()
        .find(|m| m.name == name)
        .context("no such method")
}

/// Data of a little-endian C-order `.npy` file, and its two dimensions.
fn npy(path: &Path, dtype: &str) -> Result<(Vec<u8>, [usize; 2])> {
    let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
    let head = bytes.get(..10).context("short file")?;
    ensure!(
        head.starts_with(b"\x93NUMPY\x01\x00"),
        "not an .npy file of version 1"
    );
    let end = 10 + usize::from(u16::from_le_bytes([head[8], head[9]]));
    let header = std::str::from_utf8(bytes.get(10..end).context("short header")?)?;
    ensure!(
        header.contains(&format!("'{dtype}'")) && header.contains("'fortran_order': False"),
        "{header}"
    );
    let shape = header.split_once("'shape': (").context("shape")?.1;
    let shape = shape.split_once(')').context("shape")?.0;
    let shape: Vec<usize> = shape
        .split(',')
        .map(|d| d.trim().parse())
        .collect::<Result<_, _>>()?;
    let [n, d] = shape[..] else {
        bail!("two dimensions expected, got {shape:?}")
    };
    Ok((bytes[end..].to_vec(), [n, d]))
}

fn floats(path: &Path) -> Result<(Vec<f32>, usize)> {
    let (bytes, [_, d]) = npy(path, "<f4")?;
    let values = bytes
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    Ok((values.collect(), d))
}

fn path(dir: &Path, m: &Method) -> PathBuf {
    dir.join(format!("{}.tercet", m.table))
}

fn build(dir: &Path, m: &Method) -> Result<()> {
    let path = path(dir, m);
    if path.exists() {
        return Ok(());
    }
    let (x, dim) = floats(&dir.join("x.npy"))?;
    let n = x.len() / dim;
    let keys: Vec<String> = (0..n).map(|i| i.to_string()).collect();
    // Columns for filters: one row in so many has a value, rows of a kind scattered.
    let columns: Vec<(String, Vec<Option<&str>>)> = METHODS
        .iter()
        .filter_map(|m| m.one_in)
        .map(|one_in| {
            let passes = |i: usize| {
                let hash = (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
                hash.is_multiple_of(one_in as u64).then_some("yes")
            };
            (format!("one_in_{one_in}"), (0..n).map(passes).collect())
        })
        .collect();
    let mut table = ItemTableBuilder::new(dim, m.scheme, &keys, &x)?;
    if m.table == "tercet_int8" {
        for (name, values) in &columns {
            table = table.attribute(name, values)?;
        }
    }
    if m.tail {
        table = table.tail()?;
    }
    if let Some(rows) = m.partition {
        table = table.partitions((n / rows).max(1))?;
    }
    let mut writer = BundleWriter::create(&path)?;
    writer.table(&table)?;
    let bundle = writer.finish(Manifest::new("bench", 1, dim, 8))?;
    bundle.verify()?;
    Ok(())
}

/// Bytes of the tensors that hold vectors, their scales and partitions: what other libraries
/// store too. Keys come on top.
fn vector_bytes(table: &ItemTable, m: &Method) -> usize {
    let (n, d) = (table.len(), table.dim());
    let p = table.partitions().unwrap_or(0);
    let rows = match m.scheme {
        Scheme::TwoStage => d + 4,
        other => other.scan_bytes(d),
    };
    n * (rows + if m.tail { d / 2 } else { 0 }) + p * (2 * d + 8)
}

fn run(dir: &Path, m: &Method) -> Result<()> {
    let (queries, dim) = floats(&dir.join("q.npy"))?;
    let (truth, _) = npy(&dir.join("gt.npy"), "<i4")?;
    let truth: Vec<u32> = truth
        .chunks_exact(4)
        .map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect();
    let before = anonymous_kib();
    let start = Instant::now();
    let bundle = Bundle::open(path(dir, m))?;
    let open_ms = start.elapsed().as_secs_f64() * 1e3;
    let table = bundle.table();
    let filter = m
        .one_in
        .map(|n| Filter::is_in(&format!("one_in_{n}"), ["yes"]));
    let base = Search::top(K).effort(m.effort);
    // As a session does: the filter is evaluated anew for every query.
    let answer = |query: &[f32]| -> Result<Vec<tercet::Scored>> {
        Ok(match &filter {
            Some(filter) => table.search(query, &base.clone().within(&table.select(filter)?))?,
            None => table.search(query, &base)?,
        })
    };
    let within = filter.as_ref().map(|f| table.select(f)).transpose()?;
    let first = answer(&queries[..dim])?;
    let first_ms = start.elapsed().as_secs_f64() * 1e3;
    let after = anonymous_kib();
    ensure!(first.len() == K.min(within.as_ref().map_or(table.len(), Selection::len)));

    let mut found = 0;
    let mut expected = 0;
    let (mut best, mut cpu) = (Vec::new(), Vec::new());
    let started = Instant::now();
    for round in 0..4 {
        for (q, query) in queries.chunks_exact(dim).enumerate() {
            // The first round is for recall; slow methods are timed on fewer queries.
            if round > 0 && q >= 24 && started.elapsed().as_secs() >= 8 {
                break;
            }
            let (clock, start) = (thread_cpu_ms(), Instant::now());
            let top = answer(query)?;
            best.push(start.elapsed().as_secs_f64() * 1e3);
            cpu.push(thread_cpu_ms() - clock);
            if round == 0 {
                let (f, e) = recall(table, &top, &truth[q * K..(q + 1) * K], within.as_ref())?;
                found += f;
                expected += e;
            }
        }
        if round == 0 {
            // Timed, but with cold caches.
            best.clear();
            cpu.clear();
        }
    }
    let mut batch = Vec::new();
    let mut batch_cpu = Vec::new();
    let excludes = vec![Vec::new(); BATCH];
    if m.one_in.is_none() {
        for _ in 0..3 {
            for queries in queries.chunks_exact(BATCH * dim) {
                let (clock, start) = (thread_cpu_ms(), Instant::now());
                let tops = table.search_batch(queries, &base, &excludes)?;
                batch.push(start.elapsed().as_secs_f64() * 1e3 / BATCH as f64);
                batch_cpu.push((thread_cpu_ms() - clock) / BATCH as f64);
                // The same answers as one by one.
                let single = answer(&queries[..dim])?;
                let same = tops[0]
                    .iter()
                    .zip(&single)
                    .filter(|(a, b)| a.row == b.row)
                    .count();
                ensure!(same >= 95, "a batch finds {same} of a single search's {K}");
            }
        }
    }
    let opens: Vec<f64> = (0..50)
        .map(|_| {
            let start = Instant::now();
            let opened = Bundle::open(path(dir, m)).map(drop);
            opened.map(|()| start.elapsed().as_secs_f64() * 1e3)
        })
        .collect::<Result<_, _>>()?;
    let fields = [
        ("recall", found as f64 / expected.max(1) as f64),
        ("b1_min_ms", quantile(&best, 0.0)),
        ("b1_med_ms", quantile(&best, 0.5)),
        ("b1_cpu_med_ms", quantile(&cpu, 0.5)),
        ("b64_min_ms", quantile(&batch, 0.0)),
        ("b64_cpu_med_ms", quantile(&batch_cpu, 0.5)),
        ("first_ms", first_ms),
        ("open_ms", open_ms),
        ("open_warm_ms", quantile(&opens, 0.5)),
        ("file_mb", vector_bytes(table, m) as f64 / 1e6),
        ("anon_mb", kib(before, after)),
        ("partitions", table.partitions().unwrap_or(0) as f64),
    ];
    let json: Vec<String> = fields.iter().map(|(k, v)| format!("\"{k}\":{v}")).collect();
    println!(
        "{{{},\"kernel\":\"{}\",\"bytes\":{}}}",
        json.join(","),
        tercet::kernel::active().name(),
        bundle
            .manifest()
            .files
            .values()
            .map(|f| f.bytes)
            .sum::<u64>()
    );
    Ok(())
}

fn kib(before: Option<u64>, after: Option<u64>) -> f64 {
    match (before, after) {
        (Some(a), Some(b)) => b.saturating_sub(a) as f64 / 1024.0,
        _ => f64::NAN,
    }
}

fn quantile(values: &[f64], at: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let i = (sorted.len() as f64 * at) as usize;
    sorted
        .get(i.min(sorted.len().saturating_sub(1)))
        .copied()
        .unwrap_or(0.0)
}

/// How many of the true best were found, of those that pass the filter.
fn recall(
    table: &ItemTable,
    top: &[tercet::Scored],
    truth: &[u32],
    within: Option<&Selection>,
) -> Result<(usize, usize)> {
    let mut found = HashMap::new();
    for s in top {
        found.insert(table.key(s.row)?.parse::<u32>()?, s.row);
    }
    let mut expected = 0;
    let mut hits = 0;
    for item in truth {
        let row = match found.get(item) {
            Some(row) => *row,
            None => table
                .find(&item.to_string())?
                .context("an item is missing")? as Row,
        };
        if within.is_none_or(|rows| rows.contains(row)) {
            expected += 1;
            hits += usize::from(found.contains_key(item));
        }
    }
    Ok((hits, expected))
}
