//! See `table.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../../bindings/tests/fuzz_body/mod.rs"]
mod body;

fuzz_target!(|input: &[u8]| body::c_abi(input));
