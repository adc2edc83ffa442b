//! `cargo fuzz run table tests/fuzz/inputs/table` from the repository's root, with
//! `--fuzz-dir tests/fuzz`. The suite replays the saved inputs without a fuzzer.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../../sdk/tests/common/fuzz.rs"]
#[allow(dead_code)]
mod bodies;

fuzz_target!(|input: &[u8]| bodies::table(input));
