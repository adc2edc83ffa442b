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
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
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
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
