//! The command as a program: JSON on stdout, reasons on stderr, exit codes 0, 1 and 2.

use std::collections::HashMap;
use std::error::Error;
use std::path::Path;
use std::process::{Command, Output};

use candle_core::{Device, Tensor};
use serde_json::Value;

type Outcome<T = ()> = Result<T, Box<dyn Error>>;

fn tercet(folder: &Path, args: &[&str]) -> Outcome<Output> {
    Ok(Command::new(env!("CARGO_BIN_EXE_tercet"))
        .current_dir(folder)
        .args(args)
        .output()?)
}

/// Runs a verb that must succeed, and reads its one JSON document.
fn json(folder: &Path, args: &[&str]) -> Outcome<Value> {
    let out = tercet(folder, args)?;
    let errors = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{args:?}: {errors}");
    serde_json::from_slice(&out.stdout).map_err(|e| format!("{args:?}: {e}").into())
}

/// Runs a verb that must fail with `code`, and gives what it says.
fn fails(folder: &Path, code: i32, args: &[&str]) -> Outcome<String> {
    let out = tercet(folder, args)?;
    let errors = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(code), "{args:?}: {errors}");
    assert!(out.stdout.is_empty(), "{args:?} printed to stdout");
    assert!(!errors.contains("panicked"), "{args:?}: {errors}");
    Ok(errors)
}

const SYNTH: [&str; 9] = [
    "data", "synth", "--out", "shop", "--users", "80", "--items", "120", "--json",
];

#[test]
fn data_synth_and_inspect() -> Outcome {
    let dir = tempfile::tempdir()?;
    let made = json(dir.path(), &SYNTH)?;
    assert_eq!((&made["users"], &made["items"]), (&80.into(), &120.into()));
    let seen = json(dir.path(), &["data", "inspect", "--data", "shop", "--json"])?;
    assert_eq!(made, seen);
    let mut quiet = SYNTH;
    (quiet[3], quiet[8]) = ("quiet", "--no-counts");
    let out = tercet(dir.path(), &quiet)?;
    assert!(out.status.success() && out.stdout.is_empty(), "{out:?}");
    let seen = json(
        dir.path(),
        &["data", "inspect", "--data", "quiet", "--json"],
    )?;
    assert_eq!(made["splits"], seen["splits"]);
    // A second one in the same place would mix two shops.
    fails(dir.path(), 1, &SYNTH)?;
    let other = [
        "data",
        "synth",
        "--kind",
        "perspectives",
        "--out",
        "two",
        "--json",
    ];
    let made = json(dir.path(), &other)?;
    assert_eq!((&made["users"], &made["items"]), (&800.into(), &500.into()));
    Ok(())
}

/// A picture of one red pixel.
const PNG: [u8; 69] = [
    137, 80, 78, 71, 13, 10, 26, 10, 0, 0, 0, 13, 73, 72, 68, 82, 0, 0, 0, 1, 0, 0, 0, 1, 8, 2, 0,
    0, 0, 144, 119, 83, 222, 0, 0, 0, 12, 73, 68, 65, 84, 120, 156, 99, 248, 197, 101, 3, 0, 3, 66,
    1, 65, 184, 62, 66, 223, 0, 0, 0, 0, 73, 69, 78, 68, 174, 66, 96, 130,
];

/// Writes a vision transformer of one block and width 4 that reads 8 × 8 pixels.
fn write_vit(folder: &Path) -> Outcome {
    std::fs::create_dir(folder)?;
    let mut shapes: Vec<(String, Vec<usize>)> = vec![
        ("embeddings.cls_token".into(), vec![1, 1, 4]),
        ("embeddings.position_embeddings".into(), vec![1, 5, 4]),
    ];
    let mut layer = |name: &str, shape: &[usize]| {
        shapes.push((format!("{name}.weight"), shape.to_vec()));
        shapes.push((format!("{name}.bias"), vec![shape[0]]));
    };
    layer("embeddings.patch_embeddings.projection", &[4, 3, 4, 4]);
    layer("layernorm", &[4]);
    for (part, shape) in [
        ("attention.attention.query", &[4, 4][..]),
        ("attention.attention.key", &[4, 4]),
        ("attention.attention.value", &[4, 4]),
        ("attention.output.dense", &[4, 4]),
        ("intermediate.dense", &[8, 4]),
        ("output.dense", &[4, 8]),
        ("layernorm_before", &[4]),
        ("layernorm_after", &[4]),
    ] {
        layer(&format!("encoder.layer.0.{part}"), shape);
    }
    let tensors = shapes.into_iter().map(|(name, shape)| {
        let values = (0..shape.iter().product()).map(|i| ((i % 7) as f32 - 3.0) * 0.1);
        let tensor = Tensor::from_iter(values, &Device::Cpu)?.reshape(shape)?;
        Ok((name, tensor))
    });
    let tensors = tensors.collect::<candle_core::Result<HashMap<String, Tensor>>>()?;
    candle_core::safetensors::save(&tensors, folder.join("model.safetensors"))?;
    let config = r#"{"model_type": "vit", "hidden_size": 4, "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}"#;
    Ok(std::fs::write(folder.join("config.json"), config)?)
}

