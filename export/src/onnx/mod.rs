//! Towers as ONNX graphs: the messages, a small builder, quantized weights, and the two towers.
//!
//! What is emitted is the form that tract and ONNX Runtime both load and run at f32 speed: operator
//! set 17, one symbolic dimension `batch`, no `value_info`, every node named, and weights as
//! constants that are widened by a `Cast` when the graph is loaded.

mod graph;
pub mod proto;
mod towers;
mod weights;

pub use graph::{IR_VERSION, OPSET};
pub use towers::{Tower, fusion_tower, user_tower};
pub use weights::{TensorData, TowerTensor, Weights};

pub(crate) use towers::initializers;
