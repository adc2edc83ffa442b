//! The user vector of a history that grows: event by event it is that of the full pass.
#![cfg(feature = "compact")]

mod common;

use common::{Hidden, Rng};
use tercet::{Bundle, Event, Query, Row, Session, SessionOptions};

const N: usize = 40;
const WINDOW: usize = 20;

/// Two heads: one forgets nothing, one fast.
fn bundle(folder: &std::path::Path, stored: Hidden) -> Bundle {
    common::student_bundle(folder, N, WINDOW, stored)
}

fn draw(r: &mut Rng) -> (Row, i64) {
    (r.next() % N as u32, i64::from(r.next() % 3))
}

/// Largest difference relative to the largest value.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    let size = b.iter().fold(0f32, |m, x| m.max(x.abs()));
    let gap = a.iter().zip(b).fold(0f32, |m, (x, y)| m.max((x - y).abs()));
    gap / size
}

#[test]
fn following_equals_the_full_pass_and_does_not_drift() {
    for stored in [Hidden::Codes, Hidden::Floats] {
        follow(stored);
    }
}

fn follow(stored: Hidden) {
    let folder = tempfile::tempdir().unwrap();
    let bundle = bundle(folder.path(), stored);
    let table = bundle.table();
    let (mut following, mut whole) = (
        bundle.load_user_tower().unwrap(),
        bundle.load_user_tower().unwrap(),
    );
    let mut r = Rng(3);
    let mut history: Vec<(Row, i64)> = Vec::new();
    for event in 0..20_000 {
        let got = following.follow(table, &history).unwrap();
        if event <= WINDOW || event % 97 == 0 {
            let want = whole.encode(table, &[&history]).unwrap();
            if event <= WINDOW {
                assert_eq!(
                    got, want,
                    "to the last bit while nothing has left the window"
                );
            } else {
                assert!(distance(&got, &want) < 1e-5, "event {event}");
            }
        }
        history.push(draw(&mut r));
        if history.len() > 3 * WINDOW {
            history.drain(..WINDOW);
        }
    }
    // Another history altogether, a shorter one, none.
    for length in [WINDOW, 3, 1, 0, 7] {
        let other: Vec<(Row, i64)> = (0..length).map(|_| draw(&mut r)).collect();
        let want = whole.encode(table, &[&other]).unwrap();
        assert_eq!(following.follow(table, &other).unwrap(), want);
    }
    // An error leaves nothing half-done behind.
    let bad = [(0, 0), (1, 9)];
    assert!(following.follow(table, &bad).is_err());
    assert!(following.follow(table, &[(N as Row, 0)]).is_err());
    let want = whole.encode(table, &[&bad[..1]]).unwrap();
    assert_eq!(following.follow(table, &bad[..1]).unwrap(), want);
}

#[test]
fn whole_numbers_give_what_floats_give() {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let coded = bundle(folders[0].path(), Hidden::Codes);
    let floats = bundle(folders[1].path(), Hidden::Floats);
    let mut towers = [&coded, &floats].map(|b| b.load_user_tower().unwrap());
    let mut r = Rng(5);
    for length in [1, 2, 7, WINDOW] {
        let history: Vec<(Row, i64)> = (0..length).map(|_| draw(&mut r)).collect();
        let [got, want] = [0, 1].map(|k| towers[k].encode(coded.table(), &[&history]).unwrap());
        assert!(distance(&got, &want) < 1e-5, "{length} events");
    }
}

#[test]
fn a_session_follows_through_a_full_history_and_a_snapshot() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = bundle(folder.path(), Hidden::Codes);
    for limit in [WINDOW / 2, WINDOW, 3 * WINDOW] {
        let options = SessionOptions::default().max_history(limit);
        let mut s = Session::new(&bundle, options).unwrap();
        let mut r = Rng(4);
        let path = folder.path().join("snapshot");
        for event in 0..200 {
            let (row, behavior) = draw(&mut r);
            let names = ["any", "view", "buy"];
            // Every fifth item is unknown and can push a known one out.
            let key = match event % 5 {
                4 => format!("nowhere-{event}"),
                _ => format!("item-{row}"),
            };
            s.record(Event::new(key).behavior(names[behavior as usize]))
                .unwrap();
            if event % 3 == 0 {
                s.recommend(&Query::top(3)).unwrap();
            }
            if event % 20 == 0 {
                s.save(&path).unwrap();
                let mut anew = Session::restore(&bundle, &path, options).unwrap();
                let want = anew.user_vector().unwrap();
                assert!(
                    distance(s.user_vector().unwrap(), want) < 1e-5,
                    "event {event}"
                );
            }
        }
    }
}
