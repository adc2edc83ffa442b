//! Processes killed at random moments while they record, install and apply deltas: what they leave
//! opens, with the state before or after what they were doing.
//!
//! `TERCET_KILLS=1000 cargo test -p tercet --test kill -- --nocapture` for more of them.
#![cfg(all(feature = "store", unix))]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{DIM, Rng};
use minisign::KeyPair;
use tercet::store::write_delta;
use tercet::{
    Bundle, BundleStore, BundleWriter, Durability, Event, ItemTableBuilder, Manifest, Scheme,
    Session, SessionOptions, StoreOptions,
};

const ROLE: &str = "TERCET_KILL_ROLE";
const FOLDER: &str = "TERCET_KILL_FOLDER";
const KEY: &str = "TERCET_KILL_KEY";
/// So many events are kept, which makes the file be rewritten often.
const HISTORY: usize = 60;
const RELEASES: u64 = 12;

fn kills() -> u64 {
    let set = std::env::var("TERCET_KILLS").ok();
    set.and_then(|n| n.parse().ok()).unwrap_or(60)
}

/// This test again, in a process of its own, as what `role` names.
fn child(role: &str, folder: &Path, key: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "the_process_to_be_killed",
            "--ignored",
            "--nocapture",
        ])
        .env(ROLE, role)
        .env(FOLDER, folder)
        .env(KEY, key)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Kills `child` after a while, as `seed` has it, and reads the last number that it told.
fn kill(mut child: Child, seed: u64) -> Option<u64> {
    let mut out = BufReader::new(child.stdout.take().unwrap());
    // The clock starts when it is at work: the test harness takes its time.
    let mut line = String::new();
    while !line.starts_with("at work") {
        line.clear();
        assert!(
            out.read_line(&mut line).unwrap() > 0,
            "the process ended early"
        );
    }
    let micros = u64::from(Rng(seed).next()) % 30_000;
    std::thread::sleep(Duration::from_micros(micros));
    child.kill().unwrap();
    child.wait().unwrap();
    let told = out.lines().map_while(Result::ok);
    told.filter_map(|l| l.parse().ok()).last()
}

/// What the killed process does.
#[test]
#[ignore = "is started by the tests of this file"]
fn the_process_to_be_killed() {
    let Ok(role) = std::env::var(ROLE) else {
        return;
    };
    let folder = PathBuf::from(std::env::var(FOLDER).unwrap());
    let tell = |what: &dyn std::fmt::Display| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "{what}").and_then(|()| out.flush()).unwrap();
    };
    match role.as_str() {
        "record" => {
            let bundle = Bundle::open(folder.join("1.tercet")).unwrap();
            let mut session = open(&bundle, &folder);
            let mut next = last(&session).map_or(0, |n| n + 1);
            tell(&"\nat work");
            loop {
                let event = Event::new(format!("item-{}", next % 40)).at(next as i64);
                session.record(event).unwrap();
                tell(&next);
                next += 1;
            }
        }
        "install" => {
            let store = store(&folder, &std::env::var(KEY).unwrap());
            // Not the newest accepted: that one may only have been staged.
            let present = store.status().unwrap().current.map_or(0, |b| b.version);
            tell(&"\nat work");
            for version in present + 1..=RELEASES {
                let delta = folder.join(format!("{version}.delta"));
                let whole = folder.join(format!("{version}.tercet"));
                let source = [whole, delta][usize::from(version % 2 == 0)].clone();
                store.install(source).unwrap();
                tell(&version);
                store.current().unwrap();
            }
            std::thread::sleep(Duration::from_secs(60));
        }
        // Writes until nothing more can be written.
        "fill" => {
            let bundle = Bundle::open(folder.join("1.tercet")).unwrap();
            let mut session = open(&bundle, &folder);
            tell(&"\nat work");
            for next in 0.. {
                let event = Event::new(format!("item-{}", next % 40)).at(next);
                if let Err(error) = session.record(event.clone()) {
                    assert!(matches!(error, tercet::Error::Io { .. }), "{error}");
                    // Refused again, and still what it was.
                    session.record(event).unwrap_err();
                    assert_eq!(last(&session).map_or(0, |n| n + 1), next as u64);
                    tell(&next);
                    return;
                }
            }
        }
        "store" => {
            let store = store(&folder, &std::env::var(KEY).unwrap());
            tell(&"\nat work");
            let error = store.install(folder.join("2.tercet")).unwrap_err();
            assert!(matches!(error, tercet::Error::Io { .. }), "{error}");
            assert_eq!(store.status().unwrap().newest, Some(1));
            tell(&1);
        }
        other => panic!("{other}"),
    }
}

fn open(bundle: &Bundle, folder: &Path) -> Session {
    let options = SessionOptions::default().max_history(HISTORY);
    // Of two kinds, by turns.
    let how = match folder.join("sealed").exists() {
        true => Durability::new().key([3; 32]),
        false => Durability::new().survive_power_loss(false),
    };
    Session::open(bundle, folder.join("history"), options, &how).unwrap()
}

/// Number of the latest event.
fn last(session: &Session) -> Option<u64> {
    let event = session.history().events().next_back()?;
    event.timestamp.map(|t| t as u64)
}

fn store(folder: &Path, key: &str) -> BundleStore {
    let options = StoreOptions::new("shop").trust(key).unwrap();
    BundleStore::open(folder.join("store"), options).unwrap()
}

