//! Tiny towers in folders of the test's own.

mod image;
mod picture;
mod text;

use std::path::Path;

pub(crate) use image::write_vit;
pub(crate) use picture::png;
pub(crate) use text::write_bert;

fn write(dir: &Path, name: &str, value: &serde_json::Value) {
    std::fs::write(dir.join(name), value.to_string()).expect("a temporary folder takes files");
}
