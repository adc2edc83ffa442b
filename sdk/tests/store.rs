//! The bundle store: updates, rollback, and one test per attack: which error, and that nothing
//! has changed.
#![cfg(feature = "store")]

mod common;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use common::DIM;
use minisign::KeyPair;
use serde_json::{Value, json};
use tercet::bundle::Probe;
use tercet::{
    Bundle, BundleStore, BundleWriter, Error, Event, ItemTableBuilder, Manifest, Query, Scheme,
    Session, SessionOptions, StoreOptions,
};

const N: usize = 12;

struct Publisher(KeyPair);

impl Publisher {
    fn new() -> Self {
        Publisher(KeyPair::generate_unencrypted_keypair().unwrap())
    }

    fn key(&self) -> String {
        self.0.pk.to_base64()
    }

    fn sign(&self, path: &Path) {
        let manifest = std::fs::read(path.join("manifest.json")).unwrap();
        let signature = minisign::sign(None, &self.0.sk, manifest.as_slice(), None, None).unwrap();
        std::fs::write(path.join("manifest.json.minisig"), signature.into_string()).unwrap();
    }
}

struct World {
    folder: tempfile::TempDir,
    publisher: Publisher,
}

impl World {
    fn new() -> Self {
        World {
            folder: tempfile::tempdir().unwrap(),
            publisher: Publisher::new(),
        }
    }

    fn options(&self) -> StoreOptions {
        StoreOptions::new("shop")
            .trust(&self.publisher.key())
            .unwrap()
    }

    fn store(&self) -> BundleStore {
        self.store_with(self.options())
    }

    fn store_with(&self, options: StoreOptions) -> BundleStore {
        BundleStore::open(self.folder.path().join("store"), options).unwrap()
    }

    /// A store with version 1 installed and proven.
    fn started(&self) -> BundleStore {
        let store = self.store();
        store.install(self.release(1)).unwrap();
        assert_eq!(version(&store.current().unwrap()), 1);
        store
    }

    /// A signed bundle, in which item `version` is the most popular one.
    fn release(&self, version: u64) -> PathBuf {
        self.release_with(version, |_| {})
    }

    fn release_with(&self, version: u64, edit: impl FnOnce(&mut Manifest)) -> PathBuf {
        let path = self.unsigned(version, edit);
        self.publisher.sign(&path);
        path
    }

    fn unsigned(&self, version: u64, edit: impl FnOnce(&mut Manifest)) -> PathBuf {
        let path = self.folder.path().join(format!("{version}.tercet"));
        let keys = common::keys(N);
        let vectors = common::Rng(version).vectors(N * DIM);
        let mut popularity = [0.01f32; N];
        popularity[version as usize % N] = 0.5;
        let table = ItemTableBuilder::new(DIM, Scheme::Int8, &keys, &vectors)
            .and_then(|t| t.popularity(&popularity))
            .unwrap();
        let mut writer = BundleWriter::create(&path).unwrap();
        writer.table(&table).unwrap();
        let mut manifest = Manifest::new("shop", version, DIM, 4);
        manifest.probe = Some(Probe {
            history: Vec::new(),
            expected: vec![keys[version as usize % N].clone()],
            tolerance: None,
        });
        edit(&mut manifest);
        writer.finish(manifest).unwrap();
        path
    }

    /// A signed release whose manifest was edited as text, past the writer's checks.
    fn edited(&self, version: u64, edit: impl FnOnce(&mut Value)) -> PathBuf {
        let path = self.unsigned(version, |_| {});
        let file = path.join("manifest.json");
        let mut json: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        edit(&mut json);
        std::fs::write(&file, serde_json::to_vec(&json).unwrap()).unwrap();
        self.publisher.sign(&path);
        path
    }
}

fn version(bundle: &Bundle) -> u64 {
    bundle.manifest().bundle_version
}

