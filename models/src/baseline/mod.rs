//! Models to compare with: they need no features.

pub mod behavior_graph;
pub mod closed_form;
pub mod ease;
pub mod graph_mf;
pub mod popularity;
pub mod sasrec;
pub mod sparse_mf;
