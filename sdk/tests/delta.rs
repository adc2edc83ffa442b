//! Deltas: the bundle that comes of one is the new bundle, byte for byte, or nothing has changed.
#![cfg(feature = "store")]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{DIM, Rng};
use minisign::KeyPair;
use tercet::store::{DELTA_FILE, DeltaReport, write_delta};
use tercet::{
    Bundle, BundleStore, BundleWriter, Error, ItemTableBuilder, Manifest, Query, Scheme, Session,
    SessionOptions, StoreOptions,
};

/// An item as a publisher keeps it: everything of it follows from these.
#[derive(Clone)]
struct Item {
    key: String,
    seed: u64,
    color: u64,
    tags: usize,
}

struct Shop {
    folder: tempfile::TempDir,
    keys: KeyPair,
    scheme: Scheme,
    partitions: Option<usize>,
}

impl Shop {
    fn new(scheme: Scheme) -> Self {
        Shop {
            folder: tempfile::tempdir().unwrap(),
            keys: KeyPair::generate_unencrypted_keypair().unwrap(),
            scheme,
            partitions: None,
        }
    }

    fn items(n: u64) -> Vec<Item> {
        let item = |seed| Item {
            key: format!("item-{seed}"),
            seed,
            color: seed % 5,
            tags: (seed % 4) as usize,
        };
        (0..n).map(item).collect()
    }

    /// A signed bundle of `items`; towers are files of any content here, named but never loaded.
    fn release(&self, version: u64, items: &[Item]) -> PathBuf {
        let path = self.folder.path().join(format!("{version}.tercet"));
        let keys: Vec<&str> = items.iter().map(|i| i.key.as_str()).collect();
        let vectors: Vec<f32> = items
            .iter()
            .flat_map(|i| Rng(i.seed + 1).vectors(DIM))
            .collect();
        let popularity: Vec<f32> = items.iter().map(|i| 1.0 / (i.seed + 1) as f32).collect();
        let colors: Vec<Option<String>> = items
            .iter()
            .map(|i| (i.color > 0).then(|| format!("color {}", i.color)))
            .collect();
        let tags: Vec<Vec<&str>> = items
            .iter()
            .map(|i| ["new", "sale", "last"][..i.tags.min(3)].to_vec())
            .collect();
        let mut table = ItemTableBuilder::new(DIM, self.scheme, &keys, &vectors)
            .and_then(|t| t.popularity(&popularity))
            .and_then(|t| t.attribute("color", &colors))
            .and_then(|t| t.list_attribute("tags", &tags))
            .unwrap();
        if let Some(count) = self.partitions {
            table = table.partitions(count).unwrap();
        }
        let mut writer = BundleWriter::create(&path).unwrap();
        writer.table(&table).unwrap();
        writer.write_file("notes", b"the same in all").unwrap();
        writer
            .write_file("release", version.to_string().as_bytes())
            .unwrap();
        writer
            .finish(Manifest::new("shop", version, DIM, 4))
            .unwrap();
        let manifest = std::fs::read(path.join("manifest.json")).unwrap();
        let signature =
            minisign::sign(None, &self.keys.sk, manifest.as_slice(), None, None).unwrap();
        std::fs::write(path.join("manifest.json.minisig"), signature.into_string()).unwrap();
        path
    }

    fn delta(&self, old: &Path, new: &Path) -> (PathBuf, DeltaReport) {
        let path = new.with_extension("delta");
        let (old, new) = (Bundle::open(old).unwrap(), Bundle::open(new).unwrap());
        let report = write_delta(&old, &new, &path).unwrap();
        (path, report)
    }

    fn store(&self) -> BundleStore {
        let options = StoreOptions::new("shop")
            .trust(&self.keys.pk.to_base64())
            .unwrap();
        BundleStore::open(self.folder.path().join("store"), options).unwrap()
    }

    fn folders(&self) -> usize {
        let bundles = self.folder.path().join("store/bundles");
        std::fs::read_dir(bundles).unwrap().count()
    }
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    entries
        .map(|e| {
            let name = e.file_name().into_string().unwrap();
            (name, std::fs::read(e.path()).unwrap())
        })
        .collect()
}

/// Installs `old`, then the delta to `new`, and compares what is in the store with `new`.
fn reaches(shop: &Shop, old: &[Item], new: &[Item]) -> DeltaReport {
    let store = shop.store();
    let version = store.status().unwrap().newest.unwrap_or(0);
    let old = shop.release(version + 1, old);
    store.install(&old).unwrap();
    let new = shop.release(version + 2, new);
    let (delta, report) = shop.delta(&old, &new);
    assert!(!files(&delta).contains_key("items.safetensors"));
    store.install(&delta).unwrap();
    let current = store.current().unwrap();
    assert_eq!(files(current.path()), files(&new));
    current.verify().unwrap();
    assert_eq!(
        report.bytes,
        files(&delta).values().map(|b| b.len() as u64).sum::<u64>()
    );
    report
}