/// Folders of bundles in the store.
fn folders(world: &World) -> Vec<PathBuf> {
    let bundles = std::fs::read_dir(world.folder.path().join("store/bundles")).unwrap();
    bundles.map(|entry| entry.unwrap().path()).collect()
}

/// The error of installing `source` into a store with version 1, which it leaves as it was.
fn refused(world: &World, store: &BundleStore, source: &Path) -> Error {
    let before = store.status().unwrap();
    let error = store.install(source).expect_err("must be refused");
    assert_eq!(store.status().unwrap(), before);
    assert_eq!(version(&store.current().unwrap()), 1);
    assert_eq!(folders(world).len(), 1, "a refused copy stays");
    error
}

// ---- updates

#[test]
fn a_new_version_takes_over_and_the_old_one_stays_for_a_rollback() {
    let world = World::new();
    let store = world.started();
    let installed = store.install(world.release(2)).unwrap();
    assert_eq!((installed.version, installed.proven), (2, false));
    assert_eq!(version(&store.current().unwrap()), 2);

    // Another store object, as in another process or after a restart.
    let store = world.store();
    let status = store.status().unwrap();
    let (current, previous) = (status.current.unwrap(), status.previous.unwrap());
    assert_eq!((current.version, current.proven), (2, true));
    assert_eq!(previous.version, 1);
    assert_eq!((status.staged, status.newest), (None, Some(2)));

    assert_eq!(version(&store.rollback().unwrap()), 1);
    assert_eq!(version(&store.current().unwrap()), 1);
    assert!(matches!(store.rollback(), Err(Error::NoBundle { .. })));
    assert_eq!(store.status().unwrap().newest, Some(2));
}

#[test]
fn a_staged_version_waits() {
    let world = World::new();
    let store = world.started();
    assert!(matches!(
        store.activate(),
        Err(Error::NoBundle { what: "staged", .. })
    ));
    store.stage(world.release(2)).unwrap();
    assert_eq!(version(&store.current().unwrap()), 1);
    // A later one takes its place.
    store.stage(world.release(3)).unwrap();
    assert_eq!(folders(&world).len(), 2);
    assert_eq!(store.activate().unwrap().version, 3);
    assert_eq!(version(&store.current().unwrap()), 3);
}

#[test]
fn installing_twice_changes_nothing() {
    let world = World::new();
    let store = world.started();
    let before = store.status().unwrap();
    let source = world.folder.path().join("1.tercet");
    assert_eq!(store.install(source).unwrap().version, 1);
    assert_eq!(store.status().unwrap(), before);
    // What was staged before may be installed.
    let source = world.release(2);
    store.stage(&source).unwrap();
    assert_eq!(store.install(&source).unwrap().version, 2);
    assert_eq!(version(&store.current().unwrap()), 2);
}

#[test]
fn an_empty_store_says_so() {
    let world = World::new();
    let error = world.store().current().unwrap_err();
    assert!(matches!(
        error,
        Error::NoBundle {
            what: "current",
            ..
        }
    ));
    let options = StoreOptions::new("shop");
    let error = BundleStore::open(world.folder.path().join("s"), options).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument { .. }));
}

#[test]
fn open_sessions_keep_their_bundle() {
    let world = World::new();
    let store = world.started();
    let bundle = store.current().unwrap();
    let mut session = Session::new(&bundle, SessionOptions::default()).unwrap();
    drop(bundle);
    for version in 2..=4 {
        store.install(world.release(version)).unwrap();
        store.current().unwrap();
    }
    // Current, previous, and the one in use.
    assert_eq!(folders(&world).len(), 3);
    assert_eq!(store.collect().unwrap(), 0);
    assert_eq!(session.recommend(&Query::top(1)).unwrap()[0].item, "item-1");
    session.bundle().verify().unwrap();
    session.record(Event::new("item-3")).unwrap();
    drop(session);
    assert_eq!(store.collect().unwrap(), 1);
    assert_eq!(folders(&world).len(), 2);
}

