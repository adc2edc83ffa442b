//! Calls of a C host that means no good, or has a bug: inputs that a fuzzer found worth keeping, and
//! random ones.
#![cfg(feature = "c")]

mod fuzz_body;

#[test]
fn saved_fuzz_inputs_and_random_calls_never_panic() {
    // Cargo runs tests in their package; a path of this build would outlive a checkout.
    let saved: Vec<Vec<u8>> = std::fs::read_dir("../tests/fuzz/inputs/c_abi")
        .unwrap()
        .map(|entry| std::fs::read(entry.unwrap().path()).unwrap())
        .collect();
    assert!(!saved.is_empty());
    for input in &saved {
        fuzz_body::c_abi(input);
    }
    let mut state = 1u64;
    let mut random = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 40) as u8
    };
    for length in 0..400usize {
        let input: Vec<u8> = (0..length).map(|_| random()).collect();
        fuzz_body::c_abi(&input);
    }
}