#[test]
fn every_scheme_is_reached_byte_for_byte() {
    let schemes = [
        Scheme::F32,
        Scheme::F16,
        Scheme::Int8,
        Scheme::Int4,
        Scheme::TwoStage,
    ];
    for scheme in schemes {
        let shop = Shop::new(scheme);
        let old = Shop::items(300);
        let mut new = old.clone();
        new[7].seed = 1000; // another vector
        new[8].tags = 3; // another attribute
        new[9].color = 3;
        new.remove(120);
        new.swap(30, 31);
        new.push(Item {
            key: "a first key in byte order".into(),
            seed: 1001,
            color: 2,
            tags: 1,
        });
        new.insert(
            40,
            Item {
                key: "zzz".into(),
                seed: 1002,
                color: 9, // a value that the dictionary lacks
                tags: 0,
            },
        );
        let report = reaches(&shop, &old, &new);
        assert_eq!((report.inserted, report.deleted), (2, 1), "{scheme}");
        assert_eq!((report.changed, report.same), (3, 296), "{scheme}");
    }
}

#[test]
fn partitions_are_reached_too() {
    let mut shop = Shop::new(Scheme::Int8);
    shop.partitions = Some(8);
    let old = Shop::items(400);
    let mut new = old.clone();
    new.truncate(380);
    new[3].seed = 5000;
    reaches(&shop, &old, &new);
}

#[test]
fn random_changes_are_reached() {
    for seed in 0..30 {
        let shop = Shop::new([Scheme::Int8, Scheme::TwoStage][seed as usize % 2]);
        let mut rng = Rng(seed);
        let mut pick = |n: u32| rng.next() % n.max(1);
        let old = Shop::items(1 + u64::from(pick(60)));
        let mut new = old.clone();
        for change in 0..pick(40) {
            let at = pick(new.len() as u32) as usize;
            match pick(5) {
                0 if new.len() > 1 => drop(new.remove(at)),
                1 => new.insert(
                    at,
                    Item {
                        key: format!("{}-{change}", pick(1000)),
                        seed: u64::from(pick(9999)),
                        color: u64::from(pick(9)),
                        tags: pick(4) as usize,
                    },
                ),
                2 => new[at].seed = u64::from(pick(9999)),
                3 => new[at].tags = pick(4) as usize,
                _ => new.swap(at, 0),
            }
        }
        reaches(&shop, &old, &new);
    }
}

#[test]
fn few_changes_make_a_small_delta() {
    let shop = Shop::new(Scheme::Int8);
    let old = Shop::items(5000);
    let mut new = old.clone();
    for i in (0..5000).step_by(100) {
        new[i].seed += 10_000;
    }
    let report = reaches(&shop, &old, &new);
    assert_eq!((report.changed, report.same), (50, 4950));
    // Manifest, header and signature alone take some kilobytes.
    assert!(report.bytes < 12_000, "{report:?}");
    assert!(report.bundle_bytes > 200_000);
}

#[test]
fn only_towers_change() {
    let shop = Shop::new(Scheme::Int8);
    let items = Shop::items(50);
    let report = reaches(&shop, &items, &items);
    assert_eq!((report.changed, report.inserted, report.deleted), (0, 0, 0));
    assert!(report.bytes < report.bundle_bytes);
}

#[test]
fn deltas_follow_each_other_and_a_rollback() {
    let shop = Shop::new(Scheme::Int8);
    let store = shop.store();
    let mut items = Shop::items(40);
    let mut releases = Vec::new();
    for version in 1..=4 {
        items[version as usize].seed = 700 + version;
        releases.push(shop.release(version, &items));
    }
    store.install(&releases[0]).unwrap();
    let session = Session::new(&store.current().unwrap(), SessionOptions::default()).unwrap();
    for pair in releases.windows(2).take(2) {
        store.install(shop.delta(&pair[0], &pair[1]).0).unwrap();
        assert_eq!(files(store.current().unwrap().path()), files(&pair[1]));
    }
    // The session goes on with what it has.
    assert_eq!(session.bundle().manifest().bundle_version, 1);
    session.bundle().verify().unwrap();
    // A delta may start from the previous bundle as well.
    store.rollback().unwrap();
    let (delta, _) = shop.delta(&releases[1], &releases[3]);
    store.install(delta).unwrap();
    assert_eq!(files(store.current().unwrap().path()), files(&releases[3]));
}

