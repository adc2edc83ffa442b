//! One test per attack on a bundle's files: which error, and no panic.
//!
//! The manifest is adjusted to the damaged file where needed, as an attacker would, so that the
//! check under test is the one that answers. Signatures and digests are checked elsewhere.

mod common;

use std::path::{Path, PathBuf};

use common::{DIM, bundle};
use serde_json::{Value, json};
use tercet::{Bundle, Error, LoadMode, OpenOptions, Scheme};

const N: usize = 12;

struct Victim {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl Victim {
    fn new(scheme: Scheme) -> Self {
        let (folder, path, _) = bundle(N, scheme);
        Victim {
            _folder: folder,
            path,
        }
    }

    /// With partitions, bias, modality shares and, where possible, a tail.
    fn partitioned(scheme: Scheme) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b.tercet");
        common::write_partitioned(&path, N, scheme, 3);
        Victim {
            _folder: folder,
            path,
        }
    }

    fn items(&self) -> PathBuf {
        self.path.join("items.safetensors")
    }

    fn open(&self) -> tercet::Result<Bundle> {
        let mapped = Bundle::open(&self.path);
        let read = OpenOptions::new().mode(LoadMode::Read).open(&self.path);
        assert_eq!(mapped.is_ok(), read.is_ok());
        mapped
    }

    fn error(&self) -> Error {
        self.open().expect_err("must be refused")
    }

    fn edit_manifest(&self, edit: impl FnOnce(&mut Value)) {
        let path = self.path.join("manifest.json");
        let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        edit(&mut json);
        std::fs::write(&path, serde_json::to_vec(&json).unwrap()).unwrap();
    }

    /// Replaces the table and makes the manifest agree with its length.
    fn put_items(&self, bytes: &[u8]) {
        std::fs::write(self.items(), bytes).unwrap();
        self.edit_manifest(|m| m["files"]["items.safetensors"]["bytes"] = json!(bytes.len()));
    }

    /// Edits header JSON and data of the table. The header is padded to the alignment again.
    fn edit_items(&self, edit: impl FnOnce(&mut Value, &mut Vec<u8>)) {
        let (mut header, mut data) = split(&self.items());
        edit(&mut header, &mut data);
        self.put_items(&join(&header.to_string(), &data));
    }

    /// Overwrites bytes of one tensor.
    fn poke(&self, tensor: &str, at: usize, bytes: &[u8]) {
        self.edit_items(|header, data| {
            let start = header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
            data[start + at..start + at + bytes.len()].copy_from_slice(bytes);
        });
    }

    fn verify(&self) -> Error {
        let bundle = self.open().unwrap();
        // Make the digest agree, so that the content check answers.
        let Error::Digest { got, .. } = bundle.verify().expect_err("digest") else {
            panic!("the digest is checked first");
        };
        self.edit_manifest(|m| m["files"]["items.safetensors"]["sha256"] = json!(got));
        use_everything(&self.path);
        self.open().unwrap().verify().expect_err("must be noticed")
    }
}

fn split(path: &Path) -> (Value, Vec<u8>) {
    let bytes = std::fs::read(path).unwrap();
    let n = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = serde_json::from_slice(&bytes[8..8 + n]).unwrap();
    (header, bytes[8 + n..].to_vec())
}

fn join(header: &str, data: &[u8]) -> Vec<u8> {
    let mut header = header.as_bytes().to_vec();
    header.resize((header.len() + 8).next_multiple_of(64) - 8, b' ');
    [
        &(header.len() as u64).to_le_bytes(),
        header.as_slice(),
        data,
    ]
    .concat()
}

fn use_everything(path: &Path) {
    if let Ok(bundle) = Bundle::open(path) {
        common::fuzz::use_everything(&bundle);
    }
}

// ---- manifest

#[test]
fn manifest_missing() {
    let v = Victim::new(Scheme::Int8);
    std::fs::remove_file(v.path.join("manifest.json")).unwrap();
    assert!(matches!(v.error(), Error::NotABundle { .. }));
}

#[test]
fn folder_missing() {
    assert!(matches!(
        Bundle::open("/no/such/folder"),
        Err(Error::Io { .. })
    ));
}

