//! Durable sessions: what was recorded is there, whatever happened to process and file.
#![cfg(feature = "store")]

mod common;

use std::path::{Path, PathBuf};

use common::{manifest, write_bundle};
use tercet::{
    Bundle, Durability, Error, Event, NewItem, Recorded, Scheme, Session, SessionOptions,
};

struct Phone {
    folder: tempfile::TempDir,
    bundle: Bundle,
}

impl Phone {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("user")).unwrap();
        let path = folder.path().join("shop.tercet");
        write_bundle(&path, 50, Scheme::Int8);
        let bundle = Bundle::open(path).unwrap();
        Phone { folder, bundle }
    }

    fn user(&self) -> PathBuf {
        self.folder.path().join("user")
    }

    fn path(&self) -> PathBuf {
        self.user().join("history")
    }

    fn open(&self, how: &Durability) -> tercet::Result<Session> {
        Session::open(&self.bundle, self.path(), SessionOptions::default(), how)
    }

    fn plain(&self) -> Session {
        self.open(&Durability::new()).unwrap()
    }
}

fn keys(session: &Session) -> Vec<String> {
    session.history().events().map(|e| e.item.clone()).collect()
}

fn record(session: &mut Session, items: std::ops::Range<usize>) {
    for i in items {
        let event = Event::new(format!("item-{i}"))
            .behavior("view")
            .at(i as i64);
        session.record(event).unwrap();
    }
}

/// Whether any file below `folder` holds `text`.
fn traces(folder: &Path, text: &str) -> bool {
    std::fs::read_dir(folder).unwrap().any(|entry| {
        let path = entry.unwrap().path();
        if path.is_dir() {
            return traces(&path, text);
        }
        let bytes = std::fs::read(path).unwrap();
        bytes.windows(text.len()).any(|w| w == text.as_bytes())
    })
}

const KEY: [u8; 32] = [7; 32];

#[test]
fn events_are_there_without_saving() {
    for how in [
        Durability::new(),
        Durability::new().key(KEY),
        Durability::new().survive_power_loss(false),
    ] {
        let phone = Phone::new();
        let mut session = phone.open(&how).unwrap();
        record(&mut session, 0..5);
        assert_eq!(
            session.record(Event::new("elsewhere")).unwrap(),
            Recorded::UnknownItem
        );
        let before: Vec<Event> = session.history().events().cloned().collect();
        drop(session);
        let session = phone.open(&how).unwrap();
        let after: Vec<Event> = session.history().events().cloned().collect();
        assert_eq!(after, before);
        assert_eq!(session.history().unknown_items(), 1);
    }
}

#[test]
fn a_refused_event_is_not_kept() {
    let phone = Phone::new();
    let mut session = phone.plain();
    record(&mut session, 0..2);
    let length = std::fs::metadata(phone.path()).unwrap().len();
    session
        .record(Event::new("item-1").behavior("teleport"))
        .unwrap_err();
    session.record(Event::new("")).unwrap_err();
    assert_eq!(std::fs::metadata(phone.path()).unwrap().len(), length);
    drop(session);
    assert_eq!(keys(&phone.plain()), ["item-0", "item-1"]);
}

#[test]
fn a_copy_goes_elsewhere() {
    let phone = Phone::new();
    let mut session = phone.plain();
    record(&mut session, 0..2);
    for same in [phone.path(), phone.user().join("../user/history")] {
        let error = session.save(same).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
    }
    record(&mut session, 2..3);
    session.save(phone.user().join("copy")).unwrap();
    drop(session);
    assert_eq!(keys(&phone.plain()), ["item-0", "item-1", "item-2"]);
}

