//! Deltas: what it costs to bring a store from one release to the next, in which 1 % of the items
//! are other ones.
//!
//! `cargo bench -p tercet-benches --no-default-features --bench delta [-- ITEMS…]`. The files made
//! are compared with those of the new release before anything is timed. `written` is the time this
//! machine takes to write and sync as many bytes as the new bundle has: no way to
//! apply a delta that ends in one file and is safe against power loss can be faster.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use minisign::KeyPair;
use tercet::store::write_delta;
use tercet::{Bundle, BundleStore, BundleWriter, ItemTableBuilder, Manifest, Scheme, StoreOptions};
use tercet_benches::{Rng, load};

const DIM: usize = 64;
const ROUNDS: u64 = 5;

fn main() -> Result<()> {
    let sizes: Vec<usize> = std::env::args().filter_map(|a| a.parse().ok()).collect();
    let sizes = if sizes.is_empty() {
        vec![100_000, 1_000_000]
    } else {
        sizes
    };
    println!("load {:.1}", load());
    println!(
        "{:>9} {:>10} {:>10} {:>10} {:>10} {:>10}",
        "items", "delta kB", "bundle kB", "apply ms", "whole ms", "written ms"
    );
    for n in sizes {
        measure(n)?;
    }
    Ok(())
}

/// The catalogue of release `version`: 0.5 % of the items have another vector than in release 1,
/// 0.3 % are new and 0.2 % are gone.
fn release(folder: &Path, keys: &KeyPair, n: usize, version: u64) -> Result<PathBuf> {
    let later = version > 1;
    let mut vectors = Rng(1).floats(n * DIM);
    let mut other = Rng(version);
    let mut rows = Vec::with_capacity(n);
    for row in 0..n {
        if later && row % 500 == 17 {
            continue;
        }
        if later && row % 200 == 3 {
            vectors[row * DIM..(row + 1) * DIM].copy_from_slice(&other.floats(DIM));
        }
        rows.push(row);
    }
    let mut kept: Vec<f32> = rows
        .iter()
        .flat_map(|&row| vectors[row * DIM..(row + 1) * DIM].iter().copied())
        .collect();
    let mut names: Vec<String> = rows.iter().map(|row| format!("sku-{row:08}")).collect();
    if later {
        for new in 0..n * 3 / 1000 {
            names.push(format!("new-{version}-{new}"));
            kept.extend(other.floats(DIM));
        }
    }
    // Items keep what they have wherever their rows move.
    let number = |at: usize| rows.get(at).copied().unwrap_or(at);
    let popularity: Vec<f32> = (0..names.len())
        .map(|at| 1.0 / (number(at) + 1) as f32)
        .collect();
    let category: Vec<Option<String>> = (0..names.len())
        .map(|at| Some(format!("category {}", number(at) % 97)))
        .collect();
    let table = ItemTableBuilder::new(DIM, Scheme::Int8, &names, &kept)?
        .popularity(&popularity)?
        .attribute("category", &category)?;
    let path = folder.join(format!("{version}.tercet"));
    let mut writer = BundleWriter::create(&path)?;
    writer.table(&table)?;
    writer.finish(Manifest::new("shop", version, DIM, 50))?;
    let manifest = std::fs::read(path.join("manifest.json"))?;
    let signature = minisign::sign(None, &keys.sk, manifest.as_slice(), None, None)?;
    std::fs::write(path.join("manifest.json.minisig"), signature.into_string())?;
    Ok(path)
}

fn measure(n: usize) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let keys = KeyPair::generate_unencrypted_keypair()?;
    let old = release(folder.path(), &keys, n, 1)?;
    let new = release(folder.path(), &keys, n, 2)?;
    let delta = folder.path().join("delta");
    let report = write_delta(&Bundle::open(&old)?, &Bundle::open(&new)?, &delta)?;

    let (mut applied, mut whole, mut written) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=ROUNDS {
        let mut times = [0.0; 2];
        for (time, source) in times.iter_mut().zip([&delta, &new]) {
            let store = tempfile::tempdir_in(folder.path())?;
            let options = StoreOptions::new("shop").trust(&keys.pk.to_base64())?;
            let store = BundleStore::open(store.path(), options)?;
            store.install(&old)?;
            let start = Instant::now();
            store.install(source)?;
            *time = start.elapsed().as_secs_f64() * 1e3;
            let current = store.current()?;
            let made = std::fs::read(current.path().join("items.safetensors"))?;
            let want = std::fs::read(new.join("items.safetensors"))?;
            ensure!(made == want, "the delta does not lead to the new bundle");
            if round == 0 {
                current.verify()?;
            }
        }
        let bytes = std::fs::read(new.join("items.safetensors"))?;
        let path = folder.path().join("copy");
        let start = Instant::now();
        let mut file = File::create(&path)?;
        for piece in bytes.chunks(1 << 17) {
            file.write_all(piece)?;
        }
        file.sync_all()?;
        let time = start.elapsed().as_secs_f64() * 1e3;
        std::fs::remove_file(&path)?;
        // The first round warms the caches.
        if round > 0 {
            applied.push(times[0]);
            whole.push(times[1]);
            written.push(time);
        }
    }
    let median = |values: &mut Vec<f64>| -> Result<f64> {
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().context("no rounds")
    };
    println!(
        "{n:>9} {:>10} {:>10} {:>10.1} {:>10.1} {:>10.1}",
        report.bytes / 1000,
        report.bundle_bytes / 1000,
        median(&mut applied)?,
        median(&mut whole)?,
        median(&mut written)?
    );
    Ok(())
}
