//! Features of pictures: where files come from, what is wrong with them, interruption.

use std::fs;
use std::path::Path;

use super::*;
use crate::encoder::ImageEncoder;
use crate::encoder::tests::{png, write_vit};

/// A shop of seven items, of which two have a picture that can be read.
struct Shop {
    dir: tempfile::TempDir,
    encoder: Encoder,
}

const ITEMS: &str = "item_id,title,image\n\
    good,Hat,a.png\n\
    bare,Sock,\n\
    cut,Shoe,pictures/cut.png\n\
    none,Belt,pictures/none.jpg\n\
    huge,Coat,huge.png\n\
    page,Scarf,./page.html\n\
    grey,Glove,pictures/grey.png\n";

fn square(color: &[u8]) -> Vec<u8> {
    let row = color.repeat(8);
    png((8, 8), (8, 2), &[], &[row.as_slice(); 8])
}

fn shop() -> Result<Shop> {
    let dir = tempfile::tempdir().expect("temporary folder");
    let model = dir.path().join("model");
    for folder in [&model, &dir.path().join("pictures")] {
        fs::create_dir(folder).expect("writable");
    }
    write_vit(&model)?;
    let put = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).expect("writable");
    put("items.csv", ITEMS.as_bytes());
    put(
        "interactions.csv",
        b"user_id,item_id\nu,good\nu,cut\nu,grey\nv,huge\nv,page\nv,good\n",
    );
    put("a.png", &square(&[250, 10, 60]));
    put(
        "pictures/grey.png",
        &png((3, 2), (8, 0), &[], &[&[9, 80, 200], &[0, 0, 255]]),
    );
    let cut = square(&[1, 2, 3]);
    put("pictures/cut.png", &cut[..cut.len() / 2]);
    put("huge.png", &png((60_000, 60_000), (8, 2), &[], &[&[0; 9]]));
    put("page.html", b"<html>404</html>");
    let encoder = Encoder::Image(Box::new(ImageEncoder::open(&model, &Device::Cpu)?));
    Ok(Shop { dir, encoder })
}

impl Shop {
    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        fs::write(self.path().join(name), bytes).expect("writable");
    }

    fn config(&self, name: &str, output: Output) -> EmbedConfig {
        EmbedConfig {
            data: self.path().to_path_buf(),
            model: self.path().join("model"),
            name: name.to_owned(),
            output,
            columns: None,
            prompt: None,
            batch: 2,
        }
    }

    fn run(&self, name: &str, output: Output) -> Result<EmbedReport> {
        let cfg = self.config(name, output);
        embed(&cfg, &self.encoder, &AtomicBool::new(false), false)
    }

    fn refusal(&self) -> String {
        let refused = self.run("image_no", Output::Pooled);
        refused.map(|_| ()).unwrap_err().to_string()
    }
}

#[test]
fn what_cannot_be_read_is_absent_and_named() -> Result<()> {
    let shop = shop()?;
    let report = shop.run("image_toy", Output::Pooled)?;
    assert_eq!(report.columns, ["image"]);
    assert_eq!((report.items, report.embedded), (7, 2));
    assert_eq!((report.absent, report.unreadable), (1, 4));
    let named: Vec<&str> = report
        .first_unreadable
        .iter()
        .map(|u| u.item.as_str())
        .collect();
    assert_eq!(named, ["cut", "none", "huge", "page"]);
    for (told, (file, reason)) in report.first_unreadable.iter().zip([
        ("pictures/cut.png", "damaged"),
        ("pictures/none.jpg", "cannot be read"),
        ("huge.png", "60000 x 60000"),
        ("./page.html", "neither JPEG nor PNG nor WebP"),
    ]) {
        assert!(
            told.file == file && told.reason.starts_with(reason),
            "{told:?}"
        );
    }
    shop.run("image_patches", Output::Tokens(6))?;
    let data = Dataset::open(shop.path(), &LoadOptions::default())?;
    let pooled = data.modality("image_toy").expect("written");
    let here = [true, false, false, false, false, false, true];
    assert_eq!(pooled.present, here);
    let tokens = data
        .modality("image_patches")
        .and_then(|f| f.tokens.as_ref())
        .expect("by token");
    // The class token and four patches; the sixth place stays empty.
    assert_eq!(
        tokens.present[6 * 6..],
        [true, true, true, true, true, false]
    );
    assert_eq!(tokens.present[6..12], [false; 6]);
    Ok(())
}

