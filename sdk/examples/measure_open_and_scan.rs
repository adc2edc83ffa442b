//! Writes a table of N random int8 items and prints what opening and scanning it cost.
//!
//! `cargo run --release -p tercet --example measure_open_and_scan -- 1000000 64`

use std::time::Instant;

use tercet::{Bundle, BundleWriter, ItemTableBuilder, Manifest, Scheme};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1).map(|a| a.parse::<usize>());
    let n = args.next().transpose()?.unwrap_or(1_000_000);
    let dim = args.next().transpose()?.unwrap_or(64);
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("big.tercet");
    let mut state = 1u64;
    let mut float = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 40) as f32 / 8_388_608.0 - 1.0
    };
    let query: Vec<f32> = (0..dim).map(|_| float()).collect();
    {
        let keys: Vec<String> = (0..n).map(|i| format!("sku-{i}")).collect();
        let vectors: Vec<f32> = (0..n * dim).map(|_| float()).collect();
        let start = Instant::now();
        let mut writer = BundleWriter::create(&path)?;
        writer.table(&ItemTableBuilder::new(dim, Scheme::Int8, &keys, &vectors)?)?;
        writer.finish(Manifest::new("big", 1, dim, 8))?;
        println!("write    {:8.2} s", start.elapsed().as_secs_f64());
    }
    println!("kernel   {}", tercet::kernel::active().name());
    drop(Bundle::open(&path)?);
    let before = anonymous_kib();
    let open = best(50, || Bundle::open(&path).map(drop));
    let bundle = Bundle::open(&path)?;
    println!(
        "open     {open:8.3} ms, {} KiB more anonymous memory",
        anonymous_kib().saturating_sub(before)
    );
    let table = bundle.table();
    let find = best(50, || table.find("sku-777").map(drop));
    println!("find     {find:8.4} ms");
    for k in [10, 100] {
        let ms = best(15, || table.top_k(&query, k, &[]).map(drop));
        println!(
            "top {k:4} {ms:8.2} ms, {:.1} GB/s",
            (n * dim) as f64 / ms / 1e6
        );
    }
    let similar = best(5, || {
        table
            .top_k_by(tercet::Metric::Cosine, &query, 10, &[])
            .map(drop)
    });
    println!("cosine   {similar:8.2} ms");
    let start = Instant::now();
    bundle.verify()?;
    println!("verify   {:8.2} ms", start.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

/// Fastest of `times` runs, in ms.
fn best(times: usize, mut f: impl FnMut() -> tercet::Result<()>) -> f64 {
    (0..times)
        .map(|_| {
            let start = Instant::now();
            f().expect("measured call");
            start.elapsed().as_secs_f64() * 1e3
        })
        .fold(f64::INFINITY, f64::min)
}

/// Anonymous resident memory in KiB; 0 where `/proc` does not tell.
fn anonymous_kib() -> u64 {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|s| {
            s.lines()
                .find_map(|l| l.strip_prefix("RssAnon:"))
                .and_then(|l| l.split_whitespace().next()?.parse().ok())
        })
        .unwrap_or(0)
}
