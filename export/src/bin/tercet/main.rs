//! The `tercet` command: parse, call the libraries, print.

mod commands;
mod interrupt;
mod output;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Train multimodal recommenders, distil them into one small student, and pack it for devices.
#[derive(Parser)]
#[command(name = "tercet", version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The whole path on an embedded synthetic shop: teacher, student, bundle, recommendations.
    Demo(commands::demo::Args),
    /// Make, inspect and import data sets.
    #[command(subcommand)]
    Data(commands::data::Data),
    /// Train a model on a data set folder.
    Train(commands::train::Args),
    /// Distil the student from one or more trained runs.
    Distill(commands::distill::Args),
    /// Pack a student into a bundle.
    Export(commands::export::Args),
    /// Measure a run or a bundle by ranking.
    Evaluate(commands::evaluate::Args),
    /// Recommend from a bundle, as an app would.
    Recommend(commands::recommend::Args),
    /// Items like an item of a bundle.
    Similar(commands::similar::Args),
    /// Contents of a bundle.
    Inspect(commands::inspect::Args),
    /// Check every byte and the health probe of a bundle.
    Verify(commands::verify::Args),
    /// Speed of a bundle on this machine.
    Bench(commands::bench::Args),
    #[command(subcommand)]
    Key(commands::key::Key),
    /// What leads from one bundle to a newer one, for devices that have the first.
    Delta(commands::delta::Args),
    #[command(subcommand)]
    Store(commands::store::Store),
}

/// Starts this program anew with the tensor library's own thread pool switched off.
///
/// That pool spins between elementwise operations, which on small models costs more than it gains;
/// matrix products and our own kernels have another pool. It reads its size from the environment
/// only, and a program cannot safely change its own.
#[cfg(unix)]
fn without_spinning_threads() {
    use std::os::unix::process::CommandExt;
    const SIZE: &str = "CANDLE_NUM_THREADS";
    if std::env::var_os(SIZE).is_some() {
        return;
    }
    if let Ok(program) = std::env::current_exe() {
        let mut args = std::env::args_os();
        let name = args.next().unwrap_or_default();
        // Returns only if it failed; then the pool stays, which is slower and nothing worse.
        let _ = std::process::Command::new(program)
            .arg0(name)
            .args(args)
            .env(SIZE, "1")
            .exec();
    }
}

#[cfg(not(unix))]
fn without_spinning_threads() {}

fn main() -> ExitCode {
    without_spinning_threads();
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Demo(a) => commands::demo::run(a),
        Command::Data(a) => commands::data::run(a),
        Command::Train(a) => commands::train::run(a),
        Command::Distill(a) => commands::distill::run(a),
        Command::Export(a) => commands::export::run(a),
        Command::Evaluate(a) => commands::evaluate::run(a),
        Command::Recommend(a) => commands::recommend::run(a),
        Command::Similar(a) => commands::similar::run(a),
        Command::Inspect(a) => commands::inspect::run(a),
        Command::Verify(a) => commands::verify::run(a),
        Command::Bench(a) => commands::bench::run(a),
        Command::Key(a) => commands::key::run(a),
        Command::Delta(a) => commands::delta::run(a),
        Command::Store(a) => commands::store::run(a),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            if error.is::<commands::shared::WrongUse>() {
                ExitCode::from(2)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}
