//! Reading data set folders: ids, order, splits, features, and one test per kind of bad input.

use std::fs;
use std::io::Write;
use std::path::Path;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use tempfile::TempDir;
use tercet_models::Error;
use tercet_models::data::import::{Format, import};
use tercet_models::data::inspect::inspect;
use tercet_models::data::{Dataset, FitOn, HistoryEvent, LoadOptions, Split};
use tercet_models::eval::{EvalProtocol, MaskRule, queries};

fn folder(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        put(dir.path(), name, text.as_bytes());
    }
    dir
}

fn put(dir: &Path, name: &str, bytes: &[u8]) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = GzEncoder::new(Vec::new(), Compression::default());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

fn npy(descr: &str, shape: &str, payload: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut out = b"\x93NUMPY\x01\x00".to_vec();
    out.extend((header.len() as u16).to_le_bytes());
    out.extend(header.as_bytes());
    out.extend(payload);
    out
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn open(dir: &TempDir) -> Result<Dataset, Error> {
    Dataset::open(dir.path(), &LoadOptions::default())
}

/// Opens and expects an error in `file` at `line` whose reason contains `part`.
fn refused(files: &[(&str, &str)], file: &str, line: u64, part: &str) {
    let dir = folder(files);
    refused_in(&dir, file, line, part);
}

fn refused_in(dir: &TempDir, file: &str, line: u64, part: &str) {
    match open(dir).unwrap_err() {
        Error::Data {
            path,
            line: at,
            reason,
        } => {
            assert!(path.ends_with(file), "{}", path.display());
            assert_eq!(at, line, "{reason}");
            assert!(reason.contains(part), "{reason}");
        }
        other => panic!("{other}"),
    }
}

fn refused_feature(name: &str, bytes: &[u8], part: &str) {
    let dir = folder(&[(
        "interactions.csv",
        "user_id,item_id,split\n0,0,train\n0,1,test\n",
    )]);
    put(dir.path(), &format!("features/{name}"), bytes);
    match open(&dir).unwrap_err() {
        Error::Feature { path, reason } => {
            assert!(path.ends_with(name));
            assert!(reason.contains(part), "{reason}");
        }
        other => panic!("{other}"),
    }
}

const LOG: &str = "user_id,item_id,split\n";

#[test]
fn ids_without_tables() {
    // 0-based: gaps up to the largest id exist.
    let data = open(&folder(&[(
        "interactions.csv",
        &format!("{LOG}0,5,train\n3,0,test\n"),
    )]))
    .unwrap();
    assert_eq!((data.num_users(), data.num_items()), (4, 6));
    assert_eq!(data.items.key(5), "5");
    // 1-based.
    let data = open(&folder(&[(
        "interactions.csv",
        &format!("{LOG}1,5,train\n3,1,test\n"),
    )]))
    .unwrap();
    assert_eq!((data.num_users(), data.num_items()), (3, 5));
    assert_eq!(data.items.get("5"), Some(4));
    assert_eq!(data.items.get("0"), None);
    // Sparse integers keep their numeric order.
    let data = open(&folder(&[(
        "interactions.csv",
        &format!("{LOG}1,900000000,train\n3,70,test\n"),
    )]))
    .unwrap();
    assert_eq!(data.items.keys().collect::<Vec<_>>(), ["70", "900000000"]);
    // Strings are sorted; a leading zero makes a string.
    let data = open(&folder(&[(
        "interactions.csv",
        &format!("{LOG}u,b,train\nu,01,test\n"),
    )]))
    .unwrap();
    assert_eq!(data.items.keys().collect::<Vec<_>>(), ["01", "b"]);
}

#[test]
fn ids_against_feature_rows() {
    let three = npy("<f4", "(3, 1)", &f32s(&[1.0, 2.0, 3.0]));
    for (log, base) in [("0,0,train\n0,1,test\n", 0), ("0,1,train\n0,3,test\n", 1)] {
        let dir = folder(&[("interactions.csv", &format!("{LOG}{log}"))]);
        put(dir.path(), "features/image_feat.npy", &three);
        let data = open(&dir).unwrap();
        assert_eq!(data.num_items(), 3);
        assert_eq!(data.items.key(0), base.to_string());
        assert_eq!(data.features[0].name, "image");
    }
    let dir = folder(&[("interactions.csv", &format!("{LOG}0,0,train\n0,3,test\n"))]);
    put(dir.path(), "features/image.npy", &three);
    refused_in(&dir, "interactions.csv", 3, "does not fit 3 feature rows");
    let dir = folder(&[("interactions.csv", &format!("{LOG}0,a,train\n0,b,test\n"))]);
    put(dir.path(), "features/image.npy", &three);
    refused_in(&dir, "interactions.csv", 2, "not integers");
}

#[test]
fn feature_rows_follow_ids_txt() {
    let dir = folder(&[
        ("interactions.csv", &format!("{LOG}u,a,train\nu,b,test\n")),
        ("items.csv", "item_id,title\na,A\nb,B\nc,C\n"),
        ("features/ids.txt", "c\na\n"),
    ]);
    put(
        dir.path(),
        "features/image.npy",
        &npy("<f4", "(2, 1)", &f32s(&[3.0, 1.0])),
    );
    let data = open(&dir).unwrap();
    let image = data.modality("image").unwrap();
    assert_eq!(image.values.column(0).to_vec(), [1.0, 0.0, 3.0]);
    assert_eq!(image.present, [true, false, true]);
}

#[test]
fn tables_attributes_and_lists() {
    let dir = folder(&[
        (
            "interactions.csv",
            "user_id,item_id,behavior,rating,timestamp,split,device\n\
             u,b,view,4.5,20,train,ios\nu,a,buy,1,10,train,web\nu,a,view,1,-1,test,web\n",
        ),
        (
            "items.csv",
            "item_id,title,tags\nb,\"B, \"\"b\"\"\",x|y\na,A,\n",
        ),
        ("users.csv", "user_id,age\nu,31\nsilent,9\n"),
        ("item_attributes.csv", "item_id,brand\na,p\na,q\n"),
    ]);
    let data = open(&dir).unwrap();
    assert_eq!(data.behaviors, ["any", "buy", "view"]);
    assert_eq!(data.items.keys().collect::<Vec<_>>(), ["b", "a"]);
    assert_eq!(data.titles.as_ref().unwrap()[0], "B, \"b\"");
    assert_eq!(data.attributes[0].values, [vec!["x", "y"], vec![]]);
    assert_eq!(data.attributes[1].values, [vec![], vec!["p", "q"]]);
    assert_eq!(data.users.len(), 2);
    assert_eq!(data.ignored_columns, ["device"]);
    // Ordered by time; the unknown time is last and takes the latest known one.
    let rows = data.user_rows(0);
    assert_eq!(rows.iter().map(|r| r.item).collect::<Vec<_>>(), [1, 0, 1]);
    assert_eq!(
        rows.iter().map(|r| r.time).collect::<Vec<_>>(),
        [10, 20, 20]
    );
    assert_eq!(rows[1].value, 4.5);
    // Two rows allow one to be held out.
    assert!(data.valid_from_train);
    assert_eq!(
        data.history(0, Split::Test),
        [
            HistoryEvent {
                item: 1,
                behavior: 1
            },
            HistoryEvent {
                item: 0,
                behavior: 2
            }
        ]
    );
    assert_eq!(data.history(0, Split::Valid).len(), 1);
    assert_eq!(data.counts(FitOn::TrainValid), [1, 1]);
}

#[test]
fn a_target_behaviour_narrows_training_and_targets_but_not_histories() {
    let dir = folder(&[(
        "interactions.csv",
        "user_id,item_id,behavior,timestamp,split\n\
         0,0,view,1,train\n0,1,buy,2,train\n0,2,view,3,valid\n0,3,buy,4,valid\n0,4,buy,5,test\n0,5,view,6,test\n",
    )]);
    let options = LoadOptions {
        target_behavior: Some("buy".to_owned()),
        ..LoadOptions::default()
    };
    let data = Dataset::open(dir.path(), &options).unwrap();
    assert_eq!(data.train_rows().row(0), [1]);
    assert_eq!(data.popularity(), [0, 1, 0, 0, 0, 0]);
    let query = &queries(&data, &EvalProtocol::default()).unwrap()[0];
    assert_eq!(query.targets, [4]);
    assert_eq!(query.history.len(), 4);
    assert_eq!(query.mask, [1, 3]);
    let all = EvalProtocol {
        mask: MaskRule::History,
        ..EvalProtocol::default()
    };
    assert_eq!(queries(&data, &all).unwrap()[0].mask, [0, 1, 2, 3]);
    let wrong = LoadOptions {
        target_behavior: Some("rent".to_owned()),
        ..LoadOptions::default()
    };
    assert!(matches!(
        Dataset::open(dir.path(), &wrong),
        Err(Error::Config { .. })
    ));
}

#[test]
fn published_queries_are_taken_as_they_are() {
    let dir = folder(&[
        (
            "interactions.csv",
            &format!("{LOG}0,0,train\n0,1,valid\n0,2,test\n"),
        ),
        (
            "queries.csv",
            "split,user_id,history,target\ntest,0,1 0 1,2 0\nvalid,0,,1\n",
        ),
    ]);
    let data = open(&dir).unwrap();
    let query = &queries(&data, &EvalProtocol::default()).unwrap()[0];
    assert_eq!(
        query.history.iter().map(|e| e.item).collect::<Vec<_>>(),
        [1, 0, 1]
    );
    assert_eq!(query.targets, [0, 2]);
    assert!(query.mask.is_empty());
    assert!(
        queries(&data, &EvalProtocol::valid()).unwrap()[0]
            .history
            .is_empty()
    );
}

#[test]
fn gzip_is_read_and_damage_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut text = String::from(LOG);
    for u in 0..2000 {
        text.push_str(&format!("{u},{},train\n{u},{},test\n", u % 7, u % 11));
    }
    let packed = gzip(text.as_bytes());
    put(dir.path(), "interactions.csv.gz", &packed);
    assert_eq!(open(&dir).unwrap().interactions.len(), 4000);
    put(
        dir.path(),
        "interactions.csv.gz",
        &packed[..packed.len() / 2],
    );
    match open(&dir).unwrap_err() {
        Error::Data { reason, .. } => assert!(reason.contains("damaged"), "{reason}"),
        other => panic!("{other}"),
    }
    put(dir.path(), "interactions.csv.gz", text.as_bytes());
    assert!(matches!(open(&dir), Err(Error::Data { .. })));
}

