//! Item vectors computed in parts become the table that they would have become in one piece, and
//! what is wrong with a part is told by name.

use std::path::{Path, PathBuf};

use serde_json::json;
use tercet::{Bundle, Scheme};
use tercet_export::shards::Shards;
use tercet_export::{Error, ExportOptions, Provenance, ShardFault, export};
use tercet_models::data::Dataset;
use tercet_models::student::Student;
use tercet_tests::{Outcome, data, student};

/// Width of the tests' student.
const DIM: usize = 32;

/// A shard as a job would write it. Fields are public, so that tests can spoil them.
#[derive(Clone)]
struct Shard {
    part: usize,
    parts: usize,
    first: usize,
    items: usize,
    dim: usize,
    model: &'static str,
    keys: Vec<String>,
    vectors: Vec<f32>,
}

impl Shard {
    fn name(&self) -> String {
        format!("part-{:05}-of-{:05}.safetensors", self.part, self.parts)
    }

    fn bytes(&self) -> Vec<u8> {
        let keys: Vec<u8> = self.keys.concat().into_bytes();
        let mut offsets = vec![0u64];
        for key in &self.keys {
            offsets.push(offsets[offsets.len() - 1] + key.len() as u64);
        }
        let n = self.keys.len();
        let (a, b) = (n * self.dim * 4, (n + 1) * 8);
        let header = json!({
            "__metadata__": {
                "tercet.shard": "1",
                "part": self.part.to_string(),
                "parts": self.parts.to_string(),
                "first": self.first.to_string(),
                "items": self.items.to_string(),
                "model": self.model,
            },
            "vectors": {"dtype": "F32", "shape": [n, self.dim], "data_offsets": [0, a]},
            "ids.offsets": {"dtype": "U64", "shape": [n + 1], "data_offsets": [a, a + b]},
            "ids.bytes": {"dtype": "U8", "shape": [keys.len()], "data_offsets": [a + b, a + b + keys.len()]},
        });
        let mut header = header.to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        let mut out = (header.len() as u64).to_le_bytes().to_vec();
        out.extend(header);
        out.extend(self.vectors.iter().flat_map(|x| x.to_le_bytes()));
        out.extend(offsets.iter().flat_map(|x| x.to_le_bytes()));
        out.extend(keys);
        out
    }

    fn write(&self, folder: &Path) -> Outcome<PathBuf> {
        let path = folder.join(self.name());
        std::fs::write(&path, self.bytes())?;
        Ok(path)
    }
}

/// Cuts items into shards of unequal length.
fn cut(keys: &[String], vectors: &[f32], at: &[usize]) -> Vec<Shard> {
    let mut bounds = vec![0];
    bounds.extend(at);
    bounds.push(keys.len());
    let cut = |(part, w): (usize, &[usize])| Shard {
        part,
        parts: bounds.len() - 1,
        first: w[0],
        items: keys.len(),
        dim: DIM,
        model: "tower",
        keys: keys[w[0]..w[1]].to_vec(),
        vectors: vectors[w[0] * DIM..w[1] * DIM].to_vec(),
    };
    bounds.windows(2).enumerate().map(cut).collect()
}

fn write(shards: &[Shard], folder: &Path) -> Outcome {
    std::fs::create_dir_all(folder)?;
    for shard in shards {
        shard.write(folder)?;
    }
    Ok(())
}

/// The items of `data` with the student's own vectors.
fn items(student: &Student, data: &Dataset) -> Outcome<(Vec<String>, Vec<f32>)> {
    let vectors = student.scorer(data)?.items;
    let keys = data.items.keys().map(str::to_string).collect();
    Ok((keys, vectors.flatten_all()?.to_vec1::<f32>()?))
}

#[test]
fn shards_become_the_same_table_as_one_piece() -> Outcome {
    let data = data(20, 70)?;
    let student = student(&data)?;
    let folder = tempfile::tempdir()?;
    let (keys, vectors) = items(&student, &data)?;
    let shards = folder.path().join("shards");
    write(&cut(&keys, &vectors, &[1, 1, 40]), &shards)?;
    // What a writer left that was killed.
    std::fs::write(shards.join(".part-00001-of-00004.safetensors.x1"), b"half")?;
    for (table, tail, partitions) in [
        (Scheme::Int8, false, None),
        (Scheme::F32, false, None),
        (Scheme::TwoStage, true, Some(5)),
    ] {
        let options = ExportOptions {
            table,
            tail,
            partitions,
            bundle_id: Some("shop".into()),
            ..ExportOptions::default()
        };
        let sharded = ExportOptions {
            shards: Some(shards.clone()),
            ..options.clone()
        };
        let (one, many) = (folder.path().join("one"), folder.path().join("many"));
        export(&student, &data, &Provenance::default(), &options, &one)?;
        export(&student, &data, &Provenance::default(), &sharded, &many)?;
        for file in ["items.safetensors", "user_tower.onnx"] {
            let same = std::fs::read(one.join(file))? == std::fs::read(many.join(file))?;
            assert!(same, "{file} as {table}");
        }
    }
    Ok(())
}

