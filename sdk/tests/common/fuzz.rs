//! Bodies of the fuzz targets in `tests/fuzz`, as functions that the suite calls too. A finding
//! is a panic; errors and wrong scores are allowed.

use std::path::Path;
use std::sync::OnceLock;

use tempfile::TempDir;
use tercet::bundle::FileInfo;
use tercet::{
    Bundle, BundleWriter, Effort, Event, Filter, ItemTableBuilder, LoadMode, Manifest, Metric,
    OpenOptions, Query, Scheme, Search, Session, SessionOptions,
};

/// Items and dim of the manifests that go with the fuzzed tables.
pub const ITEMS: usize = 12;
pub const DIM: usize = 16;

/// Opens and uses `items.safetensors`: byte 0 picks the scheme, byte 1 the number of
/// partitions, bytes 2.. are the file.
pub fn table(input: &[u8]) {
    let &[scheme, partitions, ref file @ ..] = input else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let mut manifest = Manifest::new("fuzz", 1, DIM, 4);
    manifest.items = ITEMS;
    manifest.table.scheme = Scheme::ALL[usize::from(scheme) % Scheme::ALL.len()];
    let partitions = usize::from(partitions) % 6;
    manifest.table.partitions = (partitions > 0).then_some(partitions);
    manifest.table.probes = (partitions > 2).then_some(2);
    let info = FileInfo {
        bytes: file.len() as u64,
        sha256: "0".repeat(64),
    };
    manifest.files.insert("items.safetensors".into(), info);
    std::fs::write(folder.path().join("items.safetensors"), file).unwrap();
    let json = serde_json::to_vec(&manifest).unwrap();
    std::fs::write(folder.path().join("manifest.json"), json).unwrap();
    let options = OpenOptions::new().mode(LoadMode::Read);
    if let Ok(bundle) = options.open(folder.path()) {
        use_everything(&bundle);
    }
}

/// Writes a small good bundle, in which `seed` decides on one vector.
fn write_shop(path: &Path, version: u64) {
    let keys: Vec<String> = (0..ITEMS).map(|i| format!("item-{i}")).collect();
    let mut vectors = vec![0.25; ITEMS * DIM];
    for (i, v) in vectors.iter_mut().enumerate() {
        *v = (i * 7 % 11) as f32 - 5.0;
    }
    vectors[0] = version as f32;
    let colors: Vec<Option<&str>> = (0..ITEMS).map(|i| Some(["red", "blue"][i % 2])).collect();
    let prices: Vec<Vec<String>> = (0..ITEMS).map(|i| vec![i.to_string(); i % 3]).collect();
    let popularity: Vec<f32> = (0..ITEMS).map(|i| i as f32).collect();
    let table = ItemTableBuilder::new(DIM, Scheme::Int8, &keys, &vectors)
        .and_then(|t| t.popularity(&popularity))
        .and_then(|t| t.attribute("color", &colors))
        .and_then(|t| t.list_attribute("price", &prices))
        .unwrap();
    let mut writer = BundleWriter::create(path).unwrap();
    writer.table(&table).unwrap();
    writer
        .finish(Manifest::new("fuzz", version, DIM, 4))
        .unwrap();
}

/// A folder to write to, and a bundle in it, `1.tercet`; made once.
fn shop() -> &'static (TempDir, Bundle) {
    static SHOP: OnceLock<(TempDir, Bundle)> = OnceLock::new();
    SHOP.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("1.tercet");
        write_shop(&path, 1);
        let bundle = Bundle::open(path).unwrap();
        (folder, bundle)
    })
}

/// Reads `manifest.json`, and opens a bundle that has it.
pub fn manifest(input: &[u8]) {
    let parsed = Manifest::parse(input, Path::new("manifest.json"));
    if let Ok(manifest) = parsed {
        let folder = tempfile::tempdir().unwrap();
        for name in manifest.files.keys() {
            let _ = std::fs::copy(shop().1.path().join(name), folder.path().join(name));
        }
        std::fs::write(folder.path().join("manifest.json"), input).unwrap();
        if let Ok(bundle) = OpenOptions::new().mode(LoadMode::Read).open(folder.path()) {
            use_everything(&bundle);
            let _ = bundle.run_probe();
        }
    }
}

