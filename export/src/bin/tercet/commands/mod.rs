//! One file a verb.

pub(crate) mod bench;
pub(crate) mod data;
pub(crate) mod delta;
pub(crate) mod demo;
pub(crate) mod distill;
pub(crate) mod evaluate;
pub(crate) mod export;
pub(crate) mod inspect;
pub(crate) mod key;
pub(crate) mod recommend;
mod replay;
pub(crate) mod shared;
pub(crate) mod similar;
pub(crate) mod store;
pub(crate) mod train;
pub(crate) mod verify;
