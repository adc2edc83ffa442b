//! One file a verb.

pub(crate) mod data;
pub(crate) mod distill;
pub(crate) mod evaluate;
pub(crate) mod shared;
pub(crate) mod train;