#[test]
fn items_beyond_the_data_are_recommended_too() -> Outcome {
    let data = data(20, 70)?;
    let student = student(&data)?;
    let folder = tempfile::tempdir()?;
    let (mut keys, mut vectors) = items(&student, &data)?;
    // New ones first, and twice as many.
    keys.splice(0..0, (0..140).map(|i| format!("new-{i}")));
    vectors.splice(0..0, (0..140 * DIM).map(|i| (i as f32 * 0.37).sin()));
    let shards = folder.path().join("shards");
    write(&cut(&keys, &vectors, &[100, 200]), &shards)?;
    // More partitions than the data has items.
    let options = ExportOptions {
        shards: Some(shards),
        partitions: Some(80),
        ..ExportOptions::default()
    };
    let path = folder.path().join("large.tercet");
    let report = export(&student, &data, &Provenance::default(), &options, &path)?;
    assert_eq!((report.items, report.quality.k), (210, 100));
    assert!(report.quality.recall > 0.9, "{:?}", report.quality);
    let bundle = Bundle::open(&path)?;
    let table = bundle.table();
    assert_eq!(table.partitions(), Some(80));
    let new = table.find("new-7")?.ok_or("a new item")?;
    let known = table
        .find(data.items.key(3))?
        .ok_or("an item of the data")?;
    assert_eq!(table.attribute("title", known)?.first(), Some(&"Thing 3"));
    assert!(table.attribute("title", new)?.is_empty());
    Ok(())
}

/// Which fault is found in the shards that `spoil` has changed, and in which file.
fn found(spoil: impl FnOnce(&mut Vec<Shard>, &Path)) -> Outcome<(String, ShardFault)> {
    let folder = tempfile::tempdir()?;
    let keys: Vec<String> = (0..30).map(|i| format!("k{i}")).collect();
    let mut shards = cut(&keys, &vec![0.5; 30 * DIM], &[10, 20]);
    let path = folder.path().join("shards");
    write(&shards, &path)?;
    spoil(&mut shards, &path);
    let merged = Shards::open(&path, DIM).and_then(|s| s.merge(&folder.path().join("scratch")));
    match merged {
        Err(Error::Shard { path, fault }) => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            Ok((name.into_owned(), fault))
        }
        other => Err(format!("{other:?}").into()),
    }
}

#[test]
fn what_is_wrong_with_a_shard_is_told_by_name() -> Outcome {
    let second = "part-00001-of-00003.safetensors";
    let change = |f: fn(&mut Shard)| {
        move |shards: &mut Vec<Shard>, path: &Path| {
            f(&mut shards[1]);
            shards[1].write(path).map(drop).expect("a writable folder");
        }
    };
    let (file, fault) = found(|_, p| {
        std::fs::remove_file(p.join(second)).expect("it is there");
    })?;
    assert_eq!((file.as_str(), fault), (second, ShardFault::Missing));

    let (file, fault) = found(change(|s| s.dim = DIM / 2))?;
    let want = ShardFault::Dim {
        expected: DIM,
        got: DIM / 2,
    };
    assert_eq!((file.as_str(), fault), (second, want));

    let (file, fault) = found(change(|s| s.first = 9))?;
    assert!(
        matches!(fault, ShardFault::Overlap { got: 9, .. }),
        "{fault}"
    );
    assert_eq!(file, second);

    let (_, fault) = found(change(|s| s.first = 11))?;
    let want = ShardFault::Gap {
        expected: 10,
        got: 11,
    };
    assert_eq!(fault, want);

    let (file, fault) = found(change(|s| s.model = "other"))?;
    assert!(matches!(fault, ShardFault::Foreign(_)), "{fault}");
    assert_eq!(file, second);

    let (_, fault) = found(change(|s| s.items = 31))?;
    assert!(matches!(fault, ShardFault::Foreign(_)), "{fault}");

    // A copy under another's name, and copies that no job would write.
    for name in [
        second,
        "part-00003-of-00004.safetensors",
        "part-1-of-3.safetensors",
        "part-00003-of-00003.safetensors",
        "part-00001-of-00003 (copy).safetensors",
        "notes.txt",
    ] {
        let (file, fault) = found(|_, p| {
            let first = p.join("part-00000-of-00003.safetensors");
            std::fs::copy(first, p.join(name)).expect("a writable folder");
        })?;
        assert!(matches!(fault, ShardFault::Foreign(_)), "{name}: {fault}");
        assert_eq!(file, name);
    }

    let (_, fault) = found(change(|s| s.vectors[40] = f32::NAN))?;
    assert!(fault.to_string().contains("row 1 "), "{fault}");

    let (_, fault) = found(|_, p| {
        for entry in std::fs::read_dir(p).expect("a folder") {
            std::fs::remove_file(entry.expect("an entry").path()).expect("a file");
        }
    })?;
    assert!(fault.to_string().contains("no shard"), "{fault}");
    Ok(())
}

