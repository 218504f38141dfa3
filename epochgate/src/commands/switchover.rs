//! `epochgate switchover VM`: move a protected VM to its standby, planned.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;

use anyhow::Context;

use crate::cli::SwitchoverArgs;
use crate::exit::usage;
use crate::role::command_socket;
use crate::role::commands::{Answer, Request};

pub(crate) fn run(args: &SwitchoverArgs) -> anyhow::Result<ExitCode> {
    // A VM that was taken over runs under the role of a standby.
    let found = ["source", "standby"].into_iter().find_map(|role| {
        UnixStream::connect(command_socket(&args.runtime_dir, role, &args.vm)).ok()
    });
    let Some(mut stream) = found else {
        return Err(usage(anyhow::anyhow!(
            "no source of \"{}\" answers in {}: run this on the host where the VM runs (`epochgate status`), and name its runtime_dir with \
             --runtime-dir",
            args.vm,
            args.runtime_dir.display()
        )));
    };
    let mut line = serde_json::to_vec(&Request::Switchover)?;
    line.push(b'\n');
    stream.write_all(&line).context("the source went away")?;
    let mut answer = String::new();
    BufReader::new(stream)
        .read_line(&mut answer)
        .context("the source went away")?;
    let answer: Answer = serde_json::from_str(&answer).context("the source went away")?;
    if args.json {
        println!("{}", serde_json::to_string(&answer)?);
    }
    match answer {
        Answer::Moved { standby, epoch } => {
            if !args.json {
                println!("{} goes on at {standby}, from epoch {epoch}", args.vm);
            }
            Ok(ExitCode::SUCCESS)
        }
        Answer::Refused { reason } if args.json => {
            tracing::debug!(reason, "refused");
            Ok(ExitCode::FAILURE)
        }
        Answer::Refused { reason } => {
            anyhow::bail!("{} is not moved: {reason}", args.vm)
        }
    }
}