/// Parses a filter and applies it.
pub fn filter(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    if let Ok(filter) = Filter::parse(text)
        && let Ok(rows) = shop().1.table().select(&filter)
    {
        assert!(rows.rows().count() == rows.len() && rows.len() <= ITEMS);
    }
}

/// Restores a snapshot, and goes on with it.
pub fn history(input: &[u8]) {
    let (folder, bundle) = shop();
    let path = folder.path().join("snapshot");
    std::fs::write(&path, input).unwrap();
    if let Ok(mut session) = Session::restore(bundle, &path, SessionOptions::default()) {
        let _ = session.recommend(&Query::top(3));
        session.record(Event::new("item-1")).unwrap();
        session.save(&path).unwrap();
        let again = Session::restore(bundle, &path, SessionOptions::default()).unwrap();
        assert_eq!(again.history().len(), session.history().len());
    }
}

/// Opens the file of a durable session, and goes on with it. Byte 0 decides whether there is a key.
#[cfg(feature = "store")]
pub fn journal(input: &[u8]) {
    let Some((&kind, file)) = input.split_first() else {
        return;
    };
    let mut how = tercet::Durability::new().survive_power_loss(false);
    if kind % 2 == 1 {
        how = how.key([kind; 32]);
    }
    let (folder, bundle) = shop();
    let path = folder.path().join("journal");
    std::fs::write(&path, file).unwrap();
    let open = || Session::open(bundle, &path, SessionOptions::default(), &how);
    if let Ok(mut session) = open() {
        let _ = session.recommend(&Query::top(3));
        session.record(Event::new("item-1")).unwrap();
        let kept = session.history().len();
        drop(session);
        assert_eq!(open().unwrap().history().len(), kept);
    }
}

/// Installs a delta whose manifest is signed and whose `delta.safetensors` is the input. It is
/// refused, or leads to the signed bundle.
#[cfg(feature = "store")]
pub fn delta(input: &[u8]) {
    use tercet::store::{DELTA_FILE, write_delta};
    use tercet::{BundleStore, StoreOptions};

    static KEY: OnceLock<String> = OnceLock::new();
    let folder = shop().0.path();
    let (offered, stored) = (folder.join("delta"), folder.join("store"));
    let new = folder.join("2.tercet");
    let key = KEY.get_or_init(|| {
        let keys = minisign::KeyPair::generate_unencrypted_keypair().unwrap();
        write_shop(&new, 2);
        for path in [folder.join("1.tercet"), new.clone()] {
            let manifest = std::fs::read(path.join("manifest.json")).unwrap();
            let signature =
                minisign::sign(None, &keys.sk, manifest.as_slice(), None, None).unwrap();
            std::fs::write(path.join("manifest.json.minisig"), signature.into_string()).unwrap();
        }
        write_delta(&shop().1, &Bundle::open(&new).unwrap(), &offered).unwrap();
        keys.pk.to_base64()
    });
    let options = StoreOptions::new("fuzz").trust(key).unwrap();
    let store = BundleStore::open(&stored, options).unwrap();
    if store.status().unwrap().current.is_none() {
        store.install(folder.join("1.tercet")).unwrap();
        store.current().unwrap();
    }
    std::fs::write(offered.join(DELTA_FILE), input).unwrap();
    match store.install(&offered) {
        Ok(_) => {
            let made = store.current().unwrap().path().join("items.safetensors");
            let want = std::fs::read(new.join("items.safetensors")).unwrap();
            assert_eq!(std::fs::read(made).unwrap(), want);
            std::fs::remove_dir_all(&stored).unwrap();
        }
        Err(_) => assert_eq!(store.status().unwrap().newest, Some(1)),
    }
}

