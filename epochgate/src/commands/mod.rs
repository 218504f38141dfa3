//! One file per subcommand.

mod backup;
mod bench_checkpoint;
mod bench_commit;
mod bench_database;
mod bench_failover;
mod bench_faults;
mod bench_history;
mod bench_memory;
mod bench_nbd;
mod bench_overhead;
mod clone;
mod demo;
mod demo_db;
mod detach;
mod export;
mod gateway;
mod history;
mod log;
mod log_recover;
mod memory;
mod monitor;
mod protect;
mod serve;
mod standby;
mod status;
mod switchover;
mod top;

use std::process::ExitCode;

use crate::cli::backup::BackupCommand;
use crate::cli::clone::CloneCommand;
use crate::cli::memory::MemoryCommand;
use crate::cli::{BenchCommand, Command, ExportCommand, LogCommand};

pub(crate) fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Demo(args) => demo::run(&args),
        Command::DemoDb(args) => demo_db::run(&args),
        Command::Serve(args) => serve::run(&args),
        Command::Gateway(args) => gateway::run(&args),
        Command::Protect(args) => protect::run(&args),
        Command::Standby(args) => standby::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Top(args) => top::run(&args),
        Command::Switchover(args) => switchover::run(&args),
        Command::Export(ExportCommand::List(args)) => export::list(&args),
        Command::Export(ExportCommand::Add(args)) => export::add(&args),
        Command::Export(ExportCommand::Remove(args)) => export::remove(&args),
        Command::Export(ExportCommand::Resize(args)) => export::resize(&args),
        Command::Backup(BackupCommand::Create(args)) => backup::create(&args),
        Command::Backup(BackupCommand::List(args)) => backup::list(&args),
        Command::Backup(BackupCommand::Verify(args)) => backup::verify(&args),
        Command::Backup(BackupCommand::Restore(args)) => backup::restore(&args),
        Command::Backup(BackupCommand::Remove(args)) => backup::remove(&args),
        Command::Backup(BackupCommand::Prune(args)) => backup::prune(&args),
        Command::Clone(CloneCommand::List(args)) => clone::list(&args),
        Command::Clone(CloneCommand::Add(args)) => clone::add(&args),
        Command::Clone(CloneCommand::Remove(args)) => clone::remove(&args),
        Command::Log(LogCommand::Inspect(args)) => log::inspect(&args),
        Command::Log(LogCommand::Verify(args)) => log::verify(&args),
        Command::Log(LogCommand::Recover(args)) => log_recover::recover(&args),
        Command::Log(LogCommand::Rebind(args)) => log::rebind(&args),
        Command::Log(LogCommand::List(args)) => history::list(&args),
        Command::Log(LogCommand::Pin(args)) => history::pin(&args),
        Command::Log(LogCommand::Unpin(args)) => history::unpin(&args),
        Command::Log(LogCommand::Freeze(args)) => history::freeze(&args),
        Command::Log(LogCommand::Thaw(args)) => history::thaw(&args),
        Command::Rewind(args) if args.as_clone.is_some() => memory::clone(&args),
        Command::Rewind(args) if args.with_memory => memory::rewind(&args),
        Command::Rewind(args) => history::rewind(&args),
        Command::Detach(args) => detach::run(&args),
        Command::Monitor(command) => monitor::run(&command),
        Command::Memory(MemoryCommand::List(args)) => memory::list(&args),
        Command::Memory(MemoryCommand::Export(args)) => memory::export(&args),
        Command::Bench(BenchCommand::Checkpoint(args)) => bench_checkpoint::run(&args),
        Command::Bench(BenchCommand::Failover(args)) => bench_failover::run(&args),
        Command::Bench(BenchCommand::Faults(args)) => bench_faults::run(&args),
        Command::Bench(BenchCommand::Database(args)) => bench_database::run(&args),
        Command::Bench(BenchCommand::Nbd(args)) => bench_nbd::run(&args),
        Command::Bench(BenchCommand::Commit(args)) => bench_commit::run(&args),
        Command::Bench(BenchCommand::Overhead(args)) => bench_overhead::run(&args),
        Command::Bench(BenchCommand::History(args)) => bench_history::run(&args),
        Command::Bench(BenchCommand::Memory(args)) => bench_memory::run(&args),
    }
}