#[test]
fn a_file_cut_anywhere_has_all_events_that_were_complete() {
    for how in [Durability::new(), Durability::new().key(KEY)] {
        let phone = Phone::new();
        let mut session = phone.open(&how).unwrap();
        // The empty snapshot, and where each event ends.
        session.record(Event::new("item-0")).unwrap();
        let mut ends = vec![0, std::fs::metadata(phone.path()).unwrap().len()];
        for i in 1..6 {
            record(&mut session, i..i + 1);
            ends.push(std::fs::metadata(phone.path()).unwrap().len());
        }
        drop(session);
        let whole = std::fs::read(phone.path()).unwrap();
        for cut in 0..=whole.len() {
            std::fs::write(phone.path(), &whole[..cut]).unwrap();
            match phone.open(&how) {
                Ok(mut session) => {
                    let complete = ends.iter().filter(|&&e| e > 0 && e <= cut as u64).count();
                    assert_eq!(session.history().len(), complete, "cut at {cut}");
                    // And it goes on from there.
                    session.record(Event::new("item-9")).unwrap();
                    drop(session);
                    let again = phone.open(&how).unwrap();
                    assert_eq!(again.history().len(), complete + 1, "cut at {cut}");
                }
                // Within the snapshot, which is never written in place.
                Err(Error::Snapshot { .. }) => assert!((cut as u64) < ends[1], "cut at {cut}"),
                Err(e) => panic!("{e}"),
            }
        }
        // Storage that made room and never filled it.
        let zeros = [&whole[..], &[0; 300]].concat();
        std::fs::write(phone.path(), zeros).unwrap();
        assert_eq!(phone.open(&how).unwrap().history().len(), 6);
    }
}

#[test]
fn a_flipped_bit_is_told_and_the_file_left_alone() {
    for how in [Durability::new(), Durability::new().key(KEY)] {
        let phone = Phone::new();
        let mut session = phone.open(&how).unwrap();
        record(&mut session, 0..4);
        let all = keys(&session);
        drop(session);
        let whole = std::fs::read(phone.path()).unwrap();
        let (mut told, mut last) = (0, 0);
        for at in 0..whole.len() {
            let mut bad = whole.clone();
            bad[at] ^= 1 << (at % 8);
            std::fs::write(phone.path(), &bad).unwrap();
            match phone.open(&how) {
                Err(Error::Snapshot { .. } | Error::UnsupportedSnapshot { .. }) => {
                    assert_eq!(std::fs::read(phone.path()).unwrap(), bad);
                    told += 1;
                }
                // The end looks like an event that was never complete; or the random id.
                Ok(session) => {
                    assert!(all.starts_with(&keys(&session)));
                    assert!(session.history().len() >= 3);
                    last += 1;
                }
                Err(e) => panic!("{e}"),
            }
        }
        assert!(told > last, "{told} {last}");
    }
}

#[test]
fn the_file_stays_bounded() {
    let phone = Phone::new();
    let how = Durability::new().survive_power_loss(false);
    let options = SessionOptions::default().max_history(100);
    let open = || Session::open(&phone.bundle, phone.path(), options, &how).unwrap();
    let mut session = open();
    let mut longest = 0;
    for i in 0..20_000 {
        session
            .record(Event::new(format!("item-{}", i % 50)).at(i))
            .unwrap();
        longest = longest.max(std::fs::metadata(phone.path()).unwrap().len());
    }
    assert!(longest < 100_000, "{longest}");
    let last: Vec<Event> = session.history().events().cloned().collect();
    drop(session);
    let session = open();
    assert_eq!(
        session.history().events().cloned().collect::<Vec<_>>(),
        last
    );
    assert_eq!(last.last().unwrap().timestamp, Some(19_999));
}

#[test]
fn the_file_stays_bounded_over_many_short_lives() {
    let phone = Phone::new();
    let how = Durability::new().survive_power_loss(false);
    let options = SessionOptions::default().max_history(20);
    for life in 0..60 {
        let mut session = Session::open(&phone.bundle, phone.path(), options, &how).unwrap();
        for i in 0..100 {
            session
                .record(Event::new("item-1").at(life * 100 + i))
                .unwrap();
        }
        drop(session);
        let length = std::fs::metadata(phone.path()).unwrap().len();
        assert!(length < 80_000, "{length} after {life}");
    }
}

