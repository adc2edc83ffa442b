//! The `ort` engine: ONNX Runtime from a shared library of the host's, on servers and where a GPU or
//! an accelerator is to run the towers.
//!
//! The library is loaded when asked for, never linked. It must be of version 1.24 or later; 1.24 and
//! 1.31 were run, and the GPU build of 1.31 without CUDA's own libraries, which its providers then
//! name. An execution provider that ONNX Runtime was built without, or whose own libraries
//! or device are missing, would by default be passed over in silence: here every provider asked for
//! is tried alone, in order, and what was refused is reported, with the reason.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use ort::environment::Environment;
use ort::ep::{self, ExecutionProviderDispatch};
use ort::session::builder::SessionBuilder;
use ort::session::{Session, SessionInputValue};
use ort::value::Tensor;

use super::{EngineReport, Input, InputData, Tower, TowerKind, file_name};
use crate::error::{Error, Result};

/// What ONNX Runtime may run a tower on. What is not listed is the CPU, which is always tried last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Provider {
    /// NVIDIA GPUs; the number of the device.
    Cuda(i32),
    /// NVIDIA GPUs by TensorRT; the number of the device.
    TensorRt(i32),
    /// Apple's neural engine and GPU.
    CoreMl,
    /// Android's accelerators.
    Nnapi,
    /// Optimised CPU kernels, mostly for mobile.
    Xnnpack,
    /// GPUs on Windows; the number of the device.
    DirectMl(i32),
    /// Intel CPUs, GPUs and NPUs.
    OpenVino,
}

impl Provider {
    /// Its name in ONNX Runtime.
    pub fn name(self) -> &'static str {
        match self {
            Provider::Cuda(_) => "CUDA",
            Provider::TensorRt(_) => "TensorRT",
            Provider::CoreMl => "CoreML",
            Provider::Nnapi => "NNAPI",
            Provider::Xnnpack => "XNNPACK",
            Provider::DirectMl(_) => "DirectML",
            Provider::OpenVino => "OpenVINO",
        }
    }

    fn dispatch(self) -> ExecutionProviderDispatch {
        let dispatch = match self {
            Provider::Cuda(device) => ep::CUDA::default().with_device_id(device).build(),
            Provider::TensorRt(device) => ep::TensorRT::default().with_device_id(device).build(),
            Provider::CoreMl => ep::CoreML::default().build(),
            Provider::Nnapi => ep::NNAPI::default().build(),
            Provider::Xnnpack => ep::XNNPACK::default().build(),
            Provider::DirectMl(device) => ep::DirectML::default().with_device_id(device).build(),
            Provider::OpenVino => ep::OpenVINO::default().build(),
        };
        dispatch.error_on_failure()
    }
}

/// Settings of [`OnnxRuntime`].
#[derive(Debug, Clone)]
pub struct OnnxRuntimeOptions {
    library: PathBuf,
    providers: Vec<Provider>,
    strict: bool,
    threads: usize,
    arena: bool,
}

impl OnnxRuntimeOptions {
    /// The library at a path, such as `libonnxruntime.so.1.31.1`; the CPU, one thread, and no memory
    /// kept from one call to the next.
    pub fn new(library: impl Into<PathBuf>) -> Self {
        OnnxRuntimeOptions {
            library: library.into(),
            providers: Vec::new(),
            strict: false,
            threads: 1,
            arena: false,
        }
    }

    /// Adds a provider, after those added before in order of preference.
    pub fn provider(mut self, provider: Provider) -> Self {
        self.providers.push(provider);
        self
    }

    /// Whether it is an error if none of the providers asked for can be used. Otherwise the CPU is,
    /// and [`EngineReport::refused`] tells why.
    pub fn strict(mut self, yes: bool) -> Self {
        self.strict = yes;
        self
    }

    /// Sets the threads within an operator; 0 is ONNX Runtime's own choice.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// Whether the CPU provider keeps memory for later calls: faster, and it stays as large as the
    /// largest call needed.
    pub fn arena(mut self, yes: bool) -> Self {
        self.arena = yes;
        self
    }
}

/// ONNX Runtime, loaded.
#[derive(Debug, Clone)]
pub struct OnnxRuntime {
    options: OnnxRuntimeOptions,
    loaded: &'static Loaded,
}

/// The one environment that a process can have.
struct Loaded {
    library: PathBuf,
    environment: Environment,
}

impl std::fmt::Debug for Loaded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Loaded")
            .field("library", &self.library)
            .finish()
    }
}

