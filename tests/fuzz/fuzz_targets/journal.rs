//! See `table.rs`.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../../sdk/tests/common/fuzz.rs"]
#[allow(dead_code)]
mod bodies;

fuzz_target!(|input: &[u8]| bodies::journal(input));
