//! Everything that needs more than one crate, as one test binary.

mod parity;
mod pipeline;
mod shards;