#[test]
fn bad_logs() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(
        Dataset::open(dir.path().join("nowhere"), &LoadOptions::default()),
        Err(Error::Io { .. })
    ));
    let name = dir.path().file_name().unwrap().to_str().unwrap().to_owned();
    refused_in(&dir, &name, 0, "neither interactions.csv");
    let log = "interactions.csv";
    refused(&[(log, "")], log, 1, "empty");
    refused(&[(log, "user_id,item_id\n")], log, 0, "no rows");
    refused(
        &[(log, "user,item_id\n0,1\n")],
        log,
        1,
        "\"user_id\" is missing",
    );
    refused(
        &[(log, "user_id,item_id,item_id\n0,1,2\n")],
        log,
        1,
        "twice",
    );
    refused(
        &[(log, "user_id,item_id\n0,1\n0\n")],
        log,
        3,
        "1 fields where the header has 2",
    );
    refused(
        &[(log, "user_id,item_id\n0,1\n,4\n")],
        log,
        3,
        "user_id is empty",
    );
    refused(
        &[(log, &format!("{LOG}0,1,dev\n"))],
        log,
        2,
        "none of train, valid, test",
    );
    refused(
        &[(log, "user_id,item_id,timestamp\n0,1,soon\n")],
        log,
        2,
        "not a number",
    );
    refused(
        &[(log, "user_id,item_id,value\n0,1,NaN\n")],
        log,
        2,
        "not finite",
    );
    refused(
        &[(log, "user_id,item_id,value\n0,1,1e99\n")],
        log,
        2,
        "not finite",
    );
    refused(
        &[(log, &format!("{LOG}0,1,test\n"))],
        log,
        0,
        "no row has split \"train\"",
    );
    let both = [
        (log, "user_id,item_id\n0,1\n"),
        ("interactions.csv.gz", "x"),
    ];
    refused(&both, "interactions.csv.gz", 0, "remove one");
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), log, b"user_id,item_id\n0,1\n0,\xff\xfe\n");
    refused_in(&dir, log, 3, "not UTF-8");
}