#[test]
fn damaged_shards_are_errors() -> Outcome {
    let keys: Vec<String> = (0..30).map(|i| format!("k{i}")).collect();
    let whole = cut(&keys, &vec![0.5; 30 * DIM], &[10, 20])[1].bytes();
    let refused = |what: &str, bytes: &[u8]| -> Outcome {
        let (file, fault) = found(|shards, p| {
            std::fs::write(p.join(shards[1].name()), bytes).expect("a writable folder");
        })?;
        assert!(matches!(fault, ShardFault::Malformed(_)), "{what}: {fault}");
        assert_eq!(file, "part-00001-of-00003.safetensors");
        Ok(())
    };
    for cut in [0, 5, 8, 100, whole.len() / 2, whole.len() - 1] {
        refused(&format!("cut at {cut}"), &whole[..cut])?;
    }
    let mut huge = whole.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    refused("a huge header", &huge)?;
    refused("more bytes", &[&whole[..], b"x"].concat())?;
    let header = String::from_utf8_lossy(&whole[8..]).into_owned();
    for (from, to) in [
        ("\"F32\"", "\"I32\""),
        ("ids.bytes", "ids.pytes"),
        ("\"tercet.shard\":\"1\"", "\"tercet.shard\":\"2\""),
        ("\"first\":\"10\"", "\"first\":\"ab\""),
        ("\"model\"", "\"nodel\""),
        ("[11]", "[12]"),
    ] {
        let at = 8 + header.find(from).ok_or("the header has other words")?;
        let mut bytes = whole.clone();
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
        refused(to, &bytes)?;
    }
    // Keys: offsets that descend, and bytes that are not UTF-8.
    let keys_at = whole.len() - 30;
    let mut bytes = whole.clone();
    *bytes.last_mut().ok_or("empty")? = 0xff;
    refused("not UTF-8", &bytes)?;
    let mut bytes = whole;
    let offsets = keys_at - 11 * 8;
    bytes[offsets + 16..offsets + 24].copy_from_slice(&1u64.to_le_bytes());
    bytes[offsets + 8..offsets + 16].copy_from_slice(&9u64.to_le_bytes());
    refused("descending offsets", &bytes)
}

#[test]
fn an_item_in_two_shards_is_told_with_both() -> Outcome {
    let data = data(20, 70)?;
    let student = student(&data)?;
    let folder = tempfile::tempdir()?;
    let (mut keys, mut vectors) = items(&student, &data)?;
    keys.push(keys[2].clone());
    vectors.extend(vec![0.5; DIM]);
    let options = |name: &str| ExportOptions {
        shards: Some(folder.path().join(name)),
        ..ExportOptions::default()
    };
    write(&cut(&keys, &vectors, &[30]), &folder.path().join("twice"))?;
    let path = folder.path().join("bundle");
    let refused = |name: &str| {
        export(
            &student,
            &data,
            &Provenance::default(),
            &options(name),
            &path,
        )
        .err()
    };
    match refused("twice") {
        Some(Error::Shard {
            path,
            fault: ShardFault::DuplicateKey { key, other },
        }) => {
            assert_eq!(key, keys[2]);
            assert!(other.ends_with("part-00000-of-00002.safetensors"));
            assert!(path.ends_with("part-00001-of-00002.safetensors"));
        }
        other => return Err(format!("{other:?}").into()),
    }
    let fewer = cut(&keys[..69], &vectors[..69 * DIM], &[]);
    write(&fewer, &folder.path().join("fewer"))?;
    let error = refused("fewer");
    assert!(matches!(error, Some(Error::Mismatch { .. })), "{error:?}");
    assert!(!path.exists());
    Ok(())
}