#[test]
fn paths_stay_in_the_folder() -> Result<()> {
    let shop = shop()?;
    for path in [
        "../outside.png",
        "pictures/../../outside.png",
        "/etc/passwd",
        "..\\outside.png",
        "https://shop.example/a.png",
    ] {
        shop.put(
            "items.csv",
            format!("item_id,image\na,a.png\nb,{path}\n").as_bytes(),
        );
        let text = shop.refusal();
        assert!(text.contains("items.csv, line 3"), "{text}");
        assert!(
            text.contains("leaves") || text.contains("address"),
            "{text}"
        );
    }
    Ok(())
}

#[test]
fn files_named_by_item_are_found_without_a_column() -> Result<()> {
    let shop = shop()?;
    shop.put(
        "items.csv",
        b"item_id,title\ngood,Hat\n../a,Sock\nx/y,Shoe\n",
    );
    let text = shop.refusal();
    assert!(
        text.contains("images/<item_id>.jpg") && text.contains("column"),
        "{text}"
    );
    fs::create_dir(shop.path().join("images")).expect("writable");
    shop.put("images/good.webp", &square(&[5, 6, 7]));
    let report = shop.run("image_toy", Output::Pooled)?;
    assert_eq!((report.embedded, report.absent), (1, 2));
    assert!(report.columns.is_empty());
    // A column of another name has to be said.
    shop.put("items.csv", b"item_id,cover\ngood,a.png\n");
    let mut cfg = shop.config("image_cover", Output::Pooled);
    for (columns, fits) in [(vec!["cover"], true), (vec!["cover", "item_id"], false)] {
        cfg.columns = Some(columns.into_iter().map(str::to_owned).collect());
        let run = embed(&cfg, &shop.encoder, &AtomicBool::new(false), false);
        assert_eq!(run.is_ok(), fits);
    }
    Ok(())
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_bytes_and_counts() -> Result<()> {
    let shop = shop()?;
    let whole_report = shop.run("image_toy", Output::Pooled)?;
    let path = shop.path().join("features/image_toy.safetensors");
    let partial = shop.path().join("features/image_toy.safetensors.partial");
    let whole = fs::read(&path).expect("written");
    fs::remove_file(&path).expect("written");

    let cfg = shop.config("image_toy", Output::Pooled);
    let stopped = embed(&cfg, &shop.encoder, &AtomicBool::new(true), false);
    assert!(matches!(stopped, Err(Error::Interrupted)));
    let header = fs::metadata(&partial).expect("written").len() as usize;
    // Five items and a piece of the sixth: two whole batches.
    fs::write(&partial, &whole[..header + 5 * 32 + 3]).expect("writable");
    let report = shop.run("image_toy", Output::Pooled)?;
    assert_eq!(report.resumed, 4);
    assert_eq!(fs::read(&path).expect("written"), whole);
    assert_eq!(
        (report.embedded, report.absent, report.unreadable),
        (2, 1, 4)
    );
    assert_eq!(report.first_unreadable, whole_report.first_unreadable);
    fs::remove_file(&path).expect("written");

    // Another picture under the same name: nothing is taken over.
    fs::write(&partial, &whole[..header + 4 * 32]).expect("writable");
    shop.put("a.png", &square(&[0, 0, 0]));
    assert_eq!(shop.run("image_toy", Output::Pooled)?.resumed, 0);
    Ok(())
}