#[test]
fn who_installs_excludes_others() {
    let world = World::new();
    let store = world.started();
    let file = std::fs::File::open(world.folder.path().join("store/install.lock")).unwrap();
    file.lock().unwrap();
    let source = world.release(2);
    assert!(matches!(
        store.install(&source),
        Err(Error::StoreBusy { .. })
    ));
    assert!(matches!(store.collect(), Err(Error::StoreBusy { .. })));
    assert_eq!(version(&store.current().unwrap()), 1);
    drop(file);
    store.install(&source).unwrap();
}

#[test]
fn many_install_and_read_at_once() {
    let world = World::new();
    let store = world.started();
    let sources: Vec<PathBuf> = (2..8).map(|v| world.release(v)).collect();
    let world = &world;
    std::thread::scope(|scope| {
        for half in sources.chunks(3) {
            scope.spawn(move || {
                let store = world.store();
                for source in half {
                    loop {
                        match store.install(source) {
                            Err(Error::StoreBusy { .. }) => std::thread::yield_now(),
                            Ok(_) | Err(Error::OldBundle { .. }) => break,
                            Err(e) => panic!("{e}"),
                        }
                    }
                }
            });
        }
        let mut last = 0;
        for _ in 0..50 {
            let bundle = store.current().unwrap();
            assert!(version(&bundle) >= last);
            last = version(&bundle);
            bundle.verify().unwrap();
        }
    });
    assert_eq!(version(&store.current().unwrap()), 7);
}

// ---- bundles that do not work

#[test]
fn a_failing_probe_stops_the_installation() {
    let world = World::new();
    let store = world.started();
    let source = world.release_with(2, |m| {
        m.probe.as_mut().unwrap().expected = vec!["item-7".into()];
    });
    let error = refused(&world, &store, &source);
    assert!(
        matches!(
            error,
            Error::ProbeFailed {
                found: 0,
                expected: 1
            }
        ),
        "{error}"
    );
}

#[test]
fn a_tower_that_cannot_be_loaded_stops_the_installation() {
    let world = World::new();
    let store = world.started();
    let source = world.unsigned(2, |_| {});
    let mut manifest = Bundle::open(&source).unwrap().manifest().clone();
    std::fs::write(source.join("user.onnx"), b"junk").unwrap();
    manifest.engine.user_tower = Some("user.onnx".into());
    manifest.files.insert(
        "user.onnx".into(),
        tercet::bundle::FileInfo {
            bytes: 4,
            // sha256sum of "junk"
            sha256: "ef875a1705a5fdac206be996f4dc1f726ea6b68861eb741c37def7277f179e37".into(),
        },
    );
    let json = serde_json::to_vec(&manifest).unwrap();
    std::fs::write(source.join("manifest.json"), json).unwrap();
    world.publisher.sign(&source);
    let error = refused(&world, &store, &source);
    assert!(
        matches!(
            error,
            Error::Engine { .. } | Error::EngineUnavailable { .. }
        ),
        "{error}"
    );
}

/// Puts the table of another release, of the same length, into the newest folder of the store.
fn damage_newest(world: &World, version: u64, other: &Path) {
    let name = format!("v{version}-");
    let newest = folders(world).into_iter().find(|f| {
        let folder = f.file_name().unwrap().to_str().unwrap();
        folder.starts_with(&name)
    });
    let to = newest.unwrap().join("items.safetensors");
    std::fs::copy(other.join("items.safetensors"), to).unwrap();
}