impl OnnxRuntime {
    /// Loads the library. A process can have one of them, for as long as it lives: another path
    /// later is refused.
    ///
    /// # Errors
    /// [`Error::EngineLibrary`] if it is missing, too old, no ONNX Runtime, or not the one that is
    /// loaded already.
    pub fn load(options: OnnxRuntimeOptions) -> Result<Self> {
        static LOADED: OnceLock<Loaded> = OnceLock::new();
        static LOADING: Mutex<()> = Mutex::new(());
        let fail = |reason: String| Error::EngineLibrary {
            path: options.library.clone(),
            reason,
        };
        let library = options
            .library
            .canonicalize()
            .map_err(|e| fail(e.to_string()))?;
        let _one = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
        if LOADED.get().is_none() {
            let builder = ort::init_from(&library).map_err(|e| fail(e.to_string()))?;
            let environment = builder
                .with_name("tercet")
                .build()
                .map_err(|e| fail(e.to_string()))?;
            let _ = LOADED.set(Loaded {
                library: library.clone(),
                environment,
            });
        }
        let loaded = LOADED
            .get()
            .ok_or_else(|| fail("it is not loaded".into()))?;
        if loaded.library != library {
            let other = loaded.library.display();
            return Err(fail(format!("this process has loaded {other} already")));
        }
        Ok(OnnxRuntime { options, loaded })
    }

    /// Loads a tower of a bundle.
    pub(crate) fn tower(&self, kind: TowerKind, path: &Path) -> Result<Box<dyn Tower>> {
        let file = file_name(path);
        let fail = |reason: String| Error::Engine {
            file: file.clone(),
            reason,
        };
        let mut report = EngineReport {
            engine: "onnxruntime",
            version: Some(ort::info().to_string()),
            provider: "CPU".to_string(),
            refused: Vec::new(),
        };
        let mut session = None;
        for provider in &self.options.providers {
            let made = self.builder().and_then(|builder| {
                let with = builder.with_execution_providers([provider.dispatch()]);
                with.map_err(|e| e.to_string())
            });
            let name = provider.name().to_string();
            match made.and_then(|mut b| b.commit_from_file(path).map_err(|e| e.to_string())) {
                Ok(made) => {
                    report.provider = name;
                    session = Some(made);
                    break;
                }
                Err(reason) => report.refused.push((name, reason)),
            }
        }
        if session.is_none() && self.options.strict && !report.refused.is_empty() {
            let refused = report.refused.iter().map(|(n, r)| format!("{n}: {r}"));
            let refused: Vec<String> = refused.collect();
            return Err(fail(format!(
                "no provider that was asked for can be used ({})",
                refused.join("; ")
            )));
        }
        let session = match session {
            Some(session) => session,
            None => self
                .builder()
                .and_then(|mut b| b.commit_from_file(path).map_err(|e| e.to_string()))
                .map_err(fail)?,
        };
        let outputs: Vec<&str> = session.outputs().iter().map(|o| o.name()).collect();
        if outputs != [kind.output()] {
            return Err(Error::Engine {
                file,
                reason: format!(
                    "the outputs are {outputs:?}, expected one named {:?}",
                    kind.output()
                ),
            });
        }
        Ok(Box::new(OrtTower {
            file,
            session,
            report,
        }))
    }

    fn builder(&self) -> Result<SessionBuilder, String> {
        let options = &self.options;
        let text = |e: ort::Error<SessionBuilder>| e.to_string();
        let cpu = ep::CPU::default().with_arena_allocator(options.arena);
        let builder = Session::builder(&self.loaded.environment).map_err(|e| e.to_string())?;
        builder
            .with_intra_threads(options.threads)
            .map_err(text)?
            .with_inter_threads(1)
            .map_err(text)?
            .with_memory_pattern(options.arena)
            .map_err(text)?
            .with_execution_providers([cpu.build()])
            .map_err(text)
    }
}

struct OrtTower {
    file: String,
    session: Session,
    report: EngineReport,
}

impl Tower for OrtTower {
    fn run(&mut self, inputs: &[Input<'_>]) -> Result<Vec<f32>> {
        let mut run = || -> Result<Vec<f32>, ort::Error> {
            let mut values: Vec<(&str, SessionInputValue<'_>)> = Vec::with_capacity(inputs.len());
            for input in inputs {
                let shape = input.shape.to_vec();
                let value = match input.data {
                    InputData::F32(x) => Tensor::from_array((shape, x.to_vec()))?.into(),
                    InputData::I64(x) => Tensor::from_array((shape, x.to_vec()))?.into(),
                };
                values.push((input.name, value));
            }
            let outputs = self.session.run(values)?;
            Ok(outputs[0].try_extract_tensor::<f32>()?.1.to_vec())
        };
        run().map_err(|e| Error::Engine {
            file: self.file.clone(),
            reason: e.to_string(),
        })
    }

    fn report(&self) -> EngineReport {
        self.report.clone()
    }
}