#[test]
fn manifest_not_json() {
    let v = Victim::new(Scheme::Int8);
    for bad in [
        "",
        "{",
        "[]",
        "null",
        "{\"format_version\":\"1\"}",
        "{\"format_version\":1}",
        "\u{0}",
    ] {
        std::fs::write(v.path.join("manifest.json"), bad).unwrap();
        assert!(matches!(v.error(), Error::Manifest { .. }), "{bad}");
    }
    std::fs::write(v.path.join("manifest.json"), [0xff, 0xfe]).unwrap();
    assert!(matches!(v.error(), Error::Manifest { .. }));
}

#[test]
fn manifest_huge() {
    let v = Victim::new(Scheme::Int8);
    std::fs::write(v.path.join("manifest.json"), vec![b' '; (1 << 20) + 1]).unwrap();
    assert!(matches!(v.error(), Error::ManifestTooLarge { .. }));
}

#[test]
fn manifest_deeply_nested() {
    let v = Victim::new(Scheme::Int8);
    let deep = format!("{{\"format_version\":1,\"card\":{}", "[".repeat(500_000));
    std::fs::write(v.path.join("manifest.json"), deep).unwrap();
    assert!(matches!(v.error(), Error::Manifest { .. }));
}

#[test]
fn format_version_unknown() {
    let v = Victim::new(Scheme::Int8);
    // Even if the rest has changed beyond recognition.
    std::fs::write(
        v.path.join("manifest.json"),
        "{\"format_version\":2,\"shape\":\"new\"}",
    )
    .unwrap();
    assert!(matches!(
        v.error(),
        Error::UnsupportedFormat {
            got: 2,
            supported: 1
        }
    ));
}

#[test]
fn scheme_unknown() {
    let v = Victim::new(Scheme::Int8);
    v.edit_manifest(|m| m["table"]["scheme"] = json!("int2"));
    assert!(matches!(v.error(), Error::UnsupportedScheme { got } if got == "int2"));
}

#[test]
fn manifest_fields_out_of_range() {
    let edits: [(&str, Value); 16] = [
        ("dim", json!(0)),
        ("dim", json!(1u64 << 40)),
        ("dim", json!(-1)),
        ("items", json!(0)),
        ("items", json!(1u64 << 32)),
        ("window", json!(0)),
        ("window", json!(1 << 30)),
        ("bundle_id", json!("")),
        ("created", json!("yesterday")),
        ("expires", json!("never")),
        ("behaviors", json!([])),
        ("behaviors", json!(["any", "any"])),
        ("modalities", json!([{"name": "a", "dim": 0}])),
        ("modalities", json!([{"name": "a.b", "dim": 1}])),
        ("surprise", json!(1)),
        ("engine", json!({"opset": 17, "user_tower": "absent.onnx"})),
    ];
    for (field, value) in edits {
        let v = Victim::new(Scheme::Int8);
        v.edit_manifest(|m| m[field] = value.clone());
        assert!(
            matches!(v.error(), Error::Manifest { .. }),
            "{field} {value}"
        );
    }
}

#[test]
fn manifest_file_names_that_leave_the_folder() {
    for name in ["../secret", "/etc/passwd", "a/b", "..", "manifest.json"] {
        let v = Victim::new(Scheme::Int8);
        v.edit_manifest(|m| m["files"][name] = m["files"]["items.safetensors"].clone());
        assert!(matches!(v.error(), Error::Manifest { .. }), "{name}");
    }
}

#[test]
fn manifest_items_differ_from_rows() {
    for n in [N - 1, N + 1, u32::MAX as usize] {
        let v = Victim::new(Scheme::Int8);
        v.edit_manifest(|m| m["items"] = json!(n));
        assert!(matches!(v.error(), Error::Shape { tensor, .. } if tensor == "codes"));
    }
}

#[test]
fn manifest_scheme_differs_from_codes() {
    let v = Victim::new(Scheme::Int8);
    v.edit_manifest(|m| m["table"]["scheme"] = json!("f32"));
    assert!(matches!(v.error(), Error::Dtype { tensor, .. } if tensor == "codes"));
}

#[test]
fn int8_without_scales() {
    let v = Victim::new(Scheme::F16);
    v.edit_items(|header, _| header["codes"]["dtype"] = json!("I16"));
    assert!(matches!(v.error(), Error::Dtype { .. }));
    let v = Victim::new(Scheme::Int8);
    v.edit_items(|header, _| {
        let scales = header.as_object_mut().unwrap().remove("scales").unwrap();
        header["pad.99"] = scales;
    });
    assert!(matches!(v.error(), Error::MissingTensor { tensor, .. } if tensor == "scales"));
}

