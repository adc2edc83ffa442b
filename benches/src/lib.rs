//! What the benchmarks share: random tables, timing, memory figures.

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use tercet::{Bundle, BundleWriter, ItemTableBuilder, Manifest, Scheme};

/// A small generator, so that tables are the same on every machine.
#[derive(Debug)]
pub struct Rng(pub u64);

impl Rng {
    /// Uniform in -1..1.
    pub fn float(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / 8_388_608.0 - 1.0
    }

    /// `n` values of [`Rng::float`].
    pub fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
}

/// A number from the environment, or `default`.
///
/// # Errors
/// If the variable is set to something else than a number.
pub fn number(name: &str, default: usize) -> Result<usize> {
    match std::env::var(name) {
        Ok(text) => text.parse().with_context(|| format!("{name}={text}")),
        Err(_) => Ok(default),
    }
}

/// Writes a bundle of `items` random int8 vectors with popularity, keys `sku-0`, `sku-1`, …
///
/// With `towers`, the user tower of that bundle comes along, if D is the same.
///
/// # Errors
/// Those of the writer.
pub fn write_bundle(path: &Path, items: usize, dim: usize, towers: Option<&Path>) -> Result<()> {
    let mut rng = Rng(1);
    let keys: Vec<String> = (0..items).map(|i| format!("sku-{i}")).collect();
    let vectors = rng.floats(items * dim);
    let popularity: Vec<f32> = (0..items).map(|i| 1.0 / (i + 1) as f32).collect();
    let mut writer = BundleWriter::create(path)?;
    writer.table(
        &ItemTableBuilder::new(dim, Scheme::Int8, &keys, &vectors)?.popularity(&popularity)?,
    )?;
    let mut manifest = Manifest::new("bench", 1, dim, 8);
    if let Some(source) = towers {
        let source = Bundle::open(source)?;
        let from = source.manifest();
        anyhow::ensure!(source.has_user_tower(), "that bundle has no user tower");
        anyhow::ensure!(from.dim == dim, "its vectors have {} values", from.dim);
        for file in [&from.engine.user_tower, &from.engine.user_weights] {
            let Some(file) = file else { continue };
            writer.write_file(file, &std::fs::read(source.path().join(file))?)?;
        }
        manifest.window = from.window;
        manifest.behaviors = from.behaviors.clone();
        manifest.engine.opset = from.engine.opset;
        manifest
            .engine
            .user_tower
            .clone_from(&from.engine.user_tower);
        manifest
            .engine
            .user_weights
            .clone_from(&from.engine.user_weights);
    }
    writer.finish(manifest)?;
    Ok(())
}

/// Times of repeated runs, in ms.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// The fastest: what the machine can do when nobody else uses it.
    pub best: f64,
    /// The median: what it did this time.
    pub median: f64,
}

/// Runs `f` once to warm up, then `times` times.
pub fn time<T>(times: usize, mut f: impl FnMut() -> T) -> Times {
    black_box(f());
    let mut ms: Vec<f64> = (0..times.max(1))
        .map(|_| {
            let start = Instant::now();
            black_box(f());
            start.elapsed().as_secs_f64() * 1e3
        })
        .collect();
    ms.sort_unstable_by(f64::total_cmp);
    Times {
        best: ms[0],
        median: ms[ms.len() / 2],
    }
}

/// Anonymous resident memory of this process in KiB, where Linux tells.
pub fn anonymous_kib() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("Anonymous:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Time this thread has spent on a CPU, in ms, where Linux tells: unlike wall time it hardly
/// depends on who else is running.
pub fn cpu_ms() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    let nanoseconds: f64 = text.split(' ').next()?.parse().ok()?;
    Some(nanoseconds / 1e6)
}

/// Time this thread has spent on a CPU, in ms, to the nanosecond: for what takes microseconds.
pub fn thread_cpu_ms() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for writing, and the clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

/// The load average of the last minute, where Linux tells: a busy machine measures badly.
pub fn load() -> String {
    std::fs::read_to_string("/proc/loadavg")
        .ok()
        .and_then(|text| text.split(' ').next().map(String::from))
        .unwrap_or_else(|| "unknown".into())
}
