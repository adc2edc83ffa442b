//! The hit rate on the user's own later events, against sessions that saw only what came before.
#![cfg(feature = "compact")]

mod common;

use common::Rng;
use tercet::{Error, Event, Query, Session, SessionOptions};

#[test]
fn holdout_is_what_a_session_would_have_recommended() {
    let folder = tempfile::tempdir().unwrap();
    let bundle = common::student_bundle(folder.path(), 40, 20, common::Hidden::Codes);
    let mut rng = Rng(5);
    // Some items come twice, some are unknown.
    let events: Vec<String> = (0..30)
        .map(|_| format!("item-{}", rng.next() % 45))
        .collect();
    let session = |events: &[String]| {
        let mut session = Session::new(&bundle, SessionOptions::default()).unwrap();
        for item in events {
            session.record(Event::new(item)).unwrap();
        }
        session
    };
    let known = |item: &String| bundle.table().find(item).unwrap().is_some();
    let rows: Vec<String> = events.iter().filter(|i| known(i)).cloned().collect();
    assert!(rows.len() < events.len());

    for (latest, k) in [(0, 5), (1, 5), (10, 8), (1000, 8)] {
        let (mut tried, mut hits) = (0, 0);
        for at in 1.max(rows.len().saturating_sub(latest))..rows.len() {
            if rows[..at].contains(&rows[at]) {
                continue;
            }
            let top = session(&rows[..at]).recommend(&Query::top(k)).unwrap();
            tried += 1;
            hits += usize::from(top.iter().any(|r| r.item == rows[at]));
        }
        let mut whole = session(&events);
        let before = whole.user_vector().unwrap().to_vec();
        let got = whole.evaluate_holdout(latest, k).unwrap();
        assert_eq!((got.events, got.hits), (tried, hits), "latest {latest}");
        let rate = (tried > 0).then(|| hits as f64 / tried as f64);
        assert_eq!(got.hit_rate(), rate);
        assert_eq!(whole.user_vector().unwrap(), before);
        whole.record(Event::new("item-1")).unwrap();
        assert!(latest < 1000 || hits > 0);
    }
    let error = session(&events).evaluate_holdout(3, 0).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument { .. }));
}