#[test]
fn bad_tables() {
    let log = (
        "interactions.csv",
        "user_id,item_id,split\nu,a,train\nu,b,test\n",
    );
    refused(
        &[log, ("items.csv", "item_id\na\nb\na\n")],
        "items.csv",
        4,
        "already occurred in line 2",
    );
    refused(
        &[log, ("items.csv", "item_id\na\n")],
        "interactions.csv",
        3,
        "has no line in items.csv",
    );
    refused(
        &[log, ("items.csv", "id\na\n")],
        "items.csv",
        1,
        "\"item_id\" is missing",
    );
    refused(
        &[log, ("features/ids.txt", "a\n\nb\n")],
        "ids.txt",
        2,
        "empty",
    );
    refused(
        &[log, ("features/ids.txt", "a\nb\na\n")],
        "ids.txt",
        0,
        "twice",
    );
    refused(
        &[
            log,
            ("queries.csv", "split,user_id,history,target\ntest,u,a,\n"),
        ],
        "queries.csv",
        2,
        "target is empty",
    );
    refused(
        &[log, ("item_attributes.csv", "item_id,x,y\na,1,2\n")],
        "item_attributes.csv",
        1,
        "3 columns",
    );
}

#[test]
fn empty_split_and_training_queries_are_refused() {
    let data = open(&folder(&[(
        "interactions.csv",
        &format!("{LOG}0,1,train\n0,2,train\n0,3,train\n"),
    )]))
    .unwrap();
    match queries(&data, &EvalProtocol::default()).unwrap_err() {
        Error::Config { reason } => assert!(reason.contains("no test rows"), "{reason}"),
        other => panic!("{other}"),
    }
    let train = EvalProtocol {
        split: Split::Train,
        ..EvalProtocol::default()
    };
    assert!(matches!(queries(&data, &train), Err(Error::Config { .. })));
}