#[test]
fn a_probe_that_fails_at_the_first_open_brings_the_previous_bundle_back() {
    let world = World::new();
    let store = world.started();
    store.install(world.release(2)).unwrap();
    damage_newest(&world, 2, &world.release(3));
    assert_eq!(version(&store.current().unwrap()), 1);
    let status = store.status().unwrap();
    assert_eq!(status.current.unwrap().version, 1);
    assert_eq!((status.previous, status.newest), (None, Some(2)));
    // The bad one is not taken again, a better one is.
    let error = store.install(world.release(2)).unwrap_err();
    assert!(matches!(error, Error::OldBundle { newest: 2, got: 2 }));
    store.install(world.release(3)).unwrap();
    assert_eq!(version(&store.current().unwrap()), 3);
}

#[test]
fn files_lost_later_bring_the_previous_bundle_back() {
    let world = World::new();
    let store = world.started();
    store.install(world.release(2)).unwrap();
    assert_eq!(version(&store.current().unwrap()), 2);
    for folder in folders(&world) {
        if folder.to_str().unwrap().contains("v2-") {
            std::fs::remove_file(folder.join("items.safetensors")).unwrap();
        }
    }
    assert_eq!(version(&store.current().unwrap()), 1);
}

#[test]
fn without_a_previous_bundle_the_error_is_told_and_nothing_is_lost() {
    let world = World::new();
    let store = world.store();
    store.install(world.release(1)).unwrap();
    damage_newest(&world, 1, &world.release(2));
    for _ in 0..5 {
        let error = store.current().unwrap_err();
        assert!(matches!(error, Error::ProbeFailed { .. }), "{error}");
    }
    assert_eq!(store.status().unwrap().current.unwrap().version, 1);
    store.install(world.release(2)).unwrap();
    assert_eq!(version(&store.current().unwrap()), 2);
}

#[cfg(unix)]
#[test]
fn a_bundle_that_is_never_proven_is_given_up() {
    let world = World::new();
    let store = world.started();
    store.install(world.release(2)).unwrap();
    // A link to itself: an error of the moment, as far as the store can tell.
    for folder in folders(&world) {
        if folder.to_str().unwrap().contains("v2-") {
            let items = folder.join("items.safetensors");
            std::fs::remove_file(&items).unwrap();
            std::os::unix::fs::symlink("items.safetensors", items).unwrap();
        }
    }
    for _ in 0..3 {
        assert!(matches!(store.current(), Err(Error::Io { .. })));
    }
    assert_eq!(version(&store.current().unwrap()), 1);
}

// ---- signatures and keys

#[test]
fn an_unsigned_bundle() {
    let world = World::new();
    let store = world.started();
    let source = world.unsigned(2, |_| {});
    let error = refused(&world, &store, &source);
    assert!(matches!(error, Error::Signature { .. }), "{error}");
}

#[test]
fn a_changed_manifest() {
    let world = World::new();
    let store = world.started();
    let source = world.release(2);
    let path = source.join("manifest.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"shop\"", "\"shop\" ")).unwrap();
    let error = refused(&world, &store, &source);
    assert!(matches!(error, Error::Signature { .. }), "{error}");
}

#[test]
fn every_byte_of_a_signature_counts() {
    let world = World::new();
    let store = world.started();
    let source = world.release(2);
    let path = source.join("manifest.json.minisig");
    let good = std::fs::read(&path).unwrap();
    let signed = good.iter().position(|&b| b == b'\n').unwrap() + 1;
    for at in (signed..good.len() - 1).step_by(7) {
        let mut bad = good.clone();
        bad[at] ^= 1;
        std::fs::write(&path, bad).unwrap();
        let error = store.install(&source).unwrap_err();
        assert!(
            matches!(error, Error::Signature { .. } | Error::UntrustedKey { .. }),
            "byte {at}: {error}"
        );
    }
    for length in (0..good.len() - 4).step_by(5) {
        std::fs::write(&path, &good[..length]).unwrap();
        let error = store.install(&source).unwrap_err();
        assert!(
            matches!(error, Error::Signature { .. }),
            "{length} bytes: {error}"
        );
    }
    std::fs::write(&path, vec![b'A'; 1 << 20]).unwrap();
    assert!(matches!(
        store.install(&source),
        Err(Error::Signature { .. })
    ));
    std::fs::write(&path, good).unwrap();
    store.install(&source).unwrap();
}

