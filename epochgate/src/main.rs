//! The one command that people run. Each subcommand is a file in `commands/`; what they share is beside this file.

mod bench;
mod cli;
mod commands;
mod config_file;
mod database;
mod exit;
mod lab;
mod load;
mod output;
mod role;
mod runtime;
mod service;
mod size;
mod status_socket;

use clap::Parser;

fn main() -> std::process::ExitCode {
    let cli = cli::Cli::parse();
    runtime::init_logging(cli.verbose);
    match commands::run(cli.command) {
        Ok(code) => code,
        Err(error) => exit::report(&error),
    }
}
