//! One engine under many threads: what a thread sanitizer should see, and what must hold without
//! one.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use tercet_ffi::types::{Event, Feature, NewItem, Options, Query};
use tercet_ffi::{Engine, Kind};

const THREADS: usize = 4;
const CALLS: usize = 25;

fn work(engine: &Engine, thread: usize) -> Result<(), Kind> {
    let kind = |e: tercet_ffi::HostError| e.kind;
    for call in 0..CALLS {
        let item = format!("item-{}", (thread * 17 + call * 5) % 60);
        engine
            .record(Event {
                item,
                behavior: None,
                timestamp: None,
            })
            .map_err(kind)?;
        assert_eq!(engine.recommend(Query::top(3)).map_err(kind)?.len(), 3);
        assert_eq!(engine.user_vector().map_err(kind)?.len(), 16);
        let key = format!("fresh-{thread}");
        engine
            .add_item(NewItem {
                item: key.clone(),
                features: vec![Feature {
                    modality: "text".into(),
                    values: vec![call as f32; 8],
                }],
                attributes: Vec::new(),
            })
            .map_err(kind)?;
        engine.rank(std::slice::from_ref(&key)).map_err(kind)?;
        engine.remove_item(&key).map_err(kind)?;
        engine.info().map_err(kind)?;
    }
    Ok(())
}

#[test]
fn threads_share_an_engine_and_one_of_them_closes_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shop.tercet");
    tercet_fixtures::write_shop(&path).unwrap();
    let engine = Engine::open(path.to_str().unwrap(), &Options::default()).unwrap();
    let heard = Arc::new(AtomicI64::new(0));
    let counter = heard.clone();
    engine.set_listener(Some(Arc::new(move |_| {
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(())
    })));
    let others: Vec<Engine> = (0..2).map(|_| engine.new_session().unwrap()).collect();
    std::thread::scope(|scope| {
        let shared: Vec<_> = (0..THREADS)
            .map(|t| {
                scope.spawn({
                    let engine = &engine;
                    move || work(engine, t)
                })
            })
            .collect();
        let apart: Vec<_> = others
            .iter()
            .map(|other| scope.spawn(move || work(other, 9)))
            .collect();
        scope.spawn(|| engine.verify().unwrap());
        for thread in shared.into_iter().chain(apart) {
            assert_eq!(thread.join().unwrap(), Ok(()));
        }
    });
    assert_eq!(heard.load(Ordering::Relaxed), (THREADS * CALLS * 3) as i64);
    // Closed under running calls: each ends normally or says so.
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..THREADS)
            .map(|t| {
                scope.spawn({
                    let engine = &engine;
                    move || work(engine, t)
                })
            })
            .collect();
        scope.spawn(|| engine.close());
        for thread in running {
            assert!(matches!(thread.join().unwrap(), Ok(()) | Err(Kind::Closed)));
        }
    });
    assert!(engine.is_closed());
    assert_eq!(work(&others[0], 3), Ok(()));
}

/// For `.ci/thread-sanitizer`, which has to report it: otherwise the test above proves nothing.
#[test]
#[ignore = "holds a data race on purpose"]
#[allow(unsafe_code)]
fn a_race_that_a_sanitizer_must_see() {
    struct Shared(std::cell::UnsafeCell<u64>);
    // SAFETY: not sound, which is the point; nothing but this test sees it.
    unsafe impl Sync for Shared {}
    impl Shared {
        fn raise(&self) {
            // SAFETY: as above.
            unsafe { *self.0.get() += 1 }
        }
    }
    let shared = Shared(std::cell::UnsafeCell::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| (0..1000).for_each(|_| shared.raise()));
        }
    });
    assert!(shared.0.into_inner() > 0);
}