#[test]
fn a_signature_of_another_release() {
    let world = World::new();
    let store = world.started();
    let (source, other) = (world.release(2), world.release(3));
    let name = "manifest.json.minisig";
    std::fs::copy(other.join(name), source.join(name)).unwrap();
    let error = refused(&world, &store, &source);
    assert!(matches!(error, Error::Signature { .. }), "{error}");
}

#[test]
fn a_wrong_key() {
    let world = World::new();
    let store = world.started();
    let source = world.unsigned(2, |_| {});
    Publisher::new().sign(&source);
    let error = refused(&world, &store, &source);
    assert!(matches!(error, Error::UntrustedKey { .. }), "{error}");
}

#[test]
fn keys_are_rotated() {
    let mut world = World::new();
    let old = world.publisher.key();
    let store = world.started();
    // Whoever stole the old key blocks all updates with the highest version.
    store.install(world.release(u64::MAX)).unwrap();
    assert_eq!(version(&store.current().unwrap()), u64::MAX);

    world.publisher = Publisher::new();
    let both = StoreOptions::new("shop").trust(&old).unwrap();
    let both = both.trust(&world.publisher.key()).unwrap();
    let store = world.store_with(both);
    assert_eq!(version(&store.current().unwrap()), u64::MAX);
    assert!(matches!(
        store.install(world.release(5)),
        Err(Error::OldBundle { .. })
    ));

    // An app that trusts only the new key: neither bundles nor versions of the old one count.
    let store = world.store();
    let error = store.current().unwrap_err();
    assert!(matches!(error, Error::UntrustedKey { .. }), "{error}");
    store.install(world.release(5)).unwrap();
    assert_eq!(version(&store.current().unwrap()), 5);
    assert_eq!(store.status().unwrap().newest, Some(5));
}

#[test]
fn keys_are_read_in_both_forms() {
    let world = World::new();
    let file = world.publisher.0.pk.to_box().unwrap().into_string();
    assert!(file.contains('\n'));
    let store = world.store_with(StoreOptions::new("shop").trust(&file).unwrap());
    store.install(world.release(1)).unwrap();
    for bad in ["", "x", "untrusted comment: only", &file[..file.len() - 9]] {
        let error = StoreOptions::new("shop").trust(bad).unwrap_err();
        assert!(matches!(error, Error::InvalidArgument { .. }), "{bad}");
    }
    let three = world.options().trust(&file).unwrap().trust(&file);
    assert!(matches!(three, Err(Error::InvalidArgument { .. })));
}

// ---- what the signature does not say

#[test]
fn swapped_files() {
    let world = World::new();
    let store = world.started();
    let (source, other) = (world.release(2), world.release(3));
    let name = "items.safetensors";
    std::fs::copy(other.join(name), source.join(name)).unwrap();
    let error = refused(&world, &store, &source);
    assert!(matches!(error, Error::Digest { .. }), "{error}");
}

#[test]
fn an_older_release() {
    let world = World::new();
    let store = world.started();
    let error = refused(&world, &store, &world.release(0));
    assert!(
        matches!(error, Error::OldBundle { newest: 1, got: 0 }),
        "{error}"
    );
}

#[test]
fn another_release_of_the_same_version() {
    let world = World::new();
    let store = world.started();
    let source = world.release_with(1, |m| m.card = json!("other"));
    let error = refused(&world, &store, &source);
    assert!(
        matches!(error, Error::OldBundle { newest: 1, got: 1 }),
        "{error}"
    );
}