// ---- the container

#[test]
fn file_missing() {
    let v = Victim::new(Scheme::Int8);
    std::fs::remove_file(v.items()).unwrap();
    assert!(matches!(v.error(), Error::Io { .. }));
}

#[test]
fn file_truncated() {
    let v = Victim::new(Scheme::Int8);
    let good = std::fs::read(v.items()).unwrap();
    std::fs::write(v.items(), &good[..good.len() - 1]).unwrap();
    assert!(matches!(v.error(), Error::FileSize { .. }));
    for cut in [0, 1, 7, 8, 9, 100, good.len() / 2, good.len() - 1] {
        v.put_items(&good[..cut]);
        assert!(matches!(v.error(), Error::Container { .. }), "cut at {cut}");
    }
}

#[test]
fn file_oversized() {
    let v = Victim::new(Scheme::Int8);
    let mut bytes = std::fs::read(v.items()).unwrap();
    bytes.push(0);
    std::fs::write(v.items(), &bytes).unwrap();
    assert!(matches!(v.error(), Error::FileSize { .. }));
}

#[test]
fn trailing_bytes() {
    let v = Victim::new(Scheme::Int8);
    let mut bytes = std::fs::read(v.items()).unwrap();
    bytes.extend_from_slice(&[0; 64]);
    v.put_items(&bytes);
    assert!(matches!(v.error(), Error::Container { .. }));
}

#[test]
fn foreign_file() {
    let v = Victim::new(Scheme::Int8);
    v.put_items(&[0x89, b'P', b'N', b'G', 0x0d, 0x0a, 0x1a, 0x0a, 0, 0, 0, 0]);
    assert!(matches!(v.error(), Error::HeaderTooLarge { .. }));
    v.put_items(&[4, 0, 0, 0, 0, 0, 0, 0, b'a', b'b', b'c', b'd']);
    assert!(matches!(v.error(), Error::Container { .. }));
}

#[test]
fn header_length_lie() {
    let v = Victim::new(Scheme::Int8);
    let good = std::fs::read(v.items()).unwrap();
    for lie in [64 * 1024 + 1, 100_000_000, u64::MAX, u64::MAX - 7, 1 << 63] {
        let mut bad = good.clone();
        bad[..8].copy_from_slice(&lie.to_le_bytes());
        v.put_items(&bad);
        assert!(matches!(v.error(), Error::HeaderTooLarge { .. }), "{lie}");
    }
    for lie in [0u64, 1, 64 * 1024] {
        let mut bad = good.clone();
        bad[..8].copy_from_slice(&lie.to_le_bytes());
        v.put_items(&bad);
        assert!(matches!(v.error(), Error::Container { .. }), "{lie}");
    }
}

#[test]
fn wrong_dtype() {
    let v = Victim::new(Scheme::Int8);
    v.edit_items(|header, _| header["codes"]["dtype"] = json!("U8"));
    assert!(matches!(v.error(), Error::Dtype { tensor, .. } if tensor == "codes"));
    let v = Victim::new(Scheme::Int8);
    v.edit_items(|header, _| header["ids.order"]["dtype"] = json!("I32"));
    assert!(matches!(v.error(), Error::Dtype { tensor, .. } if tensor == "ids.order"));
    let v = Victim::new(Scheme::Int8);
    v.edit_items(|header, _| header["ids.offsets"]["dtype"] = json!("F64"));
    assert!(matches!(v.error(), Error::Dtype { tensor, .. } if tensor == "ids.offsets"));
}

#[test]
fn unknown_dtype() {
    let v = Victim::new(Scheme::Int8);
    v.edit_items(|header, _| header["codes"]["dtype"] = json!("Q3"));
    assert!(matches!(v.error(), Error::Container { .. }));
}

#[test]
fn wrong_shape() {
    for shape in [json!([DIM, N]), json!([N * DIM]), json!([N, DIM, 1])] {
        let v = Victim::new(Scheme::Int8);
        v.edit_items(|header, _| header["codes"]["shape"] = shape.clone());
        assert!(matches!(v.error(), Error::Shape { tensor, .. } if tensor == "codes"));
    }
}

