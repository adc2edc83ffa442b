//! Bodies of the fuzz targets in `tests/fuzz`, as functions that the suite calls too. A finding
//! is a panic; errors and wrong scores are allowed.

use tercet::bundle::FileInfo;
use tercet::{
    Bundle, Effort, Filter, LoadMode, Manifest, Metric, OpenOptions, Query, Scheme, Search, Session,
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
