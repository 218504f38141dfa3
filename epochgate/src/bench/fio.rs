//! Runs fio with a job of `fio-profiles/` and reads its JSON. Knows nothing of the servers.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::load::Latency;

/// What a job works on.
#[derive(Debug, Clone)]
pub(crate) enum On<'a> {
    /// An export.
    Uri(&'a str),
    /// A file, without any server.
    File(&'a Path),
}

/// The values that a job takes from its environment.
#[derive(Debug, Clone)]
pub(crate) struct Values {
    /// Size of the disk in bytes.
    pub size: u64,
    /// Connections, each with a job of its own.
    pub connections: usize,
    /// How long it runs.
    pub length: Duration,
}

/// What a job came to, reads and writes together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Outcome {
    /// Requests done.
    pub requests: u64,
    /// Bytes read and written.
    pub bytes: u64,
    /// How long it ran.
    pub elapsed: Duration,
    /// From the moment fio made the request.
    pub latency: Latency,
}

/// A job that only writes, and syncs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Written {
    /// Bytes written.
    pub bytes: u64,
    /// Times that it synced.
    pub syncs: u64,
    /// How long both took.
    pub elapsed: Duration,
}

/// Runs a job of `fio-profiles/`; its files go to `scratch`.
pub(crate) fn run(
    job: &str,
    on: &On<'_>,
    values: &Values,
    scratch: &Path,
) -> anyhow::Result<Outcome> {
    let connections = values.connections.max(1);
    let share = values.size / connections as u64;
    // A share for each of the four jobs, small enough to be written and read back in about a second.
    let verify = (values.size / 4).min(64 << 20);
    let environment = [
        (
            "URI",
            if let On::Uri(uri) = on { *uri } else { "" }.to_owned(),
        ),
        ("SIZE", values.size.to_string()),
        ("SHARE", (share - share % (256 << 10)).to_string()),
        ("CONNECTIONS", connections.to_string()),
        ("RUNTIME", format!("{}ms", values.length.as_millis())),
        ("VERIFY_SHARE", (verify - verify % 4096).to_string()),
    ];
    read(&start(&prepare(job, on)?, &environment, scratch)?)
}

/// Runs a job that only writes.
pub(crate) fn write(job: &str, scratch: &Path) -> anyhow::Result<Written> {
    let job = start(job, &[], scratch)?;
    let number = |at: &str| {
        let value = job.pointer(at).and_then(Value::as_u64);
        value.with_context(|| format!("fio's JSON lacks {at}"))
    };
    Ok(Written {
        bytes: number("/write/io_bytes")?,
        syncs: number("/sync/lat_ns/N")?,
        elapsed: Duration::from_millis(number("/job_runtime")?),
    })
}

/// Runs fio and returns the JSON of its only job.
fn start(job: &str, environment: &[(&str, String)], scratch: &Path) -> anyhow::Result<Value> {
    let file = scratch.join("job.fio");
    std::fs::write(&file, job)?;
    let output = Command::new("fio")
        .args(["--output-format=json"])
        .arg(&file)
        .current_dir(scratch)
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .output()
        .context("fio can't be started")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let json = text.find('{').and_then(|at| text.get(at..)).unwrap_or("");
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("fio failed ({}): {}", output.status, said.trim());
    }
    let json: Value = serde_json::from_str(json).context("fio's output is not its JSON")?;
    let job = json.pointer("/jobs/0").context("fio ran no job")?;
    ensure!(
        job["error"].as_u64() == Some(0),
        "fio reports error {}",
        job["error"]
    );
    Ok(job.clone())
}

/// The job with what the bench needs to know of it, and for a file instead of an export.
fn prepare(job: &str, on: &On<'_>) -> anyhow::Result<String> {
    let told = "[global]\nunified_rw_reporting=mixed\nlat_percentiles=1\nclat_percentiles=0\n";
    ensure!(
        job.contains("[global]\n"),
        "the job has no [global] section"
    );
    let mut job = job.replacen("[global]\n", told, 1);
    if let On::File(path) = on {
        let file = format!("filename={}\n", path.display());
        job = job.replacen("ioengine=nbd\n", "ioengine=io_uring\n", 1);
        job = job.replacen("uri=${URI}\n", &file, 1);
    }
    Ok(job)
}

fn read(job: &Value) -> anyhow::Result<Outcome> {
    let mixed = &job["mixed"];
    let number = |value: &Value| value.as_u64().context("fio's JSON lacks a number");
    let us = |value: &Value| value.as_f64().unwrap_or(0.0) / 1000.0;
    let latency = &mixed["lat_ns"];
    Ok(Outcome {
        requests: number(&mixed["total_ios"])?,
        bytes: number(&mixed["io_bytes"])?,
        elapsed: Duration::from_millis(number(&mixed["runtime"])?),
        latency: Latency {
            mean: us(&latency["mean"]),
            p50: us(&latency["percentile"]["50.000000"]),
            p99: us(&latency["percentile"]["99.000000"]),
        },
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::bench::profile;

    #[test]
    fn every_profile_can_run_on_a_file() {
        for profile in profile::ALL {
            let job = prepare(profile.job, &On::File(Path::new("/a/disk.img"))).unwrap();
            assert!(job.contains("\nioengine=io_uring\n"), "{}", profile.name);
            assert!(job.contains("\nfilename=/a/disk.img\n"), "{}", profile.name);
            assert!(!job.contains("\nuri="), "{}", profile.name);
        }
    }
}