#[test]
fn inflated_dims() {
    for shape in [
        json!([1u64 << 40, 1u64 << 40]),
        json!([u64::MAX, 1]),
        json!([N, DIM * 2]),
    ] {
        let v = Victim::new(Scheme::Int8);
        v.edit_items(|header, _| header["codes"]["shape"] = shape.clone());
        assert!(matches!(v.error(), Error::Container { .. }), "{shape}");
    }
    // Nothing times anything: the container accepts it, we do not.
    let v = Victim::new(Scheme::Int8);
    v.edit_items(|header, _| {
        header["bias2"] = json!({"dtype": "F32", "shape": [0, u64::MAX], "data_offsets": [0, 0]});
    });
    assert!(matches!(
        v.error(),
        Error::UnexpectedTensor { .. } | Error::Container { .. }
    ));
}

#[test]
fn overlapping_offsets() {
    let v = Victim::new(Scheme::Int8);
    v.edit_items(|header, _| {
        let codes = header["codes"]["data_offsets"].clone();
        let length = (N * 4) as u64;
        let start = codes[0].as_u64().unwrap();
        header["scales"]["data_offsets"] = json!([start, start + length]);
    });
    assert!(matches!(v.error(), Error::Container { .. }));
}

#[test]
fn offsets_with_a_hole_or_backwards() {
    let v = Victim::new(Scheme::Int8);
    v.edit_items(|header, _| {
        header.as_object_mut().unwrap().remove("scales");
    });
    assert!(matches!(v.error(), Error::Container { .. }));
    let v = Victim::new(Scheme::Int8);
    v.edit_items(|header, _| header["codes"]["data_offsets"] = json!([N * DIM, 0]));
    assert!(matches!(v.error(), Error::Container { .. }));
}

#[test]
fn misaligned() {
    let v = Victim::new(Scheme::Int8);
    let (header, data) = split(&v.items());
    // One more space in front of the data shifts every tensor by one byte.
    let mut text = header.to_string().into_bytes();
    text.resize((text.len() + 8).next_multiple_of(64) - 7, b' ');
    v.put_items(&[&(text.len() as u64).to_le_bytes(), text.as_slice(), &data].concat());
    assert!(matches!(v.error(), Error::Misaligned { offset, .. } if offset % 64 == 1));
}

#[test]
fn unexpected_tensor() {
    let v = Victim::new(Scheme::Int8);
    v.edit_items(|header, data| {
        let start = data.len();
        let pad = start.next_multiple_of(64) - start;
        data.resize(start + pad + 4, 0);
        header["pad.end"] =
            json!({"dtype": "U8", "shape": [pad], "data_offsets": [start, start + pad]});
        header["../../x"] =
            json!({"dtype": "U8", "shape": [4], "data_offsets": [start + pad, start + pad + 4]});
    });
    assert!(matches!(v.error(), Error::UnexpectedTensor { tensor, .. } if tensor == "../../x"));
}

#[test]
fn headers_at_random_never_panic() {
    let v = Victim::new(Scheme::Int8);
    let good = std::fs::read(v.items()).unwrap();
    let mut rng = common::Rng(4);
    for _ in 0..400 {
        let mut bad = good.clone();
        for _ in 0..1 + rng.next() % 3 {
            // Mostly the header, sometimes the data.
            let end = if rng.next().is_multiple_of(3) {
                bad.len()
            } else {
                1500
            };
            let at = rng.next() as usize % end.min(bad.len());
            bad[at] = rng.next() as u8;
        }
        v.put_items(&bad);
        use_everything(&v.path);
        let _ = v.open().map(|b| b.verify());
    }
}

// ---- content: opened without complaint, an error where it is used, found by verify

#[test]
fn ids_offsets_beyond_bytes() {
    let v = Victim::new(Scheme::Int8);
    v.poke("ids.offsets", 8, &u64::MAX.to_le_bytes());
    let bundle = v.open().unwrap();
    for row in [0, 1] {
        let e = bundle.table().key(row).unwrap_err();
        assert!(matches!(e, Error::CorruptTensor { tensor, .. } if tensor == "ids.offsets"));
    }
    assert!(
        matches!(v.verify(), Error::CorruptTensor { tensor, row: 0, .. } if tensor == "ids.offsets")
    );
}

#[test]
fn ids_offsets_decreasing() {
    let v = Victim::new(Scheme::Int8);
    v.poke("ids.offsets", 8 * 5, &1u64.to_le_bytes());
    assert!(
        matches!(v.verify(), Error::CorruptTensor { tensor, row: 4, .. } if tensor == "ids.offsets")
    );
}