#[test]
fn features_in_every_format() {
    let log = [(
        "interactions.csv",
        "user_id,item_id,split\n0,0,train\n0,1,test\n",
    )];
    let half = |v: f32| half::f16::from_f32(v).to_le_bytes();
    // f16; the second row is all NaN, the third all zero.
    let dir = folder(&log);
    let mut payload = Vec::new();
    for v in [1.5, -2.0, f32::NAN, f32::NAN, 0.0, 0.0] {
        payload.extend(half(v));
    }
    put(
        dir.path(),
        "features/text_minilm.npy",
        &npy("<f2", "(3, 2)", &payload),
    );
    // Fortran order, big-endian f32, columns [1, 2, 3] and [4, 5, 6].
    let mut fortran = npy("<f4", "(3, 2)", b"");
    let text = String::from_utf8_lossy(&fortran[10..])
        .replace("<f4", ">f4")
        .replace("False", "True ");
    fortran.truncate(10);
    fortran.extend(text.as_bytes());
    for v in [1f32, 2.0, 3.0, 4.0, 5.0, 6.0] {
        fortran.extend(v.to_be_bytes());
    }
    put(dir.path(), "features/audio_feat.npy", &fortran);
    // safetensors with a mask.
    let bytes = f32s(&[1.0, 2.0, 3.0]);
    let tensors = [
        (
            "x",
            TensorView::new(Dtype::F32, vec![3, 1], &bytes).unwrap(),
        ),
        (
            "present",
            TensorView::new(Dtype::U8, vec![3], &[1, 0, 1]).unwrap(),
        ),
    ];
    put(
        dir.path(),
        "features/image.safetensors",
        &safetensors::serialize(tensors, None).unwrap(),
    );

    let data = open(&dir).unwrap();
    let names: Vec<&str> = data.features.iter().map(|f| f.name.as_str()).collect();
    assert_eq!(names, ["audio", "image", "text_minilm"]);
    let [audio, image, text] = &data.features[..] else {
        panic!()
    };
    assert_eq!(audio.values.row(1).to_vec(), [2.0, 5.0]);
    assert_eq!(image.present, [true, false, true]);
    assert_eq!(image.values[[1, 0]], 0.0);
    assert_eq!(text.kind, "text");
    assert_eq!(text.present, [true, false, false]);
    assert_eq!(text.values.row(0).to_vec(), [1.5, -2.0]);
    // Two present rows 1 and 3: mean 2, deviation 1.
    let s = image.standardize();
    assert_eq!((s.mean[0], s.inv_std[0]), (2.0, 1.0));
    // A constant column is switched off.
    assert_eq!(text.standardize().inv_std, [0.0, 0.0]);

    let report = inspect(dir.path()).unwrap();
    let text = &report.features[2];
    assert_eq!(
        (text.dtype.as_str(), text.missing, text.dim),
        ("float16", 2, 2)
    );

    let choose = |names: &[&str]| LoadOptions {
        modalities: Some(names.iter().map(|&n| n.to_owned()).collect()),
        ..LoadOptions::default()
    };
    let two = Dataset::open(dir.path(), &choose(&["text_minilm", "audio"])).unwrap();
    assert_eq!(two.features[0].name, "text_minilm");
    assert!(
        Dataset::open(dir.path(), &choose(&[]))
            .unwrap()
            .features
            .is_empty()
    );
    for wrong in [&["video"][..], &["audio", "audio"]] {
        assert!(matches!(
            Dataset::open(dir.path(), &choose(wrong)),
            Err(Error::Config { .. })
        ));
    }
}

