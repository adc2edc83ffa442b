//! The two towers of a student as ONNX graphs.

use candle_core::{DType, Device, Tensor};
use prost::Message;
use tercet_models::params::TensorMap;
use tercet_models::student::{GRAPH, Student};

use super::graph::{Attr, GraphBuilder, Value};
use super::proto::{DataType, ModelProto};
use super::weights::{TensorData, TowerTensor, Weights};
use crate::error::{Error, Result};

/// A tower ready to be written.
#[derive(Debug, Clone)]
pub struct Tower {
    /// The graph, encoded.
    pub onnx: Vec<u8>,
    /// The same weights by name.
    pub tensors: Vec<TowerTensor>,
    /// Number of operations.
    pub nodes: usize,
}

/// Reads the student's tensors and remembers what was used.
struct Source {
    map: TensorMap,
    form: Weights,
    tensors: Vec<TowerTensor>,
}

impl Source {
    fn new(student: &Student, form: Weights) -> Result<Self> {
        Ok(Self {
            map: student.export()?,
            form,
            tensors: Vec::new(),
        })
    }

    fn tensor(&self, name: &str, rank: usize) -> Result<Tensor> {
        let fail = |reason: String| Error::Weight {
            tensor: name.into(),
            reason,
        };
        let t = self
            .map
            .get(name)
            .ok_or_else(|| fail("the student has none".into()))?;
        if t.dims().len() != rank {
            return Err(fail(format!(
                "its shape is {:?}, expected {rank} dimensions",
                t.dims()
            )));
        }
        Ok(t.to_device(&Device::Cpu)?.to_dtype(DType::F32)?)
    }

    fn values(&self, name: &str, rank: usize) -> Result<(Vec<usize>, Vec<f32>)> {
        let t = self.tensor(name, rank)?;
        let values: Vec<f32> = t.flatten_all()?.to_vec1()?;
        if values.iter().any(|v| !v.is_finite()) {
            return Err(Error::Weight {
                tensor: name.into(),
                reason: "it holds a value that is not finite; the training has diverged".into(),
            });
        }
        Ok((t.dims().to_vec(), values))
    }

    /// A tensor that stays f32.
    fn exact(&mut self, name: &str, rank: usize) -> Result<TowerTensor> {
        let (shape, values) = self.values(name, rank)?;
        let t = TowerTensor::exact(name, &shape, values);
        self.tensors.push(t.clone());
        Ok(t)
    }

    /// A weight matrix in the wanted form.
    fn matrix(&mut self, name: &str) -> Result<TowerTensor> {
        let (shape, values) = self.values(name, 2)?;
        let t = TowerTensor::matrix(name, shape[0], shape[1], values, self.form)?;
        self.tensors.push(t.clone());
        Ok(t)
    }
}

/// Adds a constant; the values of an f16 or int8 one are widened to f32 (and, for int8, still to
/// be scaled per column).
fn constant(g: &mut GraphBuilder, t: &TowerTensor) -> Value {
    let narrow = match &t.data {
        TensorData::F32(v) => return g.floats(&t.name, &t.shape, v),
        TensorData::F16(v) => {
            let bytes = v.iter().flat_map(|h| h.to_le_bytes()).collect();
            g.constant(&t.name, DataType::Float16, &t.shape, bytes)
        }
        TensorData::Int8 { codes, .. } => {
            let bytes = codes.iter().map(|c| *c as u8).collect();
            g.constant(&t.name, DataType::Int8, &t.shape, bytes)
        }
    };
    let name = format!("{}.widened", t.name);
    g.op_with(
        "Cast",
        &name,
        &[&narrow],
        &[Attr::Int("to", DataType::Float as i64)],
    )
}

/// Multiplies the columns of a product with the scales of an int8 weight.
fn scaled(g: &mut GraphBuilder, product: Value, t: &TowerTensor) -> Value {
    match &t.data {
        TensorData::Int8 { scales, .. } => {
            let scales = g.floats(&format!("{}.scale", t.name), &[scales.len()], scales);
            g.op("Mul", &format!("{}.scaled", t.name), &[&product, &scales])
        }
        _ => product,
    }
}