#[test]
fn an_expired_release() {
    let world = World::new();
    let at = |seconds: u64| move || -> SystemTime { UNIX_EPOCH + Duration::from_secs(seconds) };
    // 2026-01-31T12:00:00Z
    let end = 1_769_860_800;
    let expiring = |m: &mut Manifest| m.expires = Some("2026-01-31T13:00:00+01:00".into());
    let store = world.started();
    let late = world.store_with(world.options().clock(at(end)));
    let error = refused(&world, &late, &world.release_with(2, expiring));
    assert!(matches!(error, Error::Expired { .. }), "{error}");

    // One second earlier it is taken; afterwards it is used, but told.
    let source = world.release_with(3, expiring);
    let early = world.store_with(world.options().clock(at(end - 1)));
    assert!(!early.install(source).unwrap().expired);
    assert_eq!(version(&late.current().unwrap()), 3);
    assert!(late.status().unwrap().current.unwrap().expired);
    assert!(!early.status().unwrap().current.unwrap().expired);
    drop(store);
}

#[test]
fn a_bundle_of_another_line() {
    let world = World::new();
    let store = world.started();
    let source = world.release_with(2, |m| m.bundle_id = "bank".into());
    let error = refused(&world, &store, &source);
    assert!(matches!(error, Error::OtherBundle { .. }), "{error}");
}

#[cfg(unix)]
#[test]
fn symbolic_links() {
    use std::os::unix::fs::symlink;
    let world = World::new();
    let store = world.started();
    for name in [
        "items.safetensors",
        "manifest.json",
        "manifest.json.minisig",
    ] {
        let source = world.release(2);
        let (file, aside) = (source.join(name), world.folder.path().join("aside"));
        std::fs::rename(&file, &aside).unwrap();
        symlink(&aside, &file).unwrap();
        let error = refused(&world, &store, &source);
        assert!(matches!(error, Error::NotAFile { .. }), "{name}: {error}");
    }
}

#[test]
fn a_folder_in_place_of_a_file() {
    let world = World::new();
    let store = world.started();
    let source = world.release(2);
    std::fs::remove_file(source.join("items.safetensors")).unwrap();
    std::fs::create_dir(source.join("items.safetensors")).unwrap();
    let error = refused(&world, &store, &source);
    assert!(matches!(error, Error::NotAFile { .. }), "{error}");
}

#[test]
fn unlisted_files_and_folders() {
    let world = World::new();
    let store = world.started();
    let source = world.release(2);
    std::fs::write(source.join("readme.txt"), "x").unwrap();
    let error = refused(&world, &store, &source);
    assert!(matches!(error, Error::UnlistedFile { .. }), "{error}");
    std::fs::remove_file(source.join("readme.txt")).unwrap();
    std::fs::create_dir(source.join("more")).unwrap();
    let error = refused(&world, &store, &source);
    assert!(matches!(error, Error::UnlistedFile { .. }), "{error}");
}

#[test]
fn paths_that_leave_the_folder() {
    let world = World::new();
    let store = world.started();
    for (v, name) in (2..).zip(["../evil", "/tmp/evil", "a/b", "..", ".hidden"]) {
        let source = world.edited(v, |m| {
            let info = m["files"]["items.safetensors"].clone();
            m["files"][name] = info;
        });
        let error = refused(&world, &store, &source);
        assert!(matches!(error, Error::Manifest { .. }), "{name}: {error}");
    }
}

#[test]
fn missing_and_truncated_files() {
    let world = World::new();
    let store = world.started();
    let source = world.release(2);
    let items = source.join("items.safetensors");
    let bytes = std::fs::read(&items).unwrap();
    std::fs::write(&items, &bytes[..bytes.len() - 1]).unwrap();
    let error = refused(&world, &store, &source);
    assert!(matches!(error, Error::FileSize { .. }), "{error}");
    std::fs::remove_file(&items).unwrap();
    let error = refused(&world, &store, &source);
    assert!(matches!(error, Error::Io { .. }), "{error}");
    let error = refused(&world, &store, &source.join("nowhere"));
    assert!(matches!(error, Error::NotABundle { .. }), "{error}");
}

