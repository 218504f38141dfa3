//! The one command that people run. Each subcommand is a file in `commands/`; what they share is beside this file.

mod cli;
mod commands;
mod config_file;
mod exit;
mod lab;
mod output;
mod role;
mod runtime;

use clap::Parser;

fn main() -> std::process::ExitCode {
    let cli = cli::Cli::parse();
    runtime::init_logging(cli.verbose);
    match commands::run(cli.command) {
        Ok(code) => code,
        Err(error) => exit::report(&error),
    }
}
