//! Opening a large bundle: time, memory, and the first answer of a fresh process.
//!
//! `cargo bench -p tercet-benches --bench open`; `SIZE` (1000000) and `DIM` (64) change the
//! synthetic bundle. `TOWER=shop.tercet` takes the user tower of a real bundle along, so that the
//! first recommendation includes loading it; `BUNDLE=shop.tercet` measures that bundle instead.
//!
//! The measure runs in a process of its own, because writing the table leaves memory behind.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tercet::{Bundle, Event, Query, Session, SessionOptions};
use tercet_benches::{Rng, anonymous_kib, cpu_ms, load, number, time, write_bundle};

const CHILD: &str = "TERCET_BENCH_OPEN";

fn main() -> Result<()> {
    if let Some(path) = std::env::var_os(CHILD) {
        return measure(Path::new(&path));
    }
    let folder = tempfile::tempdir()?;
    let path = match std::env::var_os("BUNDLE") {
        Some(path) => PathBuf::from(path),
        None => {
            let (items, dim) = (number("SIZE", 1_000_000)?, number("DIM", 64)?);
            let path = folder.path().join("open.tercet");
            let tower = std::env::var_os("TOWER").map(PathBuf::from);
            write_bundle(&path, items, dim, tower.as_deref())?;
            path
        }
    };
    // The first process puts the file into the page cache; the second is the measure.
    for last in [false, true] {
        let output = Command::new(std::env::current_exe()?)
            .env(CHILD, &path)
            .output()?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        if last {
            print!("{}", String::from_utf8_lossy(&output.stdout));
        }
    }
    Ok(())
}

fn measure(path: &Path) -> Result<()> {
    let before = anonymous_kib();
    let start = Instant::now();
    let bundle = Bundle::open(path)?;
    let first_open = start.elapsed().as_secs_f64() * 1e6;
    let after = anonymous_kib();

    // The first answer of this process: no page mapped, no tower loaded, no code warm.
    let table = bundle.table();
    let cpu = cpu_ms();
    let start = Instant::now();
    let key = table.key(table.len() as u32 / 2)?;
    let (first, what) = if bundle.has_user_tower() {
        let mut session = Session::new(&bundle, SessionOptions::default())?;
        session.record(Event::new(key))?;
        let top = session.recommend(&Query::top(100))?;
        ensure!(top.iter().all(|r| r.item != key), "a seen item came back");
        (top.len(), "session, tower, one event, top 100")
    } else {
        let row = table.find(key)?.context("a key is not found")?;
        let query = Rng(2).floats(table.dim());
        let top = table.top_k(&query, 100, &[row])?;
        ensure!(top.iter().all(|s| s.row != row), "a seen item came back");
        (
            top.len(),
            "key lookup, top 100 of a given user vector (no tower)",
        )
    };
    let first_answer = start.elapsed().as_secs_f64() * 1e3;
    let cpu = cpu.zip(cpu_ms()).map(|(before, after)| after - before);
    let answered = anonymous_kib();
    ensure!(first == 100.min(table.len() - 1), "{first} items");

    let open = time(200, || Bundle::open(path).map(drop));
    println!(
        "{} items × {}, {}, kernel {}, load {}",
        table.len(),
        table.dim(),
        table.scheme(),
        tercet::kernel::active().name(),
        load()
    );
    println!("first open of the process {first_open:9.0} µs");
    println!(
        "open                      {:9.0} µs, median {:.0}",
        open.best * 1e3,
        open.median * 1e3
    );
    if let (Some(before), Some(after), Some(answered)) = (before, after, answered) {
        println!(
            "anonymous memory          {:9} KiB after open, {} after the answer",
            after.saturating_sub(before),
            answered.saturating_sub(before)
        );
    }
    println!("first answer              {first_answer:9.2} ms: {what}");
    if let Some(cpu) = cpu {
        println!("  on the CPU              {cpu:9.2} ms");
    }
    Ok(())
}
