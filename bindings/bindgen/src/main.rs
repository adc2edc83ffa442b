//! The generator of uniffi, at the very version of the library: `tercet-bindgen generate -l kotlin …`.

fn main() {
    uniffi::uniffi_bindgen_main();
}
