//! Top-k over a mapped int8 table, against the rate at which the same bytes can be read.
//!
//! `cargo bench -p tercet-benches --no-default-features --bench scan`; `SIZE` (1000000), `DIM`
//! (64) and `RUNS` (51) change the measure, `TERCET_KERNEL` the kernel.

use std::time::Instant;

use anyhow::{Result, ensure};
use tercet::{Bundle, ItemTable, Metric, Row, Scored, kernel};
use tercet_benches::{Rng, load, number, time, write_bundle};

fn main() -> Result<()> {
    let (items, dim) = (number("SIZE", 1_000_000)?, number("DIM", 64)?);
    let runs = number("RUNS", 51)?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("scan.tercet");
    write_bundle(&path, items, dim, None)?;
    let bundle = Bundle::open(&path)?;
    let table = bundle.table();
    let query = Rng(2).floats(dim);
    let bytes = (items * dim) as f64;
    println!(
        "{items} × {dim} int8, kernel {}, load {}",
        kernel::active().name(),
        load()
    );

    let start = Instant::now();
    let first = table.top_k(&query, 100, &[])?;
    let first_ms = start.elapsed().as_secs_f64() * 1e3;
    check(table, &query, &first)?;
    println!("answer equals the scalar oracle");
    println!("first top 100 (pages not mapped yet) {first_ms:.2} ms");

    // As many bytes of the same file, mapped as the runtime maps it.
    let file = std::fs::File::open(path.join("items.safetensors"))?;
    // SAFETY: the file lies in a temporary folder of this process and is not written again.
    let map = unsafe { memmap2::Mmap::map(&file)? };
    // SAFETY: any bytes are valid u64 values.
    let (_, words, _) = unsafe { map.align_to::<u64>() };
    let words = &words[..items * dim / 8];
    // The measures take turns, so that a neighbour's load hits all of them.
    let mut read = f64::INFINITY;
    let mut best = [f64::INFINITY; 3];
    let mut median = [0.0f64; 3];
    for _ in 0..3 {
        read = read.min(time(runs / 3, || sum(words)).best);
        for (i, k) in [10, 100].into_iter().enumerate() {
            let t = time(runs / 3, || table.top_k(&query, k, &[]));
            (best[i], median[i]) = (best[i].min(t.best), median[i].max(t.median));
        }
        let t = time(runs / 9, || table.top_k_by(Metric::Cosine, &query, 10, &[]));
        (best[2], median[2]) = (best[2].min(t.best), median[2].max(t.median));
    }
    let stream = bytes / read / 1e6;
    println!("streaming read   {read:7.2} ms  {stream:5.1} GB/s");
    for (i, name) in ["top 10", "top 100", "cosine top 10"]
        .into_iter()
        .enumerate()
    {
        let rate = bytes / best[i] / 1e6;
        println!(
            "{name:15}  {:7.2} ms  {rate:5.1} GB/s  {:3.0} % of the read rate, median {:.2} ms",
            best[i],
            rate / stream * 100.0,
            median[i]
        );
    }
    Ok(())
}

/// Compares with a plain loop over all items: int8 sums, finalists, f32 scores.
fn check(table: &ItemTable, query: &[f32], got: &[Scored]) -> Result<()> {
    let dim = table.dim();
    let scalar = kernel::by_name("scalar")?;
    // int8 finds the finalists, f32 ranks them: the result must be the best 100 by f32 score.
    let mut all = Vec::with_capacity(table.len());
    let mut x = vec![0.0; dim];
    for row in 0..table.len() as Row {
        table.decode(row, &mut x)?;
        let mut score = [0.0];
        scalar.dot_f32(query, &x, &mut score);
        all.push((score[0], row));
    }
    all.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    ensure!(got.len() == 100.min(table.len()), "{} items", got.len());
    let bound = 1e-5 * dim as f32;
    for (s, (score, row)) in got.iter().zip(&all) {
        ensure!(
            s.row == *row && (s.score - score).abs() <= bound,
            "row {} with {} where the oracle has {row} with {score}",
            s.row,
            s.score
        );
    }
    Ok(())
}

/// A wrapping sum: the least that can be done with every byte.
fn sum(words: &[u64]) -> u64 {
    words.iter().fold(0, |a, &b| a.wrapping_add(b))
}
