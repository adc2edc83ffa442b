//! Tercet.