/// A good input of every target, from which damaged ones are made.
pub fn good_inputs() -> Vec<(&'static str, Vec<u8>)> {
    let (folder, bundle) = shop();
    let mut inputs = vec![
        (
            "manifest",
            std::fs::read(bundle.path().join("manifest.json")).unwrap(),
        ),
        (
            "filter",
            b"color in (red, 'blue') and not (price >= 3 or has price) and price < 1e1".to_vec(),
        ),
    ];
    let mut session = Session::new(bundle, SessionOptions::default()).unwrap();
    for i in 0..5 {
        let event = Event::new(format!("item-{i}")).at(i);
        session.record(event).unwrap();
    }
    let path = folder.path().join("good");
    session.save(&path).unwrap();
    inputs.push(("history", std::fs::read(&path).unwrap()));
    #[cfg(feature = "store")]
    for kind in [0u8, 1] {
        let mut how = tercet::Durability::new();
        if kind == 1 {
            how = how.key([kind; 32]);
        }
        let _ = std::fs::remove_file(&path);
        let mut session = Session::open(bundle, &path, SessionOptions::default(), &how).unwrap();
        for i in 0..4 {
            session.record(Event::new(format!("item-{i}"))).unwrap();
        }
        drop(session);
        let file = std::fs::read(&path).unwrap();
        inputs.push(("journal", [&[kind], &*file].concat()));
    }
    #[cfg(feature = "store")]
    {
        delta(b"");
        let new = Bundle::open(folder.path().join("2.tercet")).unwrap();
        let made = tempfile::tempdir().unwrap();
        let made = made.path().join("delta");
        tercet::store::write_delta(bundle, &new, &made).unwrap();
        let file = std::fs::read(made.join(tercet::store::DELTA_FILE)).unwrap();
        inputs.push(("delta", file));
    }
    inputs
}

/// Runs the body of a target by its name.
pub fn run(target: &str, input: &[u8]) {
    match target {
        "table" => table(input),
        "manifest" => manifest(input),
        "filter" => filter(input),
        "history" => history(input),
        #[cfg(feature = "store")]
        "journal" => journal(input),
        #[cfg(feature = "store")]
        "delta" => delta(input),
        other => panic!("there is no target {other}"),
    }
}

/// Calls every reader of the table; results do not matter, panics do.
pub fn use_everything(bundle: &Bundle) {
    let table = bundle.table();
    let n = table.len() as u32;
    let query = vec![1.0; table.dim()];
    let _ = bundle.verify();
    let names: Vec<String> = table.attributes().map(String::from).collect();
    for row in (0..n.min(64)).chain([n, u32::MAX]) {
        let key = table.key(row).map(String::from);
        let _ = table.find(key.as_deref().unwrap_or("item-1"));
        let _ = table.vector(row);
        let _ = table.score(&query, row);
        let _ = table.modality_shares(row);
        for name in &names {
            let _ = table.attribute(name, row);
        }
    }
    for metric in [Metric::Score, Metric::Cosine] {
        for effort in [
            Effort::Default,
            Effort::Exact,
            Effort::Probes(1),
            Effort::Probes(99),
        ] {
            let search = Search::top(5).metric(metric).effort(effort);
            let _ = table.search(&query, &search.clone().exclude(&[1]));
            let _ = table.search(&query, &search.clone().threads(2));
            let twice = [query.clone(), query.clone()].concat();
            let _ = table.search_batch(&twice, &search, &[vec![0], vec![]]);
            for name in &names {
                let rows = table.select(&Filter::not(Filter::has(name)));
                if let Ok(rows) = rows {
                    let _ = table.search(&query, &search.clone().within(&rows));
                }
            }
        }
    }
    let mut session = Session::new(bundle, Default::default()).unwrap();
    let everything = Query::top(5)
        .explain(true)
        .diversity(0.3)
        .explore(0.5, 1)
        .popularity(1.0);
    let _ = session.recommend(&everything);
    for name in &names {
        let query = everything
            .clone()
            .cap(name, 1)
            .freshness(name, 1.0, 1.0, 1.0);
        let _ = session.recommend(&query.calibrate(name, 0.1));
    }
    let _ = session.similar("item-1", 3);
}