#[test]
fn id_not_utf8() {
    let v = Victim::new(Scheme::Int8);
    v.poke("ids.bytes", 0, &[0xff]);
    let e = v.open().unwrap().table().key(0).unwrap_err();
    assert!(matches!(e, Error::CorruptTensor { tensor, row: 0, .. } if tensor == "ids.bytes"));
    assert!(
        matches!(v.verify(), Error::CorruptTensor { tensor, row: 0, .. } if tensor == "ids.bytes")
    );
}

#[test]
fn ids_order_out_of_range() {
    let v = Victim::new(Scheme::Int8);
    for i in 0..N {
        v.poke("ids.order", i * 4, &u32::MAX.to_le_bytes());
    }
    let e = v.open().unwrap().table().find("item-1").unwrap_err();
    assert!(matches!(e, Error::CorruptTensor { tensor, .. } if tensor == "ids.order"));
    assert!(matches!(v.verify(), Error::CorruptTensor { tensor, .. } if tensor == "ids.order"));
}

#[test]
fn ids_order_not_sorted() {
    let v = Victim::new(Scheme::Int8);
    v.poke("ids.order", 0, &5u32.to_le_bytes());
    assert!(matches!(v.verify(), Error::CorruptTensor { tensor, .. } if tensor == "ids.order"));
}

#[test]
fn ids_twice() {
    let v = Victim::new(Scheme::Int8);
    // item-1 becomes a second item-0.
    v.poke("ids.bytes", "item-0item-".len(), b"0");
    assert!(matches!(v.verify(), Error::CorruptTensor { tensor, .. } if tensor == "ids.order"));
}

#[test]
fn code_minus_128() {
    let v = Victim::new(Scheme::Int8);
    v.poke("codes", DIM + 3, &[0x80]);
    assert!(matches!(v.verify(), Error::CorruptTensor { tensor, row: 1, .. } if tensor == "codes"));
}

#[test]
fn scales_not_positive() {
    for bad in [0.0f32, -1.0, f32::NAN, f32::INFINITY] {
        let v = Victim::new(Scheme::Int8);
        v.poke("scales", 8, &bad.to_le_bytes());
        assert!(
            matches!(v.verify(), Error::CorruptTensor { tensor, row: 2, .. } if tensor == "scales")
        );
    }
}

#[test]
fn floats_not_finite() {
    let v = Victim::new(Scheme::F32);
    v.poke("codes", DIM * 4, &f32::NAN.to_le_bytes());
    assert!(matches!(v.verify(), Error::NonFinite { row: 1, .. }));
    let v = Victim::new(Scheme::F16);
    v.poke("codes", DIM * 2 * 3, &0x7c00u16.to_le_bytes());
    assert!(matches!(v.verify(), Error::NonFinite { row: 3, .. }));
    for column in ["bias", "popularity"] {
        let v = Victim::new(Scheme::Int8);
        v.poke(column, 4, &f32::INFINITY.to_le_bytes());
        assert!(matches!(v.verify(), Error::NonFinite { what, row: 1 } if what == column));
    }
}

#[test]
fn attribute_codes_beyond_the_dictionary() {
    for (tensor, attribute, row) in [("attr.color", "color", 0), ("attr.tags", "tags", 1)] {
        let v = Victim::new(Scheme::Int8);
        v.poke(tensor, 0, &7u32.to_le_bytes());
        let bundle = v.open().unwrap();
        let e = bundle.table().attribute(attribute, row).unwrap_err();
        assert!(matches!(e, Error::CorruptTensor { tensor: t, .. } if t == tensor));
        assert!(matches!(v.verify(), Error::CorruptTensor { tensor: t, .. } if t == tensor));
    }
}

#[test]
fn attribute_list_offsets_beyond_the_codes() {
    let v = Victim::new(Scheme::Int8);
    v.poke("attr.tags.offsets", 8 * 3, &1_000_000u64.to_le_bytes());
    let e = v.open().unwrap().table().attribute("tags", 2).unwrap_err();
    assert!(matches!(e, Error::CorruptTensor { tensor, .. } if tensor == "attr.tags.offsets"));
    assert!(
        matches!(v.verify(), Error::CorruptTensor { tensor, .. } if tensor == "attr.tags.offsets")
    );
}