#[test]
fn encryption_hides_everything_and_needs_its_key() {
    let phone = Phone::new();
    let how = Durability::new().key(KEY);
    let mut session = phone.open(&how).unwrap();
    record(&mut session, 0..3);
    drop(session);
    assert!(!traces(&phone.user(), "item-"));
    assert!(!traces(&phone.user(), "view"));
    assert!(!traces(&phone.user(), std::str::from_utf8(&KEY).unwrap()));
    let error = phone.open(&Durability::new()).unwrap_err();
    assert!(error.to_string().contains("encrypted"), "{error}");
    let error = phone.open(&Durability::new().key([8; 32])).unwrap_err();
    assert!(error.to_string().contains("another"), "{error}");
    let text = format!("{how:?}");
    assert!(!text.contains('7'), "{text}");
    assert_eq!(phone.open(&how).unwrap().history().len(), 3);
}

#[test]
fn units_of_an_encrypted_file_cannot_be_moved() {
    let phone = Phone::new();
    let how = Durability::new().key(KEY);
    let mut session = phone.open(&how).unwrap();
    let mut ends = Vec::new();
    for i in 0..4 {
        record(&mut session, i..i + 1);
        ends.push(std::fs::metadata(phone.path()).unwrap().len() as usize);
    }
    drop(session);
    let whole = std::fs::read(phone.path()).unwrap();
    let unit = |i: usize| &whole[ends[i - 1]..ends[i]];
    // Exchanged, and one left out.
    for tampered in [
        [&whole[..ends[0]], unit(2), unit(1), unit(3)].concat(),
        [&whole[..ends[0]], unit(2), unit(3)].concat(),
    ] {
        std::fs::write(phone.path(), tampered).unwrap();
        phone.open(&how).unwrap_err();
    }
}

#[test]
fn older_files_are_taken_over() {
    // A snapshot of Session::save, then a plain journal, then an encrypted one.
    let phone = Phone::new();
    let mut session = Session::new(&phone.bundle, SessionOptions::default()).unwrap();
    record(&mut session, 0..3);
    session.save(phone.path()).unwrap();
    let mut session = phone.plain();
    assert_eq!(keys(&session), ["item-0", "item-1", "item-2"]);
    record(&mut session, 3..4);
    drop(session);
    assert!(traces(&phone.user(), "item-3"));
    let how = Durability::new().key(KEY);
    assert_eq!(phone.open(&how).unwrap().history().len(), 4);
    assert!(!traces(&phone.user(), "item-"));
}

#[test]
fn files_of_a_later_version_are_left_alone() {
    for at in [8, 12] {
        let phone = Phone::new();
        drop(phone.plain());
        let mut bytes = std::fs::read(phone.path()).unwrap();
        bytes[at] = 99;
        std::fs::write(phone.path(), &bytes).unwrap();
        let error = phone.open(&Durability::new()).unwrap_err();
        assert!(matches!(error, Error::UnsupportedSnapshot { got: 99, .. }));
        assert_eq!(std::fs::read(phone.path()).unwrap(), bytes);
    }
    let phone = Phone::new();
    std::fs::write(phone.path(), b"a text of somebody else's").unwrap();
    let error = phone.open(&Durability::new()).unwrap_err();
    assert!(matches!(error, Error::Snapshot { .. }), "{error}");
    assert!(traces(&phone.user(), "somebody"));
}

#[test]
fn one_session_at_a_time() {
    let phone = Phone::new();
    let first = phone.plain();
    let error = phone.open(&Durability::new()).unwrap_err();
    assert!(matches!(error, Error::HistoryBusy { .. }), "{error}");
    drop(first);
    phone.plain();
}