#[test]
fn pictures_become_a_modality() -> Outcome {
    let dir = tempfile::tempdir()?;
    write_vit(&dir.path().join("vit"))?;
    let shop = dir.path().join("shop");
    std::fs::create_dir_all(shop.join("images"))?;
    std::fs::write(
        shop.join("items.csv"),
        "item_id,title\na,Hat\nb,Sock\nc,Shoe\n",
    )?;
    let events = "user_id,item_id\nu,a\nu,b\nv,b\nv,c\n";
    std::fs::write(shop.join("interactions.csv"), events)?;
    std::fs::write(shop.join("images/a.png"), PNG)?;
    std::fs::write(shop.join("images/c.png"), &PNG[..40])?;
    let embed = "data embed --data shop --modality image --model vit --out look --json";
    let embed: Vec<&str> = embed.split(' ').collect();
    let made = json(dir.path(), &embed)?;
    assert_eq!((&made["items"], &made["dim"]), (&3.into(), &4.into()));
    let counts = [&made["embedded"], &made["absent"], &made["unreadable"]];
    assert_eq!(counts, [1, 1, 1], "{made}");
    assert_eq!(made["first_unreadable"][0]["file"], "images/c.png");
    let seen = json(dir.path(), &["data", "inspect", "--data", "shop", "--json"])?;
    let look = &seen["features"][0];
    assert_eq!(
        (&look["name"], &look["dim"]),
        (&"look".into(), &4.into()),
        "{seen}"
    );
    Ok(())
}

