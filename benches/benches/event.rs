//! One more event: what recording it and the next user vector cost, whatever the history's length.
//!
//! `BUNDLE=shop.tercet cargo bench -p tercet-benches --no-default-features --bench event`; the bundle
//! needs a student's user tower. The vector is compared with that of the full pass before anything
//! is timed.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tercet::{Bundle, Event, Row, Session, SessionOptions};
use tercet_benches::{Rng, load};

/// Events timed per history.
const EVENTS: usize = 2000;

fn main() -> Result<()> {
    let path = std::env::var_os("BUNDLE").context("set BUNDLE to the folder of a bundle")?;
    let bundle = Bundle::open(path)?;
    let (table, m) = (bundle.table(), bundle.manifest());
    let mut rng = Rng(7);
    let mut draw = || {
        let at = (rng.float() * 0.5 + 0.5) * (table.len() - 1) as f32;
        at as Row
    };
    println!(
        "{} items, dim {}, window {}, load {:.1}",
        table.len(),
        m.dim,
        m.window,
        load()
    );
    println!(
        "{:>8} {:>10} {:>10} {:>14}",
        "history", "record us", "vector us", "full pass us"
    );
    for length in [10usize, 50, 500, 4000] {
        let options = SessionOptions::default().max_history(4096);
        let mut session = Session::new(&bundle, options)?;
        let mut history = Vec::new();
        for _ in 0..length {
            let row = draw();
            session.record(Event::new(table.key(row)?))?;
            history.push((row, 0i64));
        }
        let mut tower = bundle.load_user_tower()?;
        let whole = tower.encode(table, &[&history])?;
        let size = whole.iter().fold(0f32, |a, x| a.max(x.abs()));
        let followed = session.user_vector()?;
        let same = followed
            .iter()
            .zip(&whole)
            .all(|(a, b)| (a - b).abs() <= 1e-5 * size);
        ensure!(same, "the user vector differs from that of the full pass");

        let (mut recording, mut reading, mut passes) = (Vec::new(), Vec::new(), Vec::new());
        for event in 0..EVENTS {
            let row = draw();
            let item = Event::new(table.key(row)?);
            let start = Instant::now();
            session.record(item)?;
            recording.push(start.elapsed().as_secs_f64() * 1e6);
            let start = Instant::now();
            black_box(session.user_vector()?);
            reading.push(start.elapsed().as_secs_f64() * 1e6);
            if event < EVENTS / 20 {
                let start = Instant::now();
                black_box(tower.encode(table, &[&history])?);
                passes.push(start.elapsed().as_secs_f64() * 1e6);
            }
        }
        let median = |values: &mut Vec<f64>| {
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        println!(
            "{length:>8} {:>10.2} {:>10.2} {:>14.1}",
            median(&mut recording),
            median(&mut reading),
            median(&mut passes)
        );
    }
    Ok(())
}
