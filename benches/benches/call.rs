//! What a call through the C interface costs beside the work itself: the same query on the
//! runtime's session, on the engine of the bindings, and through the exported functions.
//!
//! The bundle has 60 items, so that the work is small; the difference does not depend on it.
//! Thread CPU time cannot be read without a dependency, so this takes the fastest of many short
//! rounds of wall time.

use std::ffi::CString;
use std::ptr;
use std::time::Instant;

use tercet::{Bundle, Event, Query, Session, SessionOptions};
use tercet_ffi::Engine;
use tercet_ffi::c_abi::*;
use tercet_ffi::types;

fn microseconds(mut call: impl FnMut()) -> f64 {
    (0..400)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..50 {
                call();
            }
            start.elapsed().as_secs_f64() * 1e6 / 50.0
        })
        .fold(f64::INFINITY, f64::min)
}

fn main() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("shop.tercet");
    tercet_fixtures::write_shop(&path)?;
    let text = path.to_str().unwrap_or_default();
    let history = ["item-3", "item-11", "item-20"];

    let bundle = Bundle::open(&path)?;
    let mut session = Session::new(&bundle, SessionOptions::default())?;
    let engine = Engine::open(text, &types::Options::default())?;
    let mut handle = ptr::null_mut();
    let c_path = CString::new(text)?;
    // SAFETY: the string and `handle` live through the call.
    let status = unsafe { tercet_open(c_path.as_ptr(), ptr::null(), &mut handle) };
    anyhow::ensure!(status == TercetStatus::Ok);
    for item in history {
        session.record(Event::new(item))?;
        engine.record(types::Event {
            item: item.into(),
            behavior: None,
            timestamp: None,
        })?;
        let item = CString::new(item)?;
        // SAFETY: as above; the other pointers may be null.
        let status = unsafe {
            tercet_record(
                handle,
                item.as_ptr(),
                ptr::null(),
                TERCET_NO_TIME,
                ptr::null_mut(),
            )
        };
        anyhow::ensure!(status == TercetStatus::Ok);
    }

    println!(
        "{:>4} {:>12} {:>12} {:>12} {:>12}",
        "k", "runtime us", "engine us", "C us", "C into us"
    );
    for k in [1usize, 10, 20, 50] {
        let query = Query::top(k);
        let expected = session.recommend(&query)?;
        anyhow::ensure!(expected.len() == k);
        let host_query = types::Query::top(k as i32);
        anyhow::ensure!(engine.recommend(host_query.clone())?[k - 1].item == expected[k - 1].item);
        let c_query = TercetQuery::top(k);
        let empty = TercetRecommendation {
            item: ptr::null(),
            item_length: 0,
            because_count: 0,
            modality_count: 0,
            score: 0.0,
            row: 0,
        };
        let mut items = vec![empty; k];
        let mut hits = vec![TercetHit { row: 0, score: 0.0 }; k];
        let mut through_c = || {
            let mut results = ptr::null_mut();
            let mut written = 0;
            // SAFETY: everything pointed to lives through the calls and has the stated sizes.
            unsafe {
                assert_eq!(
                    tercet_recommend(handle, &c_query, &mut results),
                    TercetStatus::Ok
                );
                let size = size_of::<TercetRecommendation>();
                let status =
                    tercet_results_get(results, 0, items.as_mut_ptr(), size, k, &mut written);
                assert_eq!(status, TercetStatus::Ok);
                assert_eq!(tercet_results_free(&mut results), TercetStatus::Ok);
            }
            assert_eq!(written, k);
            items[k - 1].row
        };
        assert_eq!(through_c(), expected[k - 1].row);
        let c = microseconds(|| {
            through_c();
        });
        let into = microseconds(|| {
            let mut written = 0;
            // SAFETY: as above.
            let status = unsafe {
                tercet_recommend_into(handle, &c_query, hits.as_mut_ptr(), k, &mut written)
            };
            assert_eq!(status, TercetStatus::Ok);
        });
        assert_eq!(hits[k - 1].row, expected[k - 1].row);
        let own = microseconds(|| {
            std::hint::black_box(session.recommend(&query).map_or(0, |r| r.len()));
        });
        let bound = microseconds(|| {
            let best = engine.recommend(host_query.clone());
            std::hint::black_box(best.map_or(0, |r| r.len()));
        });
        println!("{k:>4} {own:>12.2} {bound:>12.2} {c:>12.2} {into:>12.2}");
        // A machine that does something else can inflate this by a few tenths.
        anyhow::ensure!(
            c - own <= 2.0 && into - own <= 2.0,
            "a call through C costs too much"
        );
    }
    // SAFETY: `handle` came from `tercet_open`.
    unsafe { tercet_close(&mut handle) };
    Ok(())
}