fn release(folder: &Path, keys: &KeyPair, version: u64) -> PathBuf {
    let path = folder.join(format!("{version}.tercet"));
    let names = common::keys(40);
    let mut vectors = Rng(1).vectors(40 * DIM);
    vectors[version as usize] = 0.5;
    let table = ItemTableBuilder::new(DIM, Scheme::Int8, &names, &vectors).unwrap();
    let mut writer = BundleWriter::create(&path).unwrap();
    writer.table(&table).unwrap();
    writer
        .finish(Manifest::new("shop", version, DIM, 4))
        .unwrap();
    let manifest = std::fs::read(path.join("manifest.json")).unwrap();
    let signature = minisign::sign(None, &keys.sk, manifest.as_slice(), None, None).unwrap();
    std::fs::write(path.join("manifest.json.minisig"), signature.into_string()).unwrap();
    path
}

/// As [`child`], where no file can grow beyond so many KiB: storage that is full, as far as a
/// process can tell.
fn child_with_full_storage(role: &str, folder: &Path, key: &str, kib: u32) -> Child {
    let test = std::env::current_exe().unwrap();
    Command::new("bash")
        .arg("-c")
        .arg(format!("trap '' XFSZ; ulimit -f {kib}; exec \"$0\" \"$@\""))
        .arg(test)
        .args([
            "--exact",
            "the_process_to_be_killed",
            "--ignored",
            "--nocapture",
        ])
        .env(ROLE, role)
        .env(FOLDER, folder)
        .env(KEY, key)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

/// The last number that a process told before it ended by itself.
fn told(child: Child) -> u64 {
    let out = child.wait_with_output().unwrap();
    assert!(out.status.success());
    let text = String::from_utf8(out.stdout).unwrap();
    text.lines()
        .filter_map(|l| l.parse().ok())
        .next_back()
        .unwrap()
}

#[test]
fn full_storage_refuses_events_and_keeps_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let keys = KeyPair::generate_unencrypted_keypair().unwrap();
    let bundle = Bundle::open(release(folder, &keys, 1)).unwrap();
    let recorded = told(child_with_full_storage("fill", folder, "", 8));
    assert!(recorded > 50, "{recorded}");
    let mut session = open(&bundle, folder);
    assert_eq!(last(&session), Some(recorded - 1));
    // With room again it goes on.
    session.record(Event::new("item-1")).unwrap();
}

#[test]
fn full_storage_leaves_the_installed_bundle() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let keys = KeyPair::generate_unencrypted_keypair().unwrap();
    let key = keys.pk.to_base64();
    let store = store(folder, &key);
    store.install(release(folder, &keys, 1)).unwrap();
    release(folder, &keys, 2);
    assert_eq!(told(child_with_full_storage("store", folder, &key, 1)), 1);
    assert_eq!(store.current().unwrap().manifest().bundle_version, 1);
    store.collect().unwrap();
    let left = std::fs::read_dir(folder.join("store/bundles"))
        .unwrap()
        .count();
    assert_eq!(left, 1);
    store.install(folder.join("2.tercet")).unwrap();
}

#[test]
fn killed_while_recording() {
    for sealed in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let keys = KeyPair::generate_unencrypted_keypair().unwrap();
        let bundle = Bundle::open(release(folder, &keys, 1)).unwrap();
        if sealed {
            std::fs::write(folder.join("sealed"), b"").unwrap();
        }
        let (mut before, mut recorded) = (None, 0u64);
        for round in 0..kills() / 2 {
            let told = kill(child("record", folder, ""), round).or(before);
            let session = open(&bundle, folder);
            let got = last(&session);
            // All that was told is there; at most one more, recorded and not told yet.
            let next = told.map_or(0, |n| n + 1);
            assert!(got == told || got == Some(next), "{told:?} {got:?}");
            let events: Vec<u64> = session
                .history()
                .events()
                .filter_map(|e| e.timestamp.map(|t| t as u64))
                .collect();
            if let Some(got) = got {
                let first = (got + 1).saturating_sub(HISTORY as u64);
                assert_eq!(events, (first..=got).collect::<Vec<u64>>());
                recorded = got + 1;
            }
            let length = std::fs::metadata(folder.join("history")).unwrap().len();
            assert!(length < 80_000, "{length}");
            before = got;
        }
        println!("{} processes killed after {recorded} events", kills() / 2);
    }
}

#[test]
fn killed_while_installing_bundles_and_deltas() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let keys = KeyPair::generate_unencrypted_keypair().unwrap();
    let key = keys.pk.to_base64();
    let releases: Vec<PathBuf> = (1..=RELEASES).map(|v| release(folder, &keys, v)).collect();
    for pair in releases.windows(2) {
        let (old, new) = (
            Bundle::open(&pair[0]).unwrap(),
            Bundle::open(&pair[1]).unwrap(),
        );
        write_delta(&old, &new, pair[1].with_extension("delta")).unwrap();
    }
    let (mut before, mut installed) = (0, 0);
    for round in 0..kills() {
        let told = kill(child("install", folder, &key), round ^ 0x5555).unwrap_or(before);
        let store = store(folder, &key);
        let status = store.status().unwrap();
        let current = status.current.map_or(0, |b| b.version);
        assert!(current == told || current == told + 1, "{told} {current}");
        installed += current - before;
        before = current;
        if current > 0 {
            let bundle = store.current().unwrap();
            bundle.verify().unwrap();
            let want = &releases[current as usize - 1];
            for file in ["manifest.json", "items.safetensors"] {
                let got = std::fs::read(bundle.path().join(file)).unwrap();
                assert_eq!(got, std::fs::read(want.join(file)).unwrap(), "{file}");
            }
        }
        // What was being copied goes; current and previous stay.
        store.collect().unwrap();
        let left = std::fs::read_dir(folder.join("store/bundles"))
            .unwrap()
            .count();
        assert!(left <= 3, "{left}");
        if current == RELEASES {
            std::fs::remove_dir_all(folder.join("store")).unwrap();
            before = 0;
        }
    }
    println!(
        "{} processes killed, {installed} bundles installed",
        kills()
    );
}
