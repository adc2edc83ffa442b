//! One more event: what recording it and the next user vector cost, whatever the history's length.
//!
//! `BUNDLE=shop.tercet cargo bench -p tercet-benches --no-default-features --bench event`; the bundle
//! needs a student's user tower. The vector is compared with that of the full pass before anything
//! is timed.
//!
//! Then what learning from an event adds, with a full list of kept feedback: its feedback (one
//! positive, nine skips) and the new vector to rank by. A list given at once must lead to the same
//! bits as the one that grew.

use std::hint::black_box;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tercet::{Bundle, Event, Feedback, MAX_FEEDBACK, Row, Session, SessionOptions};
use tercet_benches::{Rng, load};

/// Events timed per history.
const EVENTS: usize = 2000;

/// Feedbacks of an event: the item chosen and the other items of a list of ten.
const SHOWN: usize = 10;

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
        println!(
            "{length:>8} {:>10.2} {:>10.2} {:>14.1}",
            median(&mut recording),
            median(&mut reading),
            median(&mut passes)
        );
    }

    let options = SessionOptions::default().adapt(true);
    let mut session = Session::new(&bundle, options)?;
    session.user_vector()?;
    let mut learning = Vec::new();
    let kept = MAX_FEEDBACK / SHOWN + 1;
    for event in 0..kept + EVENTS {
        let keys = (0..SHOWN)
            .map(|_| Ok(table.key(draw())?.to_string()))
            .collect::<Result<Vec<_>>>()?;
        let start = Instant::now();
        for (i, key) in keys.iter().enumerate() {
            let feedback = match i {
                0 => Feedback::Positive,
                _ => Feedback::Skipped,
            };
            session.feedback(key, feedback, None)?;
        }
        black_box(session.ranking_vector()?);
        if event >= kept {
            learning.push(start.elapsed().as_secs_f64() * 1e6);
        }
    }
    let mut again = Session::new(&bundle, options)?;
    let mut bytes = 0;
    for (key, feedback, at) in session.kept_feedback() {
        bytes += key.len();
        again.feedback(key, feedback, at)?;
    }
    ensure!(
        again.kept_feedback().count() == MAX_FEEDBACK
            && again.ranking_vector()? == session.ranking_vector()?,
        "the kept list leads to another vector"
    );
    println!(
        "learning from an event, {MAX_FEEDBACK} feedbacks kept ({bytes} bytes of keys): {:.1} us",
        median(&mut learning)
    );
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