#[test]
fn erase_leaves_no_trace() {
    for how in [Durability::new(), Durability::new().key(KEY)] {
        let phone = Phone::new();
        let copy = phone.user().join("copy");
        let mut session = phone.open(&how).unwrap();
        record(&mut session, 0..20);
        session.save(&copy).unwrap();
        // What processes that died half-way left.
        for leftover in ["history.new", ".copy.x7.tmp"] {
            std::fs::write(phone.user().join(leftover), b"item-3").unwrap();
        }
        session.erase(Some(&copy)).unwrap();
        assert!(!traces(&phone.user(), "item-"));
        assert!(session.history().is_empty());
        // It goes on, durable as before.
        session.record(Event::new("item-7")).unwrap();
        drop(session);
        assert_eq!(keys(&phone.open(&how).unwrap()), ["item-7"]);
        assert!(!traces(&phone.user(), "item-3"));
    }
}

#[test]
fn what_a_dead_process_left_beside_the_file_is_removed() {
    let phone = Phone::new();
    record(&mut phone.plain(), 0..2);
    std::fs::write(phone.user().join("history.new"), b"half a file").unwrap();
    assert_eq!(phone.plain().history().len(), 2);
    assert!(!phone.user().join("history.new").exists());
}

#[test]
fn recording_goes_on_while_the_file_cannot_be_rewritten() {
    let lazy = Durability::new().survive_power_loss(false);
    for how in [lazy.clone(), lazy.key(KEY)] {
        let phone = Phone::new();
        let mut session = phone.open(&how).unwrap();
        session.record(Event::new("item-1").at(-1)).unwrap();
        // Nothing can be written under that name.
        std::fs::create_dir(phone.user().join("history.new")).unwrap();
        for i in 0..4000 {
            session
                .record(Event::new(format!("item-{}", i % 50)).at(i))
                .unwrap();
        }
        drop(session);
        std::fs::remove_dir(phone.user().join("history.new")).unwrap();
        let session = phone.open(&how).unwrap();
        let last = session.history().events().next_back().unwrap().timestamp;
        assert_eq!((session.history().len(), last), (512, Some(3999)));
    }
}

#[test]
fn an_event_that_cannot_be_kept_does_not_count() {
    let phone = Phone::new();
    let mut session = phone.plain();
    record(&mut session, 0..2);
    session.erase(None).unwrap();
    std::fs::remove_dir_all(phone.user()).unwrap();
    let error = session.record(Event::new("item-1")).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    assert!(session.history().is_empty());
    std::fs::create_dir(phone.user()).unwrap();
    session.record(Event::new("item-1")).unwrap();
    assert_eq!(session.history().len(), 1);
}

#[test]
fn order_of_arrival_counts_whatever_the_clock_says() {
    let phone = Phone::new();
    let mut session = phone.plain();
    let times = [100, 50, 50, i64::MIN, i64::MAX];
    for at in times {
        // The same item over and over: each is an event of its own.
        session.record(Event::new("item-1").at(at)).unwrap();
    }
    drop(session);
    let session = phone.plain();
    let got: Vec<i64> = session
        .history()
        .events()
        .filter_map(|e| e.timestamp)
        .collect();
    assert_eq!(got, times);
}

#[test]
fn the_user_gets_what_is_kept() {
    let phone = Phone::new();
    let mut session = phone.plain();
    record(&mut session, 0..2);
    session.record(Event::new("elsewhere")).unwrap();
    let text = session.export_user_data().unwrap();
    let data: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(data["events"].as_array().unwrap().len(), 3);
    assert_eq!(data["events"][1]["item"], "item-1");
    assert_eq!(data["events"][1]["behavior"], "view");
    assert_eq!(data["events"][1]["timestamp"], 1);
    assert!(data["events"][2]["timestamp"].is_null());
    assert_eq!(data["added_items"].as_array().unwrap().len(), 0);
    assert_eq!(data["bundle_id"], manifest().bundle_id);
}

#[test]
fn an_added_item_that_cannot_be_placed_is_refused_and_not_kept() {
    let phone = Phone::new();
    let mut session = phone.plain();
    let item = NewItem::new("fresh").feature("text", vec![1.0; 8]);
    session.add_item(item).unwrap_err();
    drop(session);
    assert_eq!(phone.plain().added_items().len(), 0);
    assert!(!traces(&phone.user(), "fresh"));
}