#[test]
fn sizes_that_overflow_or_exceed_the_limit() {
    let world = World::new();
    let store = world.started();
    let source = world.edited(2, |m| {
        for name in ["a", "b"] {
            m["files"][name] = m["files"]["items.safetensors"].clone();
            m["files"][name]["bytes"] = json!(u64::MAX);
        }
    });
    let error = refused(&world, &store, &source);
    assert!(
        matches!(
            error,
            Error::BundleTooLarge {
                bytes: u64::MAX,
                ..
            }
        ),
        "{error}"
    );
    let small = world.store_with(world.options().max_bytes(1000));
    let error = refused(&world, &small, &world.release(3));
    assert!(
        matches!(error, Error::BundleTooLarge { limit: 1000, .. }),
        "{error}"
    );
}

#[cfg(unix)]
#[test]
fn more_bytes_than_the_storage_has() {
    let world = World::new();
    world.started();
    let store = world.store_with(world.options().max_bytes(u64::MAX));
    // A file with a hole: 8 TiB long, next to nothing on the disk.
    let length = 8u64 << 40;
    let source = world.edited(2, |m| {
        m["files"]["items.safetensors"]["bytes"] = json!(length)
    });
    let file = std::fs::File::options()
        .write(true)
        .open(source.join("items.safetensors"))
        .unwrap();
    if file.set_len(length).is_err() {
        return; // The file system knows no such files.
    }
    let error = refused(&world, &store, &source);
    assert!(matches!(error, Error::NoSpace { .. }), "{error}");
}

#[test]
fn a_huge_manifest() {
    let world = World::new();
    let store = world.started();
    let source = world.release(2);
    let manifest = std::fs::read_to_string(source.join("manifest.json")).unwrap();
    let padded = format!("{manifest}{}", " ".repeat(1 << 20));
    std::fs::write(source.join("manifest.json"), padded).unwrap();
    world.publisher.sign(&source);
    let error = refused(&world, &store, &source);
    assert!(matches!(error, Error::ManifestTooLarge { .. }), "{error}");
}

// ---- the store's own files

#[test]
fn what_an_interrupted_installation_leaves_is_removed() {
    let world = World::new();
    let store = world.started();
    let left = world.folder.path().join("store/bundles/v2-abc");
    std::fs::create_dir(&left).unwrap();
    std::fs::write(left.join("items.safetensors"), "half").unwrap();
    assert_eq!(version(&store.current().unwrap()), 1);
    store.install(world.release(2)).unwrap();
    assert!(!left.exists());
    assert_eq!(version(&store.current().unwrap()), 2);
}

#[test]
fn a_damaged_state_is_an_error() {
    let world = World::new();
    let store = world.started();
    let path = world.folder.path().join("store/current");
    let good = std::fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        std::fs::write(&path, bad).unwrap();
        let error = store.current().unwrap_err();
        assert!(matches!(error, Error::StoreState { .. }), "byte {at}");
        std::fs::write(&path, &good[..at]).unwrap();
        let error = store.status().unwrap_err();
        assert!(matches!(error, Error::StoreState { .. }), "{at} bytes");
    }
    std::fs::write(&path, good).unwrap();
    assert_eq!(version(&store.current().unwrap()), 1);
}

#[test]
fn folders_swapped_inside_the_store() {
    let world = World::new();
    let store = world.started();
    store.install(world.release(2)).unwrap();
    store.current().unwrap();
    let mut both = folders(&world);
    both.sort();
    let aside = world.folder.path().join("aside");
    std::fs::rename(&both[0], &aside).unwrap();
    std::fs::rename(&both[1], &both[0]).unwrap();
    std::fs::rename(&aside, &both[1]).unwrap();
    let error = store.current().unwrap_err();
    assert!(matches!(error, Error::Digest { .. }), "{error}");
}
