//! One file per subcommand.

mod bench_failover;
mod demo;
mod gateway;
mod log;
mod protect;
mod serve;
mod standby;
mod status;

use std::process::ExitCode;

use crate::cli::{BenchCommand, Command, LogCommand};

pub(crate) fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Demo(args) => demo::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Gateway(args) => gateway::run(&args),
        Command::Protect(args) => protect::run(&args),
        Command::Standby(args) => standby::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Log(LogCommand::Inspect(args)) => log::inspect(&args),
        Command::Log(LogCommand::Verify(args)) => log::verify(&args),
        Command::Log(LogCommand::Rebind(args)) => log::rebind(&args),
        Command::Bench(BenchCommand::Failover(args)) => bench_failover::run(&args),
    }
}
