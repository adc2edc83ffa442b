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
    /// Measure a run or a bundle by ranking.
    Evaluate(commands::evaluate::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Data(a) => commands::data::run(a),
        Command::Train(a) => commands::train::run(a),
        Command::Distill(a) => commands::distill::run(a),
        Command::Evaluate(a) => commands::evaluate::run(a),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
