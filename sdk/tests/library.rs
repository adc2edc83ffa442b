//! A library that says it is ONNX Runtime, of a version before all that are supported.
#![cfg(all(feature = "ort", target_os = "linux"))]

use std::process::Command;

use tercet::{Error, OnnxRuntime, OnnxRuntimeOptions};

const OLD: &str = r#"
#include <stddef.h>
static const void *api(unsigned version) { (void)version; return NULL; }
static const char *version(void) { return "1.10.0"; }
static const struct { const void *(*api)(unsigned); const char *(*version)(void); } base = {api, version};
const void *OrtGetApiBase(void) { return &base; }
"#;

#[test]
fn an_old_library_is_refused_with_its_version() {
    let folder = tempfile::tempdir().unwrap();
    let (source, library) = (
        folder.path().join("old.c"),
        folder.path().join("libonnxruntime.so"),
    );
    std::fs::write(&source, OLD).unwrap();
    let mut compiler = Command::new("cc");
    compiler
        .args(["-shared", "-fPIC", "-o"])
        .arg(&library)
        .arg(&source);
    assert!(compiler.status().unwrap().success());
    let error = OnnxRuntime::load(OnnxRuntimeOptions::new(&library)).unwrap_err();
    assert!(matches!(&error, Error::EngineLibrary { path, .. } if *path == library));
    assert!(error.to_string().contains("1.10.0"), "{error}");
}
