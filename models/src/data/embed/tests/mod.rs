//! Features of texts; those of pictures are below.

mod pictures;

use std::fs;

use super::*;
use crate::data::{Dataset, LoadOptions};
use crate::encoder::TextEncoder;

struct Shop {
    dir: tempfile::TempDir,
    encoder: Encoder,
}

fn shop() -> Result<Shop> {
    let dir = tempfile::tempdir().expect("temporary folder");
    let model = dir.path().join("model");
    fs::create_dir(&model).expect("writable");
    crate::encoder::tests::write_bert(&model)?;
    let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).expect("writable");
    put(
        "items.csv",
        "item_id,title,colour,brand_id,price\n0,Red hat,red|blue,b1,3\n1,,,b2,4\n2,\"Шапка, 帽子\",,b1,5\n3,hats,blue,,\n4,blue,,,1\n",
    );
    put(
        "interactions.csv",
        "user_id,item_id\nu,0\nu,2\nu,4\nv,1\nv,3\nv,0\n",
    );
    let encoder = Encoder::Text(Box::new(TextEncoder::open(&model, &Device::Cpu)?));
    Ok(Shop { dir, encoder })
}

impl Shop {
    fn config(&self, name: &str, output: Output) -> EmbedConfig {
        EmbedConfig {
            data: self.dir.path().to_path_buf(),
            model: self.dir.path().join("model"),
            name: name.to_owned(),
            output,
            columns: None,
            prompt: None,
            batch: 2,
        }
    }

    fn run(&self, cfg: &EmbedConfig) -> Result<EmbedReport> {
        embed(cfg, &self.encoder, &AtomicBool::new(false), false)
    }
}

#[test]
fn data_sets_read_what_was_written() -> Result<()> {
    let shop = shop()?;
    let report = shop.run(&shop.config("text_toy", Output::Pooled))?;
    assert_eq!(report.columns, ["title", "colour"]);
    assert_eq!((report.items, report.absent, report.dim), (5, 1, 8));
    shop.run(&shop.config("text_words", Output::Tokens(4)))?;
    let data = Dataset::open(shop.dir.path(), &LoadOptions::default())?;
    let pooled = data.modality("text_toy").expect("written");
    assert_eq!(pooled.present, [true, false, true, true, true]);
    let norm: f32 = pooled.values.row(2).iter().map(|x| x * x).sum();
    assert!((norm - 1.0).abs() < 1e-5);
    let tokens = data.modality("text_words").and_then(|f| f.tokens.as_ref());
    let tokens = tokens.expect("by token");
    // "blue" is [CLS] blue [SEP].
    assert_eq!(tokens.present[4 * 4..], [true, true, true, false]);
    assert_eq!(tokens.present[4..8], [false; 4]);
    assert!(shop.run(&shop.config("text_toy", Output::Pooled)).is_err());
    Ok(())
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_bytes() -> Result<()> {
    let shop = shop()?;
    let cfg = shop.config("text_toy", Output::Tokens(4));
    let whole = fs::read(shop.run(&cfg)?.path).expect("written");
    let path = shop.dir.path().join("features/text_toy.safetensors");
    let partial = shop
        .dir
        .path()
        .join("features/text_toy.safetensors.partial");
    fs::remove_file(&path).expect("written");

    let stopped = embed(&cfg, &shop.encoder, &AtomicBool::new(true), false);
    assert!(matches!(stopped, Err(Error::Interrupted)) && partial.is_file());
    // Cut in the middle of item 3, as a crash would: the whole batch of items 0 and 1 is kept.
    let header = fs::metadata(&partial).expect("written").len() as usize;
    let item = 4 * 8 * 2;
    fs::write(&partial, &whole[..header + 3 * item + 5]).expect("writable");
    assert_eq!(shop.run(&cfg)?.resumed, 2);
    assert_eq!(fs::read(&path).expect("written"), whole);
    fs::remove_file(&path).expect("written");

    // Cut in the middle of `present`: all items are kept.
    fs::write(&partial, &whole[..whole.len() - 3]).expect("writable");
    assert_eq!(shop.run(&cfg)?.resumed, 5);
    assert_eq!(fs::read(&path).expect("written"), whole);
    fs::remove_file(&path).expect("written");

    // Another text: nothing is taken over.
    fs::write(&partial, &whole[..header + 4 * item]).expect("writable");
    let mut other = cfg.clone();
    other.columns = Some(vec!["title".to_owned()]);
    assert_eq!(shop.run(&other)?.resumed, 0);
    Ok(())
}

#[test]
fn names_and_columns_are_checked() -> Result<()> {
    let shop = shop()?;
    for name in ["", "../x", "text_feat", "a b"] {
        assert!(
            shop.run(&shop.config(name, Output::Pooled)).is_err(),
            "{name}"
        );
    }
    let mut cfg = shop.config("text", Output::Pooled);
    cfg.columns = Some(vec!["plot".to_owned()]);
    let error = shop.run(&cfg).map(|_| ()).unwrap_err().to_string();
    assert!(
        error.contains("plot") && error.contains("colour"),
        "{error}"
    );
    Ok(())
}

#[test]
fn prompts_take_the_place_of_columns() -> Result<()> {
    let shop = shop()?;
    let mut cfg = shop.config("text_prompt", Output::Pooled);
    cfg.prompt = Some("{title}. blue {colour:1}".to_owned());
    let report = shop.run(&cfg)?;
    assert_eq!(report.columns, ["title", "colour"]);
    assert_eq!((report.embedded, report.absent), (4, 1));
    // Item 4 has no colour and says its title alone.
    cfg.name = "text_title".to_owned();
    cfg.prompt = Some("{title}.".to_owned());
    shop.run(&cfg)?;
    let data = Dataset::open(shop.dir.path(), &LoadOptions::default())?;
    let row = |name: &str| {
        let modality = data.modality(name).expect("written");
        modality.values.row(4).to_owned()
    };
    let far = &row("text_prompt") - &row("text_title");
    assert!(far.iter().all(|x| x.abs() < 1e-5));
    cfg.prompt = Some("{size}".to_owned());
    assert!(shop.run(&cfg).is_err());
    Ok(())
}

#[test]
fn rows_follow_the_file_of_ids() -> Result<()> {
    let shop = shop()?;
    let by_line = shop.run(&shop.config("a", Output::Pooled))?.path;
    let by_line = fs::read(by_line).expect("written");
    fs::write(shop.dir.path().join("features/ids.txt"), "4\n3\n2\n1\n0\n").expect("writable");
    let by_id = fs::read(shop.run(&shop.config("b", Output::Pooled))?.path).expect("written");
    let start = by_id.len() - 5 - 5 * 32;
    assert_eq!(by_id.len(), by_line.len());
    let close = |a: &[u8], b: &[u8]| {
        a.chunks_exact(4).zip(b.chunks_exact(4)).all(|(a, b)| {
            let value = |x: &[u8]| f32::from_le_bytes([x[0], x[1], x[2], x[3]]);
            (value(a) - value(b)).abs() < 1e-5
        })
    };
    for item in 0..5 {
        let row = |r: usize| start + r * 32..start + (r + 1) * 32;
        assert!(close(&by_id[row(4 - item)], &by_line[row(item)]));
    }
    Ok(())
}
