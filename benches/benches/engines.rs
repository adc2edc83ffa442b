//! Engines: what the user tower of a student costs in each, from loading it to a list of 100.
//!
//! `BUNDLE=shop.tercet cargo bench -p tercet-benches --bench engines`; with `--features ort` and
//! `TERCET_ORT_LIB=libonnxruntime.so.…` in ONNX Runtime too, on one thread like the others. The
//! vector of every engine is compared with that of the first before anything is timed. "list" is
//! what an app waits for after an event: user vector by a full pass, and the best 100 of the table.
//!
//! `ANSWER=FILE` writes the item vectors of the history and the user vector, little-endian f32, for
//! others to check.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tercet::{Bundle, EngineKind, Event, Query, Row, Session, SessionOptions, UserTower};
use tercet_benches::{Rng, load};

/// Full passes timed.
const PASSES: usize = 2000;

/// Loads timed.
const LOADS: usize = 20;

type Load<'a> = Box<dyn Fn() -> tercet::Result<UserTower> + 'a>;

fn main() -> Result<()> {
    let path = std::env::var_os("BUNDLE").context("set BUNDLE to the folder of a bundle")?;
    let bundle = Bundle::open(path)?;
    let (table, m) = (bundle.table(), bundle.manifest());
    let mut rng = Rng(11);
    let history: Vec<(Row, i64)> = (0..m.window)
        .map(|_| ((rng.float().abs() * (table.len() - 1) as f32) as Row, 0))
        .collect();
    println!(
        "{} items, dim {}, {} events, load {:.1}",
        table.len(),
        m.dim,
        m.window,
        load()
    );
    println!(
        "{:>12} {:>16} {:>12} {:>12}",
        "engine", "load + first us", "full pass us", "list us"
    );
    let mut wanted: Option<Vec<f32>> = None;
    for (name, start) in engines(&bundle)? {
        let (mut loading, mut passes, mut lists) = (Vec::new(), Vec::new(), Vec::new());
        let mut vector = Vec::new();
        for _ in 0..LOADS {
            let begin = Instant::now();
            vector = start()?.encode(table, &[&history])?;
            loading.push(begin.elapsed().as_secs_f64() * 1e6);
        }
        let want = wanted.get_or_insert_with(|| vector.clone());
        let size = want.iter().fold(0f32, |a, x| a.max(x.abs()));
        ensure!(
            vector
                .iter()
                .zip(want.iter())
                .all(|(a, b)| (a - b).abs() <= 1e-4 * size),
            "the user vector of {name} differs"
        );
        let mut tower = start()?;
        for _ in 0..PASSES {
            let begin = Instant::now();
            black_box(tower.encode(table, &[&history])?);
            passes.push(begin.elapsed().as_secs_f64() * 1e6);
        }
        for _ in 0..PASSES / 10 {
            let begin = Instant::now();
            let user = tower.encode(table, &[&history])?;
            black_box(table.search(&user, &tercet::Search::top(100))?);
            lists.push(begin.elapsed().as_secs_f64() * 1e6);
        }
        println!(
            "{name:>12} {:>16.1} {:>12.1} {:>12.1}",
            median(&mut loading),
            median(&mut passes),
            median(&mut lists)
        );
    }

    if let (Some(file), Some(user)) = (std::env::var_os("ANSWER"), &wanted) {
        let mut bytes = Vec::new();
        for &(row, _) in &history {
            bytes.extend(table.vector(row)?.iter().flat_map(|x| x.to_le_bytes()));
        }
        bytes.extend(user.iter().flat_map(|x| x.to_le_bytes()));
        std::fs::write(file, bytes)?;
    }

    // What the runtime does instead of a full pass where the engine can follow a history.
    let mut session = Session::new(&bundle, SessionOptions::default().max_history(4096))?;
    for &(row, _) in &history {
        session.record(Event::new(table.key(row)?))?;
    }
    session.recommend(&Query::top(100))?;
    let (mut events, mut lists) = (Vec::new(), Vec::new());
    for _ in 0..PASSES / 10 {
        let row = (rng.float().abs() * (table.len() - 1) as f32) as Row;
        let event = Event::new(table.key(row)?);
        let begin = Instant::now();
        session.record(event)?;
        black_box(session.user_vector()?);
        events.push(begin.elapsed().as_secs_f64() * 1e6);
        let begin = Instant::now();
        black_box(session.recommend(&Query::top(100))?);
        lists.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    println!(
        "session, {}: one more event {:.1} us, then its list of 100 {:.1} us",
        session.engine()?.engine,
        median(&mut events),
        median(&mut lists)
    );
    Ok(())
}

/// Name of each engine of this build, and how to load the tower with it.
fn engines(bundle: &Bundle) -> Result<Vec<(String, Load<'_>)>> {
    let mut engines: Vec<(String, Load<'_>)> = vec![(
        "compact".into(),
        Box::new(|| bundle.load_user_tower_with(EngineKind::Compact)),
    )];
    if cfg!(feature = "tract") {
        let load = || bundle.load_user_tower_with(EngineKind::Tract);
        engines.push(("tract".into(), Box::new(load)));
    }
    #[cfg(feature = "ort")]
    if let Some(library) = std::env::var_os("TERCET_ORT_LIB") {
        let runtime =
            tercet::OnnxRuntime::load(tercet::OnnxRuntimeOptions::new(library).threads(1))?;
        let load = move || bundle.load_user_tower_on(&runtime);
        engines.push(("onnxruntime".into(), Box::new(load)));
    }
    Ok(engines)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