#[test]
fn a_delta_with_another_base_is_refused() {
    let shop = Shop::new(Scheme::Int8);
    let store = shop.store();
    let items = Shop::items(20);
    let releases: Vec<PathBuf> = (1..=3).map(|v| shop.release(v, &items)).collect();
    let (delta, _) = shop.delta(&releases[1], &releases[2]);
    // To an empty store as well.
    let error = store.install(&delta).unwrap_err();
    assert!(matches!(error, Error::OtherBase { .. }), "{error}");
    store.install(&releases[0]).unwrap();
    let error = store.install(&delta).unwrap_err();
    assert!(matches!(error, Error::OtherBase { .. }), "{error}");
    assert_eq!(shop.folders(), 1);
}

#[test]
fn only_forward_and_only_within_a_line() {
    let shop = Shop::new(Scheme::Int8);
    let items = Shop::items(20);
    let (one, two) = (shop.release(1, &items), shop.release(2, &items));
    let open = |path: &Path| Bundle::open(path).unwrap();
    let to = shop.folder.path().join("d");
    let error = write_delta(&open(&two), &open(&one), &to).unwrap_err();
    assert!(matches!(error, Error::OldBundle { .. }), "{error}");
    let error = write_delta(&open(&one), &open(&two), &one).unwrap_err();
    assert!(matches!(error, Error::InvalidArgument { .. }), "{error}");
    assert!(!to.exists());
}

#[test]
fn a_damaged_delta_changes_nothing() {
    let shop = Shop::new(Scheme::Int8);
    let store = shop.store();
    let old = Shop::items(60);
    let mut new = old.clone();
    new.remove(3);
    new[5].tags = 3;
    new[6].seed = 99;
    new.insert(
        9,
        Item {
            key: "x".into(),
            seed: 98,
            color: 1,
            tags: 2,
        },
    );
    let (one, two) = (shop.release(1, &old), shop.release(2, &new));
    store.install(&one).unwrap();
    let (delta, _) = shop.delta(&one, &two);
    let file = delta.join(DELTA_FILE);
    let good = std::fs::read(&file).unwrap();
    let status = store.status().unwrap();
    let mut refused = 0;
    // Every byte of the header region in steps, and of the data: one bit each.
    for at in (0..good.len()).step_by(23) {
        let mut bad = good.clone();
        bad[at] ^= 1 << (at % 8);
        std::fs::write(&file, &bad).unwrap();
        match store.install(&delta) {
            // A gap of the container. Start again.
            Ok(_) => {
                assert_eq!(files(store.current().unwrap().path()), files(&two));
                std::fs::remove_dir_all(shop.folder.path().join("store")).unwrap();
                shop.store().install(&one).unwrap();
            }
            Err(_) => refused += 1,
        }
        assert_eq!(store.status().unwrap(), status);
        assert_eq!(shop.folders(), 1);
    }
    for length in (0..good.len()).step_by(97) {
        std::fs::write(&file, &good[..length]).unwrap();
        store.install(&delta).unwrap_err();
        assert_eq!(store.status().unwrap(), status);
    }
    assert!(
        refused > good.len() / 23 / 2,
        "{refused} of {}",
        good.len() / 23
    );
    std::fs::write(&file, &good).unwrap();
    store.install(&delta).unwrap();
    assert_eq!(files(store.current().unwrap().path()), files(&two));
}

#[test]
fn a_delta_beside_files_of_another_release_is_refused() {
    let shop = Shop::new(Scheme::Int8);
    let store = shop.store();
    let mut items = Shop::items(30);
    let releases: Vec<PathBuf> = (1..=3)
        .map(|v| {
            items[0].seed = 100 + v;
            shop.release(v, &items)
        })
        .collect();
    store.install(&releases[0]).unwrap();
    let (two, _) = shop.delta(&releases[0], &releases[1]);
    let (three, _) = shop.delta(&releases[0], &releases[2]);
    std::fs::copy(three.join(DELTA_FILE), two.join(DELTA_FILE)).unwrap();
    let error = store.install(&two).unwrap_err();
    assert!(matches!(error, Error::Digest { .. }), "{error}");
    // A file that neither the delta nor its base has.
    std::fs::remove_file(three.join("release")).unwrap();
    let error = store.install(&three).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
    let mut session = Session::new(&store.current().unwrap(), SessionOptions::default()).unwrap();
    assert_eq!(session.recommend(&Query::top(1)).unwrap()[0].item, "item-1");
    assert_eq!(shop.folders(), 1);
}
