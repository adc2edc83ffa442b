//! `include/tercet.h` is what cbindgen makes of the sources, and says the right version.

#![cfg(feature = "c")]

use std::path::Path;

fn generated() -> String {
    // Cargo runs tests in their package; a path of this build would outlive a checkout.
    let config = cbindgen::Config::from_file("cbindgen.toml").unwrap();
    let mut text = Vec::new();
    cbindgen::Builder::new()
        .with_config(config)
        .with_src("src/c_abi/layout.rs")
        .with_src("src/c_abi/mod.rs")
        .generate()
        .unwrap()
        .write(&mut text);
    String::from_utf8(text).unwrap()
}

#[test]
fn the_header_is_up_to_date() {
    let path = Path::new("include/tercet.h");
    let text = generated();
    if std::env::var_os("TERCET_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, &text).unwrap();
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        committed == text,
        "include/tercet.h differs from the sources; run \
         `TERCET_BLESS=1 cargo test -p tercet-ffi --test header` and commit it"
    );
}

#[test]
fn every_function_states_its_thread_rule() {
    let text = generated();
    let mut functions = 0;
    for part in text.split("/**").skip(1) {
        let Some((comment, code)) = part.split_once("*/") else {
            panic!("a comment without an end: {part}");
        };
        if code.contains("tercet_status tercet_") || code.contains("char *tercet_") {
            functions += 1;
            assert!(
                comment.contains("Threads:"),
                "no thread rule:{comment}{code}"
            );
        }
    }
    assert!(functions > 20, "{functions} functions found");
}
