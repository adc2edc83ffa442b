//! Tercet for other languages.
//!
//! | module | feature | hosts |
//! |---|---|---|
//! | [`c_abi`] | `c` | C, C++, anything that can call C; declared in `include/tercet.h` |
//! | [`mobile`] | `mobile` | Kotlin and Swift, by uniffi |
//! | [`engine`], [`types`], [`error`] | always | the core of both, and of the Python module |
//!
//! The layers convert and nothing else: what an engine does is decided in `tercet`, when a host
//! may call what is decided in [`engine`].

// Every module but the C ABI and the generated glue.
#![warn(unsafe_code)]

#[cfg(feature = "c")]
#[allow(unsafe_code)]
pub mod c_abi;
pub mod engine;
pub mod error;
#[cfg(feature = "mobile")]
pub mod mobile;
pub mod types;

pub use engine::Engine;
pub use error::{HostError, Kind};

#[cfg(feature = "mobile")]
uniffi::setup_scaffolding!();