#[test]
fn token_features_keep_their_tokens_and_show_their_mean() {
    let dir = folder(&[(
        "interactions.csv",
        "user_id,item_id\na,1\na,2\na,3\nb,1\nb,2\n",
    )]);
    // Three items of two tokens of one column; the last item has none, the second lacks one.
    let bytes = f32s(&[1.0, 3.0, 5.0, 9.0, 7.0, 7.0]);
    let tensors = |tokens| {
        [
            (
                "x",
                TensorView::new(Dtype::F32, vec![3, 2, 1], &bytes).unwrap(),
            ),
            (
                "present",
                TensorView::new(Dtype::U8, vec![3, 2], tokens).unwrap(),
            ),
        ]
    };
    put(
        dir.path(),
        "features/text.safetensors",
        &safetensors::serialize(tensors(&[1, 1, 1, 0, 0, 0]), None).unwrap(),
    );
    let data = open(&dir).unwrap();
    let f = &data.features[0];
    assert_eq!(f.present, [true, true, false]);
    assert_eq!(f.values.column(0).to_vec(), [2.0, 5.0, 0.0]);
    let tokens = f.tokens.as_ref().unwrap();
    assert_eq!((tokens.per_item, tokens.dim), (2, 1));
    assert_eq!(tokens.present, [true, true, true, false, false, false]);
    let values: Vec<f32> = tokens.values.iter().map(|x| x.to_f32()).collect();
    assert_eq!(values, [1.0, 3.0, 5.0, 0.0, 0.0, 0.0]);
    assert_eq!(tokens.standardize().mean, [3.0]);
    // Rows named by ids.txt are put into the order of items.csv.
    put(dir.path(), "items.csv", b"item_id\n3\n2\n1\n");
    put(dir.path(), "features/ids.txt", b"1\n2\n3\n");
    let data = open(&dir).unwrap();
    let f = &data.features[0];
    assert_eq!(f.values.column(0).to_vec(), [0.0, 5.0, 2.0]);
    let tokens = f.tokens.as_ref().unwrap();
    assert_eq!(tokens.present, [false, false, true, false, true, true]);

    let bytes = f32s(&[0.0; 4]);
    let flat = [(
        "x",
        TensorView::new(Dtype::F32, vec![1, 1, 1, 4], &bytes).unwrap(),
    )];
    refused_feature(
        "a.safetensors",
        &safetensors::serialize(flat, None).unwrap(),
        "[items, tokens, columns]",
    );
}