#[test]
fn swapped_content_of_the_same_length() {
    let v = Victim::new(Scheme::Int8);
    let mut bytes = std::fs::read(v.items()).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(v.items(), &bytes).unwrap();
    assert!(matches!(
        v.open().unwrap().verify(),
        Err(Error::Digest { .. })
    ));
}

// ---- schemes and partitions

#[test]
fn partition_offsets_that_overlap_overrun_or_leave_rows_out() {
    let n = N as u32;
    for offsets in [
        [0, 5, 4, n],     // backwards: rows twice
        [0, 4, n + 1, n], // beyond the table, and back
        [0, 4, 8, n + 1], // beyond the table
        [0, 4, 8, n - 1], // the last row is in none
        [1, 4, 8, n],     // nor the first
        [0, u32::MAX, 8, n],
        [u32::MAX; 4],
    ] {
        let v = Victim::partitioned(Scheme::Int8);
        for (i, o) in offsets.iter().enumerate() {
            v.poke("partition.offsets", 4 * i, &o.to_le_bytes());
        }
        let error = v.error();
        assert!(
            matches!(error, Error::Offsets { .. }),
            "{offsets:?}: {error}"
        );
    }
    // Empty partitions are allowed; verification notices that the rows do not belong there.
    let v = Victim::partitioned(Scheme::Int8);
    for (i, o) in [0, 0, 0, n].iter().enumerate() {
        v.poke("partition.offsets", 4 * i, &o.to_le_bytes());
    }
    use_everything(&v.path);
    assert!(
        matches!(v.verify(), Error::CorruptTensor { tensor, .. } if tensor == "partition.radii")
    );
}

#[test]
fn partition_counts_that_differ() {
    for (count, probes) in [
        (0, None),
        (N + 1, None),
        (1 << 17, None),
        (3, Some(0)),
        (3, Some(4)),
    ] {
        let v = Victim::partitioned(Scheme::Int8);
        v.edit_manifest(|m| {
            m["table"]["partitions"] = json!(count);
            if let Some(p) = probes {
                m["table"]["probes"] = json!(p);
            }
        });
        assert!(
            matches!(v.error(), Error::Manifest { .. }),
            "{count} {probes:?}"
        );
    }
    let v = Victim::partitioned(Scheme::Int8);
    v.edit_manifest(|m| m["table"]["partitions"] = json!(4));
    assert!(matches!(v.error(), Error::Shape { .. }));
    // Partitions that the manifest does not know of are no part of the table.
    v.edit_manifest(|m| drop(m["table"].as_object_mut().unwrap().remove("partitions")));
    assert!(matches!(v.error(), Error::UnexpectedTensor { .. }));
    let v = Victim::new(Scheme::Int8);
    v.edit_manifest(|m| m["table"]["partitions"] = json!(3));
    assert!(matches!(v.error(), Error::MissingTensor { .. }));
    v.edit_manifest(|m| m["table"] = json!({"scheme": "int8", "probes": 1}));
    assert!(matches!(v.error(), Error::Manifest { .. }));
}

#[test]
fn radii_and_centroids_that_lie() {
    for scheme in Scheme::ALL {
        for (tensor, bytes) in [
            ("partition.radii", f32::NAN.to_le_bytes()),
            ("partition.radii", f32::INFINITY.to_le_bytes()),
            ("partition.radii", (-1.0f32).to_le_bytes()),
            ("partition.radii", 0.0f32.to_le_bytes()),
            ("partition.centroids", [0, 0x7c, 0, 0xfc]),
            ("partition.centroids", [1, 0x7e, 0xff, 0xff]),
            ("partition.bias", (-1.0f32).to_le_bytes()),
        ] {
            let v = Victim::partitioned(scheme);
            let at = 4 * usize::from(tensor == "partition.bias");
            v.poke(tensor, at, &bytes);
            use_everything(&v.path);
            assert!(
                matches!(v.verify(), Error::CorruptTensor { .. }),
                "{scheme} {tensor}"
            );
        }
    }
}