/// `x W`.
fn matmul(g: &mut GraphBuilder, x: &Value, w: &TowerTensor) -> Value {
    let weight = constant(g, w);
    let product = g.op("MatMul", &format!("{}.product", w.name), &[x, &weight]);
    scaled(g, product, w)
}

/// `x W + b`.
fn linear(g: &mut GraphBuilder, source: &mut Source, x: &Value, name: &str) -> Result<Value> {
    let w = source.matrix(&format!("{name}.weight"))?;
    let b = source.exact(&format!("{name}.bias"), 1)?;
    let product = matmul(g, x, &w);
    let bias = constant(g, &b);
    Ok(g.op("Add", &format!("{name}.affine"), &[&product, &bias]))
}

/// The graph of the fusion tower.
///
/// Inputs: raw features f32 `[batch, D_m]` per modality, named by the modality, and `present` f32
/// `[batch, M]`; output `item_vector` f32 `[batch, D]`. The standardisation of content features is
/// part of the graph: it subtracts the mean and divides by the deviation *before* the product
/// rather than inside the weights, because columns of very unequal deviation would otherwise share
/// the scales of an int8 weight.
///
/// # Errors
/// A modality whose name is that of another input or output, or weights that cannot be stored.
pub fn fusion_tower(
    student: &Student,
    form: Weights,
    metadata: &[(&str, String)],
) -> Result<Tower> {
    let shape = &student.shape;
    let mut source = Source::new(student, form)?;
    let mut g = GraphBuilder::new("fusion_tower");
    let mut inputs = Vec::new();
    for m in &shape.modalities {
        // Names inside the graph hold a dot, those of modalities cannot.
        if ["present", "item_vector"].contains(&m.name.as_str()) || m.name.contains('.') {
            return Err(Error::Unsupported {
                reason: format!("a modality cannot be called `{}`", m.name),
            });
        }
        inputs.push(g.input(&m.name, DataType::Float, &[m.dim]));
    }
    let count = shape.modalities.len();
    let present = g.input("present", DataType::Float, &[count]);
    let switches = match count {
        1 => vec![present],
        n => g.split("fusion.present", &present, &vec![1; n], 1),
    };
    let mut sum: Option<Value> = None;
    for ((m, input), switch) in shape.modalities.iter().zip(inputs).zip(&switches) {
        let mut x = input;
        if m.name != GRAPH {
            for (what, op, done) in [("mean", "Sub", "centred"), ("inv_std", "Mul", "standard")] {
                let (dims, values) = source.values(&format!("standardize.{}.{what}", m.name), 1)?;
                let t = TowerTensor::exact(&format!("fusion.{}.{what}", m.name), &dims, values);
                let c = constant(&mut g, &t);
                x = g.op(op, &format!("fusion.{}.{done}", m.name), &[&x, &c]);
                source.tensors.push(t);
            }
        }
        let y = linear(&mut g, &mut source, &x, &format!("fusion.{}", m.name))?;
        let part = g.op("Mul", &format!("fusion.{}.switched", m.name), &[&y, switch]);
        sum = Some(match sum {
            Some(s) => g.op("Add", &format!("fusion.{}.sum", m.name), &[&s, &part]),
            None => part,
        });
    }
    let sum = sum.ok_or_else(|| Error::Unsupported {
        reason: "a student without modalities".into(),
    })?;
    let bias = source.exact("fusion.bias", 1)?;
    let bias = constant(&mut g, &bias);
    let s = g.op("Add", "fusion.affine", &[&sum, &bias]);
    let parts = g.split("fusion.parts", &s, &[shape.fusion_hidden, shape.dim], 1);
    let hidden = g.op("Relu", "fusion.hidden", &[&parts[0]]);
    let out = source.matrix("fusion.out.weight")?;
    let mixed = matmul(&mut g, &hidden, &out);
    let v = g.op("Add", "item_vector", &[&parts[1], &mixed]);
    g.output(&v, &[shape.dim]);
    Ok(done(g, source, metadata))
}

