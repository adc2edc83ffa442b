//! A small builder of ONNX graphs.

use super::proto::{
    AttributeProto, AttributeType, DataType, DimensionProto, DimensionValue, GraphProto,
    ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};

/// Operator set of every graph.
pub const OPSET: u32 = 17;

/// Version of the ONNX file format, the one that goes with [`OPSET`].
pub const IR_VERSION: i64 = 8;

/// Name of the one symbolic dimension.
const BATCH: &str = "batch";

/// A value of the graph, by name.
#[derive(Debug, Clone)]
pub(super) struct Value(String);

/// Argument of an operation.
pub(super) enum Attr {
    /// A whole number.
    Int(&'static str, i64),
    /// A list of whole numbers.
    Ints(&'static str, Vec<i64>),
}

/// Collects nodes in the order they are added, which is a topological one because a node can only
/// use values that exist.
pub(super) struct GraphBuilder {
    graph: GraphProto,
}

impl GraphBuilder {
    pub(super) fn new(name: &str) -> Self {
        Self {
            graph: GraphProto {
                name: Some(name.to_string()),
                ..GraphProto::default()
            },
        }
    }

    /// An input of shape `[batch, dims…]`.
    pub(super) fn input(&mut self, name: &str, data_type: DataType, dims: &[usize]) -> Value {
        self.graph.input.push(value_info(name, data_type, dims));
        Value(name.to_string())
    }

    /// Declares `value` as the output `[batch, dims…]`.
    pub(super) fn output(&mut self, value: &Value, dims: &[usize]) {
        self.graph
            .output
            .push(value_info(&value.0, DataType::Float, dims));
    }

    /// A constant, given as little-endian bytes.
    pub(super) fn constant(
        &mut self,
        name: &str,
        data_type: DataType,
        dims: &[usize],
        bytes: Vec<u8>,
    ) -> Value {
        self.graph.initializer.push(TensorProto {
            dims: dims.iter().map(|&d| d as i64).collect(),
            data_type: Some(data_type as i32),
            name: Some(name.to_string()),
            raw_data: Some(bytes),
        });
        Value(name.to_string())
    }

    /// A constant of f32.
    pub(super) fn floats(&mut self, name: &str, dims: &[usize], values: &[f32]) -> Value {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(name, DataType::Float, dims, bytes)
    }

    /// A list of i64, for axes and shapes.
    pub(super) fn ints(&mut self, name: &str, values: &[i64]) -> Value {
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.constant(name, DataType::Int64, &[values.len()], bytes)
    }

    /// A node with one output of the node's name.
    pub(super) fn op(&mut self, op: &str, name: &str, inputs: &[&Value]) -> Value {
        self.node(op, name, inputs, &[], vec![name.to_string()]);
        Value(name.to_string())
    }

    /// As [`GraphBuilder::op`], with arguments.
    pub(super) fn op_with(
        &mut self,
        op: &str,
        name: &str,
        inputs: &[&Value],
        attrs: &[Attr],
    ) -> Value {
        self.node(op, name, inputs, attrs, vec![name.to_string()]);
        Value(name.to_string())
    }

    /// Parts of `x` of the given `sizes` along `axis`.
    pub(super) fn split(
        &mut self,
        name: &str,
        x: &Value,
        sizes: &[usize],
        axis: i64,
    ) -> Vec<Value> {
        let lengths: Vec<i64> = sizes.iter().map(|&s| s as i64).collect();
        let lengths = self.ints(&format!("{name}.sizes"), &lengths);
        let outputs: Vec<String> = (0..sizes.len()).map(|i| format!("{name}.{i}")).collect();
        self.node(
            "Split",
            name,
            &[x, &lengths],
            &[Attr::Int("axis", axis)],
            outputs.clone(),
        );
        outputs.into_iter().map(Value).collect()
    }

    fn node(
        &mut self,
        op: &str,
        name: &str,
        inputs: &[&Value],
        attrs: &[Attr],
        output: Vec<String>,
    ) {
        self.graph.node.push(NodeProto {
            input: inputs.iter().map(|v| v.0.clone()).collect(),
            output,
            name: Some(name.to_string()),
            op_type: Some(op.to_string()),
            attribute: attrs.iter().map(attribute).collect(),
            ..NodeProto::default()
        });
    }

    /// The finished model; `metadata` tells where it comes from.
    pub(super) fn finish(self, metadata: &[(&str, String)]) -> ModelProto {
        ModelProto {
            ir_version: Some(IR_VERSION),
            producer_name: Some("tercet".into()),
            producer_version: Some(env!("CARGO_PKG_VERSION").into()),
            graph: Some(self.graph),
            opset_import: vec![OperatorSetIdProto {
                domain: Some(String::new()),
                version: Some(i64::from(OPSET)),
            }],
            metadata_props: metadata
                .iter()
                .map(|(key, value)| StringStringEntryProto {
                    key: Some((*key).to_string()),
                    value: Some(value.clone()),
                })
                .collect(),
            ..ModelProto::default()
        }
    }
}

fn attribute(attr: &Attr) -> AttributeProto {
    match attr {
        Attr::Int(name, i) => AttributeProto {
            name: Some((*name).to_string()),
            i: Some(*i),
            r#type: Some(AttributeType::Int as i32),
            ..AttributeProto::default()
        },
        Attr::Ints(name, ints) => AttributeProto {
            name: Some((*name).to_string()),
            ints: ints.clone(),
            r#type: Some(AttributeType::Ints as i32),
            ..AttributeProto::default()
        },
    }
}

fn value_info(name: &str, data_type: DataType, dims: &[usize]) -> ValueInfoProto {
    let fixed = |&d: &usize| DimensionValue::DimValue(d as i64);
    let dim = std::iter::once(DimensionValue::DimParam(BATCH.into()))
        .chain(dims.iter().map(fixed))
        .map(|value| DimensionProto { value: Some(value) })
        .collect();
    ValueInfoProto {
        name: Some(name.to_string()),
        r#type: Some(TypeProto {
            tensor_type: Some(TensorTypeProto {
                elem_type: Some(data_type as i32),
                shape: Some(TensorShapeProto { dim }),
            }),
        }),
    }
}