#[test]
fn bad_features() {
    let nan = f32::NAN;
    refused_feature("a.npy", b"", "not an .npy");
    refused_feature(
        "a.npy",
        b"\x93NUMPY\x09\x00\x00\x00\x00\x00\x00\x00",
        "version 9",
    );
    refused_feature(
        "a.npy",
        b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}",
        "longer than the file",
    );
    refused_feature(
        "a.npy",
        &npy("<f8", "(2, 1)", &[0; 16]),
        "float16 or float32",
    );
    refused_feature("a.npy", &npy("<f4", "(4,)", &[0; 16]), "1 dimensions");
    refused_feature("a.npy", &npy("<f4", "(2, 2)", &[0; 12]), "does not fill");
    refused_feature(
        "a.npy",
        &npy("<f4", "(99999999999999999, 0)", &[]),
        "no columns",
    );
    refused_feature(
        "a.npy",
        &npy(
            "<f4",
            "(18446744073709551615, 18446744073709551615)",
            &[0; 4],
        ),
        "does not fill",
    );
    refused_feature(
        "a.npy",
        &npy("<f4", "(2, 2)", &f32s(&[1.0, 2.0, nan, 1.0])),
        "row 1 holds 1 NaN beside numbers",
    );
    refused_feature(
        "a.npy",
        &npy("<f4", "(2, 2)", &f32s(&[1.0, f32::INFINITY, 1.0, 1.0])),
        "row 0, column 1 is infinite",
    );
    refused_feature(
        "a.safetensors",
        b"\xff\xff\xff\xff\xff\xff\xff\x7f{}",
        "does not fit",
    );
    let data = [0u8; 16];
    let one = |name: &str, dtype, shape: Vec<usize>, bytes: &[u8]| {
        let view = TensorView::new(dtype, shape, bytes).unwrap();
        safetensors::serialize([(name.to_owned(), view)], None).unwrap()
    };
    refused_feature(
        "a.safetensors",
        &one("x", Dtype::F64, vec![2, 1], &data),
        "F16, BF16 or F32",
    );
    refused_feature(
        "a.safetensors",
        &one("x", Dtype::F32, vec![4], &data),
        "[items, columns]",
    );
    refused_feature(
        "a.safetensors",
        &one("present", Dtype::F32, vec![4], &data),
        "no feature tensor",
    );
    let mut cut = one("x", Dtype::F32, vec![2, 2], &data);
    cut.pop();
    refused_feature("a.safetensors", &cut, "damaged");

    // Two modalities that disagree, one modality twice, and a matrix that does not fit items.csv.
    let dir = folder(&[("interactions.csv", &format!("{LOG}0,0,train\n0,1,test\n"))]);
    put(dir.path(), "features/a.npy", &npy("<f4", "(2, 1)", &[1; 8]));
    put(
        dir.path(),
        "features/b.npy",
        &npy("<f4", "(3, 1)", &[1; 12]),
    );
    assert!(
        matches!(open(&dir), Err(Error::Feature { reason, .. }) if reason.contains("row per item"))
    );
    fs::remove_file(dir.path().join("features/b.npy")).unwrap();
    put(
        dir.path(),
        "features/a_feat.npy",
        &npy("<f4", "(2, 1)", &[1; 8]),
    );
    assert!(
        matches!(open(&dir), Err(Error::Feature { reason, .. }) if reason.contains("same modality"))
    );
    fs::remove_file(dir.path().join("features/a_feat.npy")).unwrap();
    put(dir.path(), "items.csv", b"item_id\n0\n1\n2\n");
    assert!(
        matches!(open(&dir), Err(Error::Feature { reason, .. }) if reason.contains("2 rows for 3 items"))
    );
}

