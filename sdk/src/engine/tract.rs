//! The `tract` engine: pure Rust, CPU, one thread.
//!
//! The graph is loaded and typed once with its symbolic dimensions (the batch) left open;
//! for each set of input shapes the symbols are fixed and an optimised plan is made and kept.
//! tract can panic on graphs it does not understand, so everything runs under `catch_unwind`.

use std::collections::HashMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use tract_onnx::prelude::*;

use super::{EngineReport, Input, InputData, Tower, file_name};
use crate::error::{Error, Result};

type Plan = Arc<TypedRunnableModel>;

/// Plans kept per tower: one user, full batches, and whatever was last.
const MAX_PLANS: usize = 4;

pub(super) struct TractTower {
    file: String,
    model: TypedModel,
    /// Input names in the order of the graph.
    names: Vec<String>,
    /// Shapes of the inputs in graph order, and the plan for them; latest used last.
    plans: Vec<(Vec<Vec<usize>>, Plan)>,
}

impl TractTower {
    pub(super) fn load(path: &Path, output: &str) -> Result<Self> {
        let name = file_name(path);
        // Reading from bytes rather than by path: a graph cannot name further files.
        let mut file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let (model, names, outputs) = guard(&name, || {
            let model = tract_onnx::onnx()
                .with_ignore_value_info(true)
                .model_for_read(&mut file)?;
            let outputs: Vec<String> = model
                .output_outlets()?
                .iter()
                .map(|o| match model.outlet_label(*o) {
                    Some(label) => label.to_string(),
                    None => model.node(o.node).name.clone(),
                })
                .collect();
            let names = model
                .input_outlets()?
                .iter()
                .map(|o| model.node(o.node).name.clone())
                .collect();
            // Making a plan declutters; doing it here as well would cost a quarter of a first load.
            let model = model.into_typed()?;
            Ok((model, names, outputs))
        })?;
        if outputs != [output] {
            return Err(Error::Engine {
                file: name,
                reason: format!("the outputs are {outputs:?}, expected one named {output:?}"),
            });
        }
        Ok(TractTower {
            file: name,
            model,
            names,
            plans: Vec::new(),
        })
    }

    fn fail<T>(&self, reason: String) -> Result<T> {
        Err(Error::Engine {
            file: self.file.clone(),
            reason,
        })
    }

    /// The inputs in graph order; every name exactly once.
    fn arrange<'a, 'b>(&self, inputs: &'a [Input<'b>]) -> Result<Vec<&'a Input<'b>>> {
        let given = || inputs.iter().map(|i| i.name).collect::<Vec<_>>();
        if inputs.len() != self.names.len() {
            return self.fail(format!(
                "the inputs are {:?}, given were {:?}",
                self.names,
                given()
            ));
        }
        let mut arranged = Vec::with_capacity(inputs.len());
        for name in &self.names {
            match inputs.iter().find(|i| i.name == name) {
                Some(input) => arranged.push(input),
                None => {
                    return self.fail(format!(
                        "the inputs are {:?}, given were {:?}",
                        self.names,
                        given()
                    ));
                }
            }
        }
        Ok(arranged)
    }

    fn plan(&mut self, inputs: &[&Input<'_>]) -> Result<Plan> {
        let shapes: Vec<Vec<usize>> = inputs.iter().map(|i| i.shape.to_vec()).collect();
        if let Some(at) = self.plans.iter().position(|(s, _)| *s == shapes) {
            let entry = self.plans.remove(at);
            let plan = entry.1.clone();
            self.plans.push(entry);
            return Ok(plan);
        }
        let mut symbols: HashMap<Symbol, TDim> = HashMap::new();
        for (i, input) in inputs.iter().enumerate() {
            let fact = self.model.input_fact(i).map_err(|e| self.error(&e))?;
            let dims = fact.shape.to_tvec();
            let want = match input.data {
                InputData::F32(_) => f32::datum_type(),
                InputData::I64(_) => i64::datum_type(),
            };
            if fact.datum_type != want {
                return self.fail(format!(
                    "input {:?} is {:?}, given was {want:?}",
                    input.name, fact.datum_type
                ));
            }
            let misfit = || {
                format!(
                    "input {:?} has shape {dims:?}, given was {:?}",
                    input.name, input.shape
                )
            };
            if dims.len() != input.shape.len() {
                return self.fail(misfit());
            }
            for (dim, &size) in dims.iter().zip(input.shape) {
                let size = size as i64;
                match dim {
                    TDim::Val(fixed) if *fixed == size => {}
                    TDim::Sym(symbol) => {
                        let before = symbols.insert(symbol.clone(), TDim::Val(size));
                        if before.is_some_and(|b| b != TDim::Val(size)) {
                            return self.fail(misfit());
                        }
                    }
                    _ => return self.fail(misfit()),
                }
            }
        }
        let model = &self.model;
        let plan = guard(&self.file, || {
            model
                .set_symbols(&symbols)?
                .into_optimized()?
                .into_runnable()
        })?;
        if self.plans.len() >= MAX_PLANS {
            self.plans.remove(0);
        }
        self.plans.push((shapes, plan.clone()));
        Ok(plan)
    }

    fn error(&self, e: &TractError) -> Error {
        Error::Engine {
            file: self.file.clone(),
            reason: format!("{e:#}"),
        }
    }
}

impl Tower for TractTower {
    fn run(&mut self, inputs: &[Input<'_>]) -> Result<Vec<f32>> {
        let inputs = self.arrange(inputs)?;
        for input in &inputs {
            let values = match input.data {
                InputData::F32(x) => x.len(),
                InputData::I64(x) => x.len(),
            };
            let size = input
                .shape
                .iter()
                .try_fold(1usize, |n, &d| n.checked_mul(d));
            if size != Some(values) {
                return self.fail(format!(
                    "input {:?} of shape {:?} was given {values} values",
                    input.name, input.shape
                ));
            }
        }
        let plan = self.plan(&inputs)?;
        guard(&self.file, || {
            let mut tensors: TVec<TValue> = tvec!();
            for input in &inputs {
                let tensor = match input.data {
                    InputData::F32(x) => Tensor::from_shape(input.shape, x)?,
                    InputData::I64(x) => Tensor::from_shape(input.shape, x)?,
                };
                tensors.push(tensor.into_tvalue());
            }
            let outputs = plan.run(tensors)?;
            let view = outputs[0].to_plain_array_view::<f32>()?;
            Ok(view.iter().copied().collect())
        })
    }

    fn report(&self) -> EngineReport {
        EngineReport::of("tract")
    }
}

/// Runs `f`; a panic of the engine becomes an error like any other.
fn guard<T>(file: &str, f: impl FnOnce() -> TractResult<T>) -> Result<T> {
    let reason = match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(e)) => format!("{e:#}"),
        Err(panic) => {
            let text = panic
                .downcast_ref::<&str>()
                .map(|s| (*s).to_string())
                .or_else(|| panic.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "no message".to_string());
            format!("the engine panicked: {text}")
        }
    };
    Err(Error::Engine {
        file: file.to_string(),
        reason,
    })
}