#[test]
fn wrong_use_is_told() -> Outcome {
    let dir = tempfile::tempdir()?;
    fails(dir.path(), 2, &["fly"])?;
    fails(dir.path(), 2, &["train", "--model", "ease"])?;
    fails(
        dir.path(),
        2,
        &[
            "export",
            "--student",
            "a",
            "--data",
            "b",
            "--out",
            "c",
            "--table",
            "int3",
        ],
    )?;
    fails(dir.path(), 2, &["recommend", "--bundle", "b", "-k", "0"])?;
    let embed = ["data", "embed", "--data", "d", "--model", "m", "--out", "o"];
    let text = fails(
        dir.path(),
        2,
        &[&embed[..], &["--modality", "image", "--prompt", "{title}"]].concat(),
    )?;
    assert!(text.contains("--prompt"), "{text}");
    for (modality, file) in [("image", "config.json"), ("text", "config.json")] {
        let text = fails(
            dir.path(),
            1,
            &[&embed[..], &["--modality", modality]].concat(),
        )?;
        assert!(text.contains(file), "{text}");
    }
    let text = fails(dir.path(), 2, &["evaluate", "--data", "d"])?;
    assert!(text.contains("--run"), "{text}");
    for wrong in [
        ["--mask", "all"],
        ["--history", "none"],
        ["--protocol", "sampled:x"],
    ] {
        let run = ["evaluate", "--run", "r", "--data", "d"];
        let text = fails(dir.path(), 2, &[&run[..], &wrong].concat())?;
        assert!(text.contains(wrong[0]), "{text}");
    }
    for verb in ["inspect", "verify", "bench"] {
        let text = fails(dir.path(), 1, &[verb, "nowhere.tercet"])?;
        assert!(text.contains("nowhere.tercet"), "{text}");
    }
    json(dir.path(), &SYNTH)?;
    let train = ["train", "--data", "shop", "--out", "run", "--model"];
    let with = |rest: &[&'static str]| [&train, rest].concat();
    let text = fails(dir.path(), 1, &with(&["warlock"]))?;
    assert!(
        text.contains("warlock") && text.contains("popularity"),
        "{text}"
    );
    let text = fails(dir.path(), 1, &with(&["bpr", "--set", "wings=2"]))?;
    assert!(text.contains("wings"), "{text}");
    let text = fails(dir.path(), 1, &with(&["bpr", "--set", "no-equals-sign"]))?;
    assert!(text.contains("no-equals-sign"), "{text}");
    assert!(!dir.path().join("run").exists());
    Ok(())
}

/// Every verb from data to recommendations.
#[test]
fn the_whole_path() -> Outcome {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    json(dir, &SYNTH)?;
    json(
        dir,
        &[
            "train", "--model", "ease", "--data", "shop", "--out", "ease", "--json",
        ],
    )?;
    let text = fails(
        dir,
        1,
        &[
            "export",
            "--student",
            "ease",
            "--data",
            "shop",
            "--out",
            "x.tercet",
        ],
    )?;
    assert!(text.contains("distil"), "{text}");
    let distill = [
        "distill",
        "--teacher",
        "ease",
        "--data",
        "shop",
        "--out",
        "student",
    ];
    json(dir, &[&distill[..], &["--epochs", "2", "--json"]].concat())?;

    let out = [
        "export",
        "--student",
        "student",
        "--data",
        "shop",
        "--out",
        "shop.tercet",
    ];
    let made = json(
        dir,
        &[&out[..], &["--bundle-id", "shop-eu", "--json"]].concat(),
    )?;
    assert_eq!(
        (&made["bundle_id"], &made["bundle_version"]),
        (&"shop-eu".into(), &1.into())
    );
    assert_eq!(
        (&made["items"], &made["table"]),
        (&120.into(), &"int8".into())
    );

    let evaluate = ["evaluate", "--data", "shop", "--split", "valid", "--json"];
    let bundle = json(dir, &[&evaluate[..], &["--bundle", "shop.tercet"]].concat())?;
    let run = json(dir, &[&evaluate[..], &["--run", "student"]].concat())?;
    assert_eq!(
        (&bundle["source"], &run["source"]),
        (&"bundle".into(), &"run".into())
    );
    for key in ["users", "items", "split", "model"] {
        assert_eq!(bundle[key], run[key], "{key}");
    }
    assert_eq!(bundle["metrics"], made["metrics"]);
    let few = [
        "--bundle",
        "shop.tercet",
        "--max-users",
        "7",
        "--lists",
        "l",
    ];
    let few = json(dir, &[&evaluate[..], &few].concat())?;
    assert_eq!(few["users"], 7);
    let lists = std::fs::read_to_string(dir.join("l"))?;
    let lists: Vec<Value> = (lists.lines().map(serde_json::from_str)).collect::<Result<_, _>>()?;
    let hit = |l: &&Value| {
        l["items"]
            .as_array()
            .is_some_and(|i| i.contains(&l["targets"][0]))
    };
    assert_eq!(lists.len(), 7);
    let hits = lists.iter().filter(hit).count() as f64 / 7.0;
    assert!((few["metrics"]["hit@20"].as_f64().unwrap_or(2.0) - hits).abs() < 1e-9);
    let replay = ["--bundle", "shop.tercet", "--replay", "--warm-up", "3"];
    let replay = json(dir, &[&evaluate[..], &replay].concat())?;
    assert_eq!(replay["restored"], true);
    assert!(
        replay["events"].as_u64() > Some(0) && replay["feedbacks_per_event"].as_f64() > Some(9.0)
    );
    assert_eq!(replay["positive"]["events"], replay["events"]);
    for side in ["static", "adapted"] {
        assert!(replay[side]["ndcg@10"].is_number(), "{side}");
    }
    fails(
        dir,
        2,
        &[&evaluate[..], &["--run", "student", "--replay"]].concat(),
    )?;
    fails(dir, 2, &["evaluate", "--data", "shop"])?;
    let unknown = ["--run", "student", "--set", "score_by=id"];
    fails(dir, 1, &[&evaluate[..], &unknown].concat())?;

    let seen = json(dir, &["inspect", "shop.tercet", "--json"])?;
    assert_eq!(seen["card"]["metrics"]["bundle"], made["metrics"]);
    let codes = seen["contents"]["items.safetensors"]["tensors"]
        .as_array()
        .and_then(|t| t.iter().find(|t| t["name"] == "codes"))
        .ok_or("no codes")?;
    assert_eq!(codes["bytes"], 120 * 64);

    let expected = &seen["probe"]["history"][0]["item"];
    let item = expected.as_str().ok_or("no probe")?.to_string();
    let history = format!("{item}:view,no-such-item");
    let recommend = [
        "recommend",
        "--bundle",
        "shop.tercet",
        "-k",
        "5",
        "--json",
        "--explain",
    ];
    let got = json(dir, &[&recommend[..], &["--history", &history]].concat())?;
    let items = got["items"].as_array().ok_or("no items")?;
    assert_eq!(items.len(), 5);
    assert!(got["micros"].is_u64() && items[0]["score"].is_number());
    let first = items[0]["id"].as_str().ok_or("no id")?;
    let got = json(
        dir,
        &[&recommend[..], &["--history", &history, "--exclude", first]].concat(),
    )?;
    let ids: Vec<&Value> = got["items"]
        .as_array()
        .ok_or("no items")?
        .iter()
        .map(|i| &i["id"])
        .collect();
    assert!(!ids.contains(&&Value::from(first)) && !ids.contains(&&Value::from(item.as_str())));
    let bogus = format!("{item}:teleport");
    let text = fails(
        dir,
        1,
        &["recommend", "--bundle", "shop.tercet", "--history", &bogus],
    )?;
    assert!(text.contains("teleport"), "{text}");

    let attribute = made["attributes"]
        .as_array()
        .and_then(|a| a.iter().filter_map(Value::as_str).find(|a| *a != "title"))
        .ok_or("no attribute")?;
    let cap = format!("{attribute}=2");
    let calibrate = format!("{attribute}=0.5");
    let every: Vec<&str> = [
        "--diversity 0.3 --diversity-method dpp --popularity -0.5 --explore 0.2 --seed 3",
        "--together-by least-misery --probes exact --history",
    ]
    .iter()
    .flat_map(|part| part.split(' '))
    .collect();
    let every = [
        &recommend[..],
        &every,
        &[
            &history,
            "--together",
            first,
            "--cap",
            &cap,
            "--calibrate",
            &calibrate,
        ],
    ]
    .concat();
    let got = json(dir, &every)?;
    assert_eq!(got["items"].as_array().map(Vec::len), Some(5));
    assert_eq!(json(dir, &every)?["items"], got["items"]);
    let shares = got["items"][0]["modalities"]
        .as_array()
        .ok_or("no shares")?;
    let sum: f64 = shares.iter().filter_map(|m| m["share"].as_f64()).sum();
    assert!((sum - 1.0).abs() < 0.01, "{shares:?}");
    std::fs::write(dir.join("stock.txt"), format!("{first}\n\nunknown\n"))?;
    let stock = [
        &recommend[..],
        &["--history", &history, "--available", "stock.txt"],
    ]
    .concat();
    let got = json(dir, &stock)?;
    assert_eq!(got["items"].as_array().map(Vec::len), Some(1));
    assert_eq!(got["items"][0]["id"], first);
    for wrong in [
        ["--cap", "category"],
        ["--freshness", "year,1,2"],
        ["--probes", "0"],
        ["--calibrate", "category=x"],
    ] {
        fails(dir, 2, &[&recommend[..], &wrong].concat())?;
    }

    // Every form of the table; the card tells what it costs.
    for (table, more, least) in [
        ("f32", &[][..], 0.999),
        ("int4", &[], 0.8),
        ("two-stage", &["--tail"], 0.99),
        ("int8", &["--tail", "--partitions", "8"], 0.99),
        ("two-stage", &["--partitions", "8", "--probes", "3"], 0.95),
    ] {
        let form = [&out[..], &["--table", table, "--json"], more].concat();
        let made = json(dir, &form)?;
        let recall = made["quality"]["recall"].as_f64().ok_or("no recall")?;
        assert!(recall >= least, "{table} {more:?}: {recall}");
        let seen = json(dir, &["inspect", "shop.tercet", "--json"])?;
        assert_eq!(seen["card"]["table"]["search"], made["quality"]);
        assert!(seen["card"]["table"]["metric_loss"]["recall@20"].is_number());
        assert_eq!(seen["table"]["probes"], made["quality"]["probes"]);
        if more.contains(&"3") {
            assert_eq!(seen["table"]["probes"], 3);
        }
        json(dir, &["verify", "shop.tercet", "--json"])?;
        json(dir, &[&recommend[..], &["--history", &history]].concat())?;
        json(dir, &["bench", "shop.tercet", "--runs", "3", "--json"])?;
    }
    fails(dir, 1, &[&out[..], &["--table", "f32", "--tail"]].concat())?;
    fails(dir, 2, &[&out[..], &["--probes", "3"]].concat())?;
    json(dir, &[&out[..], &["--json"]].concat())?;

    let got = json(
        dir,
        &[
            "similar",
            "--bundle",
            "shop.tercet",
            "--item",
            &item,
            "-k",
            "3",
            "--json",
        ],
    )?;
    assert_eq!(got["items"].as_array().map(Vec::len), Some(3));
    fails(
        dir,
        1,
        &[
            "similar",
            "--bundle",
            "shop.tercet",
            "--item",
            "no-such-item",
        ],
    )?;

    let got = json(dir, &["bench", "shop.tercet", "--runs", "3", "--json"])?;
    assert!(got["open"]["median_micros"].is_number());
    let got = json(dir, &["verify", "shop.tercet", "--json"])?;
    assert_eq!(got["files"], 5);
    updates(dir, &out[..5])?;
    let table = dir.join("shop.tercet/items.safetensors");
    let mut bytes = std::fs::read(&table)?;
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&table, bytes)?;
    let text = fails(dir, 1, &["verify", "shop.tercet"])?;
    assert!(text.contains("items.safetensors"), "{text}");
    Ok(())
}

