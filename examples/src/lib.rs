//! The examples are the `*.rs` files beside this folder: `cargo run --example quickstart`.