#[test]
fn recbole_is_imported() {
    let from = folder(&[
        (
            "x.inter",
            "user_id:token\titem_id:token\trating:float\ttimestamp:float\n\
             u\ta\t5\t3.0\nu\tb\t4\t1.0\nu\tc\t4\t2.0\n",
        ),
        (
            "x.item",
            "item_id:token\tmovie_title:token_seq\tclass:token_seq\na\tThe \"A\"\tx y\nb\tB\tz\n",
        ),
        ("x.user", "user_id:token\tage:token\nu\t9\n"),
    ]);
    let to = tempfile::tempdir().unwrap();
    let out = to.path().join("set");
    import(Format::RecBole, from.path(), &out).unwrap();
    let data = Dataset::open(&out, &LoadOptions::default()).unwrap();
    assert!(data.ordered);
    assert_eq!(data.items.keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(data.titles.as_ref().unwrap(), &["The \"A\"", "B", ""]);
    assert_eq!(data.attributes[0].values[0], ["x", "y"]);
    let rows: Vec<(u32, Split)> = data
        .user_rows(0)
        .iter()
        .map(|r| (r.item, r.split))
        .collect();
    assert_eq!(
        rows,
        [(1, Split::Train), (2, Split::Valid), (0, Split::Test)]
    );
    // Never over something that exists.
    assert!(matches!(
        import(Format::RecBole, from.path(), &out),
        Err(Error::Io { .. })
    ));
    assert_eq!(fs::read_dir(to.path()).unwrap().count(), 1);
}

#[test]
fn mmrec_is_imported_or_leaves_nothing() {
    let from = folder(&[(
        "x.inter",
        "userID\titemID\trating\ttimestamp\tx_label\n0\t0\t1.0\t1\t0\n0\t1\t1.0\t2\t1\n0\t2\t1.0\t3\t2\n",
    )]);
    put(
        from.path(),
        "image_feat.npy",
        &npy("<f4", "(3, 1)", &f32s(&[1.0, 2.0, 3.0])),
    );
    let to = tempfile::tempdir().unwrap();
    let out = to.path().join("set");
    import(Format::MmRec, from.path(), &out).unwrap();
    let data = Dataset::open(&out, &LoadOptions::default()).unwrap();
    assert_eq!(data.features[0].name, "image");
    assert_eq!(data.user_rows(0)[2].split, Split::Test);

    put(
        from.path(),
        "image_feat.npy",
        &npy("<f4", "(2, 1)", &f32s(&[1.0, 2.0])),
    );
    let other = to.path().join("other");
    assert!(import(Format::MmRec, from.path(), &other).is_err());
    assert!(!other.exists());
    assert_eq!(fs::read_dir(to.path()).unwrap().count(), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever the rows, every row lands in exactly one split, held-out rows are the last ones where
    /// there is an order, and the split is a function of the seed.
    #[test]
    fn splits_are_disjoint_and_repeatable(
        pairs in prop::collection::btree_set((0u8..6, 0u8..30), 4..80),
        ordered: bool,
        seed in 0u64..4,
    ) {
        let mut text = String::from(if ordered { "user_id,item_id,position\n" } else { "user_id,item_id\n" });
        for (at, (u, i)) in pairs.iter().enumerate() {
            text.push_str(&if ordered { format!("u{u},i{i},{at}\n") } else { format!("u{u},i{i}\n") });
        }
        let dir = folder(&[("interactions.csv", &text)]);
        let options = LoadOptions { seed, ..LoadOptions::default() };
        let data = Dataset::open(dir.path(), &options).unwrap();
        prop_assert_eq!(&data, &Dataset::open(dir.path(), &options).unwrap());
        let parts = [Split::Train, Split::Valid, Split::Test].map(|s| data.rows(&[s], None));
        let total: usize = parts.iter().map(|p| p.nnz()).sum();
        prop_assert_eq!(total, pairs.len());
        for user in 0..data.num_users() as u32 {
            for &item in parts[0].row(user) {
                prop_assert!(!parts[1].contains(user, item) && !parts[2].contains(user, item));
            }
            for &item in parts[1].row(user) {
                prop_assert!(!parts[2].contains(user, item));
            }
            let rows = data.user_rows(user);
            prop_assert_eq!(rows.len() >= 3, !parts[2].row(user).is_empty());
            if ordered {
                prop_assert!(rows.is_sorted_by_key(|r| r.split));
            }
        }
    }

    /// No file, however mangled, makes the reader panic.
    #[test]
    fn mangled_files_never_panic(
        at in 0usize..200, byte: u8, cut in 0usize..200, which in 0usize..3,
    ) {
        let dir = folder(&[
            ("interactions.csv", "user_id,item_id,behavior,timestamp,split\n0,0,a,1,train\n0,1,b,2,test\n"),
        ]);
        let values = f32s(&[1.0, 2.0]);
        let view = TensorView::new(Dtype::F32, vec![2, 1], &values).unwrap();
        let files = [
            ("interactions.csv", fs::read(dir.path().join("interactions.csv")).unwrap()),
            ("features/a.npy", npy("<f4", "(2, 1)", &values)),
            ("features/b.safetensors", safetensors::serialize([("x", view)], None).unwrap()),
        ];
        for (name, bytes) in &files {
            put(dir.path(), name, bytes);
        }
        open(&dir).unwrap();
        let (name, bytes) = &files[which];
        let mut bad = bytes.clone();
        let len = bad.len();
        bad[at % len] = byte;
        put(dir.path(), name, &bad);
        let _ = open(&dir);
        put(dir.path(), name, &bytes[..cut.min(len)]);
        let _ = open(&dir);
    }
}