/// Keys, signatures, deltas and a store. `export` lacks the bundle to write.
fn updates(dir: &Path, export: &[&str]) -> Outcome {
    let key = ["key", "new", "--out", "mine", "--json"];
    let keys = json(dir, &key)?;
    let public = keys["public_key"].as_str().ok_or("no key")?;
    // A key is never overwritten.
    fails(dir, 1, &key)?;
    json(dir, &["key", "new", "--out", "other", "--json"])?;
    fails(dir, 1, &["key", "new", "--out", "locked", "--encrypt"])?;

    let release = |version: &str, table: &str| {
        let out = format!("{version}.tercet");
        let to = ["--bundle-id", "shop-eu", "--bundle-version", version];
        let to = [
            &to[..],
            &["--table", table, "--out", &out, "--sign", "mine.key"],
        ]
        .concat();
        json(dir, &[export, &to, &["--json"]].concat())
    };
    release("1", "int8")?;
    release("2", "int8")?;
    json(dir, &["verify", "1.tercet", "--key", "mine.pub", "--json"])?;
    json(dir, &["verify", "1.tercet", "--key", public, "--json"])?;
    let text = fails(dir, 1, &["verify", "1.tercet", "--key", "other.pub"])?;
    assert!(text.contains("not trusted"), "{text}");
    let text = fails(dir, 1, &["verify", "shop.tercet", "--key", "mine.pub"])?;
    assert!(text.contains("signature"), "{text}");

    let made = json(
        dir,
        &["delta", "1.tercet", "2.tercet", "--out", "1-2", "--json"],
    )?;
    assert_eq!(made["changed"], 0);
    assert!(made["bytes"].as_u64() < made["bundle_bytes"].as_u64());
    fails(dir, 1, &["delta", "2.tercet", "1.tercet", "--out", "2-1"])?;

    let store = |verb: &str, more: &[&str]| {
        let of = ["store", verb, "phone", "--key", "mine.pub", "--json"];
        json(dir, &[&of[..], more].concat())
    };
    assert!(store("status", &[])?["current"].is_null());
    // The base is missing.
    let text = fails(
        dir,
        1,
        &["store", "install", "phone", "1-2", "--key", "mine.pub"],
    )?;
    assert!(text.contains("whole bundle"), "{text}");
    assert_eq!(store("install", &["1.tercet"])?["current"]["version"], 1);
    let got = store("install", &["1-2"])?;
    assert_eq!(got["current"]["version"], 2);
    let current = got["path"].as_str().ok_or("no path")?;
    let same = |name: &str| -> Outcome<bool> {
        let ours = std::fs::read(dir.join(current).join(name))?;
        Ok(ours == std::fs::read(dir.join("2.tercet").join(name))?)
    };
    assert!(same("items.safetensors")? && same("user_tower.onnx")?);
    assert_eq!(store("rollback", &[])?["current"]["version"], 1);
    let text = fails(
        dir,
        1,
        &["store", "install", "phone", "1-2", "--key", "other.pub"],
    )?;
    assert!(text.contains("not trusted"), "{text}");
    Ok(())
}