#[test]
fn codes_of_other_schemes() {
    let v = Victim::new(Scheme::TwoStage);
    v.edit_manifest(|m| m["table"]["scheme"] = json!("int4"));
    assert!(matches!(v.error(), Error::MissingTensor { tensor, .. } if tensor == "factors"));
    let v = Victim::new(Scheme::Int4);
    v.edit_manifest(|m| m["table"]["scheme"] = json!("two-stage"));
    assert!(matches!(v.error(), Error::MissingTensor { tensor, .. } if tensor == "codes.low"));
    let v = Victim::new(Scheme::Int4);
    v.edit_manifest(|m| m["table"]["scheme"] = json!("int8"));
    assert!(matches!(v.error(), Error::Dtype { .. }));
    // Two values a byte need an even dim.
    let v = Victim::new(Scheme::Int4);
    v.edit_manifest(|m| m["dim"] = json!(DIM - 1));
    assert!(matches!(v.error(), Error::Manifest { .. }));
    // A tail behind a scheme that has none.
    let v = Victim::partitioned(Scheme::Int8);
    v.edit_manifest(|m| m["table"]["scheme"] = json!("f32"));
    assert!(matches!(v.error(), Error::Dtype { .. }));
}

#[test]
fn packed_codes_that_are_not_allowed() {
    // High 0 and low 0 make −128; a factor of 0 makes a group vanish.
    let v = Victim::new(Scheme::TwoStage);
    v.poke("codes", 0, &[0]);
    v.poke("codes.low", 0, &[0]);
    assert!(matches!(v.verify(), Error::CorruptTensor { tensor, row: 0, .. } if tensor == "codes"));
    let v = Victim::new(Scheme::Int4);
    v.poke("factors", 3, &[0]);
    assert!(
        matches!(v.verify(), Error::CorruptTensor { tensor, row: 1, .. } if tensor == "factors")
    );
    for scheme in [Scheme::Int4, Scheme::TwoStage] {
        let v = Victim::new(scheme);
        v.poke("scales", 4, &f32::NAN.to_le_bytes());
        use_everything(&v.path);
        assert!(matches!(v.verify(), Error::CorruptTensor { tensor, .. } if tensor == "scales"));
    }
}

#[test]
fn modality_shares_of_another_width() {
    let v = Victim::partitioned(Scheme::F16);
    v.edit_manifest(|m| m["modalities"] = json!([]));
    assert!(matches!(v.error(), Error::Shape { tensor, .. } if tensor == "modalities"));
}

// ---- fuzzing without a fuzzer

/// Inputs that a fuzzer found worth keeping, and damaged copies of good files.
#[test]
fn saved_fuzz_inputs_and_mutations_never_panic() {
    // Cargo runs tests in their package; a path of this build would outlive a checkout.
    let saved = Path::new("../tests/fuzz/inputs");
    let mut inputs = common::fuzz::good_inputs();
    let targets: Vec<&str> = inputs.iter().map(|(t, _)| *t).chain(["table"]).collect();
    for target in targets {
        let folder = saved.join(target);
        let kept = std::fs::read_dir(&folder).unwrap();
        let kept = kept.map(|entry| std::fs::read(entry.unwrap().path()).unwrap());
        let before = inputs.len();
        inputs.extend(kept.map(|input| (target, input)));
        assert!(inputs.len() > before, "{}", folder.display());
    }
    for (i, scheme) in Scheme::ALL.into_iter().enumerate() {
        let v = Victim::partitioned(scheme);
        let good = std::fs::read(v.items()).unwrap();
        inputs.push(("table", [&[i as u8, 3], good.as_slice()].concat()));
    }
    let mut rng = common::Rng(1);
    for (target, input) in &inputs {
        common::fuzz::run(target, input);
        if input.is_empty() {
            continue;
        }
        for _ in 0..40 {
            let mut bad = input.clone();
            for _ in 0..=rng.next() % 6 {
                let at = rng.next() as usize % bad.len();
                bad[at] = match rng.next() % 3 {
                    0 => rng.next() as u8,
                    1 => bad[at] ^ 1 << (rng.next() % 8),
                    _ => 0xff,
                };
            }
            common::fuzz::run(target, &bad);
        }
    }
}

#[test]
#[ignore = "writes the first inputs of a fuzzer to TERCET_FUZZ_INPUTS"]
fn first_fuzz_inputs() {
    let folder = std::env::var("TERCET_FUZZ_INPUTS").unwrap();
    for (i, (target, input)) in common::fuzz::good_inputs().into_iter().enumerate() {
        let path = Path::new(&folder).join(target).join(format!("good-{i}"));
        std::fs::write(path, input).unwrap();
    }
}
