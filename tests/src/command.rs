//! Programs that are run to their end: the binary under test, and NBD clients.

use std::ffi::OsStr;
use std::process::{Command, Output};

use crate::paths;

/// What a program said, and its exit code (128 + signal for one that was killed, as a shell has it).
#[derive(Debug)]
pub struct Ended {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt;
        let status = output.status;
        Self {
            code: status
                .code()
                .unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Ended {
    /// Asserts the exit code.
    #[track_caller]
    pub fn with(self, code: i32) -> Self {
        assert_eq!(
            self.code, code,
            "another exit code was expected; stdout:\n{}\nstderr:\n{}",
            self.out, self.err
        );
        self
    }

    /// The last line on stderr, which carries the message of an error.
    pub fn message(&self) -> &str {
        self.err.trim_end().lines().last().unwrap_or_default()
    }

    /// Asserts that stderr ends with one clear error message that contains all of `words`.
    #[track_caller]
    pub fn says(&self, words: &[&str]) {
        let messages: Vec<_> = self
            .err
            .match_indices("epochgate: ")
            .map(|(at, _)| &self.err[at..])
            .collect();
        assert_eq!(messages.len(), 1, "not one message:\n{}", self.err);
        for word in words {
            assert!(
                messages[0].contains(word),
                "the message lacks `{word}`:\n{}",
                self.err
            );
        }
        assert!(!self.err.contains("panicked"), "a panic:\n{}", self.err);
    }
}

/// Runs the binary under test to its end. One that hangs is killed (exit code 137).
pub fn epochgate<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Ended {
    run(paths::epochgate(), args)
}

/// Runs a program to its end. One that hangs is killed (exit code 137).
pub fn run<S: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    args: impl IntoIterator<Item = S>,
) -> Ended {
    run_for(120, program, args)
}

/// The same for one that may take so many seconds.
pub fn run_for<S: AsRef<OsStr>>(
    seconds: u32,
    program: impl AsRef<OsStr>,
    args: impl IntoIterator<Item = S>,
) -> Ended {
    let program = program.as_ref();
    let output = Command::new("timeout")
        .args(["--signal=KILL", &seconds.to_string()])
        .arg(program)
        .args(args)
        .output()
        .expect("`timeout` (coreutils) can be started");
    let ended = Ended::from(output);
    assert!(
        ended.code != 127,
        "{} is not installed; tests/scripts/setup.sh installs what the tests need",
        program.display()
    );
    ended
}

/// Runs a client that must succeed; returns its standard output.
#[track_caller]
pub fn run_well<S: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = S>) -> String {
    run(program, args).with(0).out
}