/// The graph of the user tower.
///
/// Inputs `items` f32 `[batch, L, D]` (oldest first, padded on the left), `behaviors` i64
/// `[batch, L]` (below the size of the vocabulary), `mask` f32 `[batch, L]`; output `user_vector`
/// f32 `[batch, D]`. L is the student's window.
///
/// Two things differ from the student's own program, neither in value. As histories are padded on
/// the left, the event at position j has age L − 1 − j, so the decays are a constant `[L, H]`. And
/// the sums over events are taken before the value matrix instead of after it, which is linear:
/// `Σ_j w_j (h_j W₂) = (Σ_j w_j h_j) W₂`, with one product per head instead of one per event.
///
/// # Errors
/// Weights that cannot be stored.
pub fn user_tower(student: &Student, form: Weights, metadata: &[(&str, String)]) -> Result<Tower> {
    let shape = &student.shape;
    let (l, d, e) = (shape.window, shape.dim, shape.event_hidden);
    let heads = shape.half_lives.len();
    let mut source = Source::new(student, form)?;
    let mut g = GraphBuilder::new("user_tower");
    let items = g.input("items", DataType::Float, &[l, d]);
    let behaviors = g.input("behaviors", DataType::Int64, &[l]);
    let mask = g.input("mask", DataType::Float, &[l]);

    let table = source.exact("user.behaviors", 2)?;
    let table = constant(&mut g, &table);
    let kinds = g.op_with(
        "Gather",
        "user.kinds",
        &[&table, &behaviors],
        &[Attr::Int("axis", 0)],
    );
    let x = g.op("Add", "user.events", &[&items, &kinds]);
    let hidden = linear(&mut g, &mut source, &x, "user.hidden")?;
    let hidden = g.op("Relu", "user.hidden.active", &[&hidden]);
    let features = g.op_with(
        "Concat",
        "user.features",
        &[&hidden, &x],
        &[Attr::Int("axis", 2)],
    );
    let gate = linear(&mut g, &mut source, &x, "user.gate")?;
    let gate = g.op("Sigmoid", "user.gate.open", &[&gate]);

    // Weights of events per head, divided by their sum.
    let decays: Vec<f32> = (0..l)
        .flat_map(|j| {
            let age = (l - 1 - j) as i32;
            shape.decays().into_iter().map(move |decay| decay.powi(age))
        })
        .collect();
    let decays = g.floats("user.decays", &[l, heads], &decays);
    // One step's decay is all that an engine without a graph needs.
    source
        .tensors
        .push(TowerTensor::exact("user.decays", &[heads], shape.decays()));
    let gate = g.op("Mul", "user.gate.decayed", &[&gate, &decays]);
    let last = g.ints("user.axis.last", &[2]);
    let column = g.op("Unsqueeze", "user.mask.column", &[&mask, &last]);
    let weights = g.op("Mul", "user.weights", &[&gate, &column]);
    let events_axis = g.ints("user.axis.events", &[1]);
    let keep = [Attr::Int("keepdims", 1)];
    let total = g.op_with(
        "ReduceSum",
        "user.weights.total",
        &[&weights, &events_axis],
        &keep,
    );
    let prior: Vec<f32> = shape.prior().into_iter().map(|c| c as f32).collect();
    let prior = TowerTensor::exact("user.prior", &[heads], prior);
    let added = constant(&mut g, &prior);
    source.tensors.push(prior);
    let total = g.op("Add", "user.weights.with_prior", &[&total, &added]);
    let shares = g.op("Div", "user.shares", &[&weights, &total]);
    let perm = [Attr::Ints("perm", vec![0, 2, 1])];
    let shares = g.op_with("Transpose", "user.shares.by_head", &[&shares], &perm);

    let pooled = g.op("MatMul", "user.pooled", &[&shares, &features]);
    let pooled = g.split("user.pooled.parts", &pooled, &[e, d], 2);
    // [batch, H, 1, E] × [H, E, D] → [batch, H, 1, D] → [batch, H, D]
    let rows = g.op("Unsqueeze", "user.pooled.rows", &[&pooled[0], &last]);
    let value = source.matrix("user.value.weight")?;
    let by_head = constant(
        &mut g,
        &TowerTensor {
            name: value.name.clone(),
            shape: vec![heads, e, d],
            data: match &value.data {
                TensorData::F32(v) => TensorData::F32(by_head(v, e, heads, d)),
                TensorData::F16(v) => TensorData::F16(by_head(v, e, heads, d)),
                TensorData::Int8 { codes, scales } => TensorData::Int8 {
                    codes: by_head(codes, e, heads, d),
                    scales: scales.clone(),
                },
            },
        },
    );
    let added = g.op("MatMul", "user.added", &[&rows, &by_head]);
    let flat = g.ints("user.means.shape", &[0, (heads * d) as i64]);
    let added = g.op("Reshape", "user.added.flat", &[&added, &flat]);
    let added = scaled(&mut g, added, &value);
    let passed = g.op("Reshape", "user.passed.flat", &[&pooled[1], &flat]);
    let means = g.op("Add", "user.means", &[&passed, &added]);

    // ln(1 + n) / 4
    let n = g.op_with("ReduceSum", "user.count", &[&mask, &events_axis], &keep);
    let one = g.floats("user.one", &[1], &[1.0]);
    let n = g.op("Add", "user.count.plus_one", &[&n, &one]);
    let n = g.op("Log", "user.count.log", &[&n]);
    let quarter = g.floats("user.quarter", &[1], &[0.25]);
    let n = g.op("Mul", "user.count.scaled", &[&n, &quarter]);
    let r = g.op_with(
        "Concat",
        "user.summary",
        &[&means, &n],
        &[Attr::Int("axis", 1)],
    );

    // Σ_h a_h ⊙ m_h
    let direct = source.exact("user.direct", 2)?;
    let direct = constant(&mut g, &direct);
    let by_head = g.ints("user.means.by_head.shape", &[0, heads as i64, d as i64]);
    let by_head = g.op("Reshape", "user.means.by_head", &[&means, &by_head]);
    let direct = g.op("Mul", "user.direct.heads", &[&by_head, &direct]);
    let direct = g.op_with(
        "ReduceSum",
        "user.direct.sum",
        &[&direct, &events_axis],
        &[Attr::Int("keepdims", 0)],
    );
    let skip = source.matrix("user.skip.weight")?;
    let skip = matmul(&mut g, &r, &skip);
    let direct = g.op("Add", "user.direct.affine", &[&direct, &skip]);
    let mixed = linear(&mut g, &mut source, &r, "user.mix")?;
    let mixed = g.op("Relu", "user.mix.active", &[&mixed]);
    let mixed = linear(&mut g, &mut source, &mixed, "user.out")?;
    let u = g.op("Add", "user_vector", &[&direct, &mixed]);
    g.output(&u, &[d]);
    Ok(done(g, source, metadata))
}

/// `[E, H · hd]` → `[H, E, hd]`.
fn by_head<T: Copy>(values: &[T], e: usize, heads: usize, hd: usize) -> Vec<T> {
    let mut out = Vec::with_capacity(values.len());
    for h in 0..heads {
        for row in 0..e {
            let at = (row * heads + h) * hd;
            out.extend_from_slice(&values[at..at + hd]);
        }
    }
    out
}

fn done(g: GraphBuilder, source: Source, metadata: &[(&str, String)]) -> Tower {
    let model = g.finish(metadata);
    let nodes = model.graph.as_ref().map_or(0, |g| g.node.len());
    Tower {
        onnx: model.encode_to_vec(),
        tensors: source.tensors,
        nodes,
    }
}

/// Name and bytes of each constant of an encoded graph; nothing for bytes that are no graph.
pub(crate) fn initializers(onnx: &[u8]) -> Vec<(String, usize)> {
    let graph = ModelProto::decode(onnx).ok().and_then(|m| m.graph);
    graph
        .map(|g| g.initializer)
        .unwrap_or_default()
        .into_iter()
        .map(|t| {
            (
                t.name.unwrap_or_default(),
                t.raw_data.map_or(0, |d| d.len()),
            )
        })
        .collect()
}
