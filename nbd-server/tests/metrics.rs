//! The metrics against what real clients have done, scraped by curl, and read by a small strict reader of the text format.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod life_common;

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use life_common::{Running, Shell, image, qemu_io, qemu_io_output};
use nbd_server::group::{DiskConfig, GroupConfig, GroupMode};

const MIB: u64 = 1 << 20;

/// Samples by their name with sorted labels, as `name{a="b"}`.
type Samples = BTreeMap<String, f64>;

fn scrape(running: &Running) -> String {
    let address = running.gateway().metrics_address().expect("metrics are on");
    let output = Command::new("curl")
        .args(["-sS", "--fail", &format!("http://{address}/metrics")])
        .output()
        .expect("curl of the package curl");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Reads a page and checks its form: every sample belongs to a family that was declared once and just before, names and labels are
/// well-formed, no sample comes twice, histograms are cumulative and end in their count, and the page ends in `# EOF`.
fn read(page: &str) -> Samples {
    let mut samples = Samples::new();
    let mut families = BTreeSet::new();
    let mut family = ("", "");
    let body = page.strip_suffix("# EOF\n").expect("the end is marked");
    for line in body.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split_once(' ').unwrap();
            assert!(families.insert(family.0), "declared twice: {line}");
            continue;
        }
        if line.starts_with("# HELP ") || line.starts_with("# UNIT ") {
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let suffix = name.strip_prefix(family.0).expect("of the family above");
        let allowed: &[&str] = match family.1 {
            "counter" => &["_total"],
            "gauge" => &[""],
            "info" => &["_info"],
            "histogram" => &["_sum", "_count", "_bucket"],
            other => panic!("{other}"),
        };
        assert!(allowed.contains(&suffix), "{line}");
        assert!(
            name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
            "{line}"
        );
        for label in labels
            .strip_suffix('}')
            .unwrap()
            .split(',')
            .filter(|l| !l.is_empty())
        {
            let (key, value) = label.split_once('=').unwrap();
            assert!(
                key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
                "{line}"
            );
            assert!(
                value.len() >= 2 && value.starts_with('"') && value.ends_with('"'),
                "{line}"
            );
        }
        let value: f64 = value.parse().unwrap();
        assert!(
            samples.insert(series.to_owned(), value).is_none(),
            "twice: {line}"
        );
    }
    check_histograms(&samples);
    samples
}

fn check_histograms(samples: &Samples) {
    for (series, count) in samples.iter().filter(|(name, _)| name.contains("_count{")) {
        let (name, labels) = series.split_once("_count{").unwrap();
        let start = format!("{name}_bucket{{le=\"");
        let end = format!("\",{labels}");
        let mut found: Vec<(f64, f64)> = samples
            .iter()
            .filter_map(|(name, value)| {
                let le = name.strip_prefix(&start)?.strip_suffix(&end)?;
                Some((le.replace("+Inf", "inf").parse().unwrap(), *value))
            })
            .collect();
        found.sort_by(|a, b| a.partial_cmp(b).unwrap());
        let buckets = if name.ends_with("_bytes") { 11 } else { 20 };
        assert_eq!(found.len(), buckets, "{series}");
        assert!(
            found.windows(2).all(|pair| pair[0].1 <= pair[1].1),
            "{series}"
        );
        assert_eq!(found.last().unwrap(), &(f64::INFINITY, *count), "{series}");
    }
}

fn value(samples: &Samples, name: &str, labels: &str) -> f64 {
    let series = format!("epochgate_{name}{labels}");
    let found = samples.get(&series).copied();
    found.unwrap_or_else(|| panic!("no {series} in {samples:#?}"))
}

fn requests(samples: &Samples, export: &str, group: &str, operation: &str) -> (f64, f64) {
    let labels = format!("{{export=\"{export}\",group=\"{group}\",operation=\"{operation}\"}}");
    let count = format!("epochgate_request_duration_seconds_count{labels}");
    let bytes = format!("epochgate_request_bytes_total{labels}");
    let of = |series| samples.get(&series).copied().unwrap_or(0.0);
    (of(count), of(bytes))
}

fn with_group(dir_images: &[(&str, u64)]) -> Running {
    Running::with(dir_images, |config| {
        config.metrics = Some("127.0.0.1:0".to_owned());
        let dir = config.control.clone().unwrap();
        let dir = dir.parent().unwrap();
        let disk = DiskConfig {
            name: "root".to_owned(),
            image: image(dir, "root", 4 * MIB),
            read_only: false,
            export: None,
        };
        config.groups.push(GroupConfig {
            mode: GroupMode::Async,
            // Nothing commits but what asks for it.
            epoch_interval_ms: 3_600_000,
            ..GroupConfig::new("vm", dir.join("vm.epochlog"), vec![disk])
        });
    })
}

#[tokio::test]
async fn the_numbers_are_what_clients_have_done() {
    let running = with_group(&[("disk", 8 * MIB)]);
    let fresh = read(&scrape(&running));
    let disk = "{export=\"disk\",group=\"\"}";
    assert_eq!(value(&fresh, "export_size_bytes", disk), 8.0 * MIB as f64);
    assert_eq!(requests(&fresh, "disk", "", "read"), (0.0, 0.0));

    let mut shell = Shell::open(&running.uri("disk"));
    let before = read(&scrape(&running));
    assert_eq!(value(&before, "export_connections", disk), 1.0);
    assert_eq!(value(&before, "connections", ""), 1.0);
    for index in 0..10 {
        shell.ask(&format!("write {}k 4k", index * 4));
        shell.ask(&format!("read {}k 4k", index * 4));
    }
    shell.ask("write -z 1M 1M");
    shell.ask("discard 2M 64k");
    shell.ask("flush");
    shell.end();
    let after = read(&scrape(&running));
    let grown = |operation| {
        let (count, bytes) = requests(&after, "disk", "", operation);
        let (old_count, old_bytes) = requests(&before, "disk", "", operation);
        (count - old_count, bytes - old_bytes)
    };
    assert_eq!(grown("write"), (10.0, 40960.0));
    assert_eq!(grown("read"), (10.0, 40960.0));
    assert_eq!(grown("write_zeroes"), (1.0, MIB as f64));
    assert_eq!(grown("trim"), (1.0, 65536.0));
    assert!(grown("flush").0 >= 1.0);
    assert_eq!(value(&after, "requests_in_flight", disk), 0.0);

    let client = running.client().await;
    let status = &client.exports().await.unwrap()[0];
    let (reads, bytes) = requests(&after, "disk", "", "read");
    #[allow(clippy::cast_precision_loss)]
    let told = (status.reads as f64, status.bytes_read as f64);
    assert_eq!(told, (reads, bytes), "the status says the same");
}

#[test]
fn many_connections_at_once_lose_no_count() {
    let running = with_group(&[("disk", 64 * MIB)]);
    let copied = running.dir().join("copy");
    let copy = Command::new("nbdcopy")
        .args(["--connections=4", "--request-size=65536", "--no-extents"])
        .arg(running.uri("disk"))
        .arg(&copied)
        .status();
    assert!(copy.expect("nbdcopy of the package libnbd-bin").success());
    let samples = read(&scrape(&running));
    assert_eq!(
        requests(&samples, "disk", "", "read"),
        (1024.0, 64.0 * MIB as f64)
    );
}

#[test]
fn errors_are_counted_by_their_kind() {
    let running = with_group(&[("disk", MIB)]);
    let mut shell = Shell::open(&running.uri("disk"));
    running
        .gateway()
        .catalog()
        .resize("disk", MIB / 2, true)
        .unwrap();
    assert!(shell.ask("read 768k 4k").contains("failed"));
    assert!(shell.ask("write 768k 4k").contains("failed"));
    let samples = read(&scrape(&running));
    let errors = |error: &str| {
        let labels = format!("{{export=\"disk\",group=\"\",error=\"{error}\"}}");
        value(&samples, "request_errors_total", &labels)
    };
    assert_eq!(
        (errors("einval"), errors("enospc"), errors("eio")),
        (1.0, 1.0, 0.0)
    );
    let (count, bytes) = requests(&samples, "disk", "", "write");
    assert_eq!((count, bytes), (1.0, 0.0), "a failed request has no bytes");
}

#[test]
fn a_group_shows_what_it_holds_and_where_its_epochs_are() {
    let running = with_group(&[]);
    let group = "{group=\"vm\"}";
    let fresh = read(&scrape(&running));
    assert_eq!(value(&fresh, "group_async", group), 1.0);
    assert_eq!(
        value(&fresh, "group_budget_bytes", group),
        256.0 * MIB as f64
    );
    let mut shell = Shell::open(&running.uri("vm/root"));
    shell.ask("write 0 1M");
    let held = read(&scrape(&running));
    assert!(value(&held, "group_held_bytes", group) >= MIB as f64);
    assert!(requests(&held, "vm/root", "vm", "write").1 >= MIB as f64);
    shell.ask("flush");
    let flushed = read(&scrape(&running));
    let committed = value(&flushed, "group_epoch_committed", group);
    assert!(committed > value(&fresh, "group_epoch_committed", group));
    assert_eq!(value(&flushed, "group_epoch_sealed", group), committed);
    assert!(value(&flushed, "group_log_bytes", group) > 0.0);
    assert_eq!(value(&flushed, "group_log_backlog_bytes", group), 0.0);
    shell.end();
}

#[test]
fn every_commit_is_in_the_histograms_with_its_time_and_its_size() {
    let running = with_group(&[]);
    let group = "{group=\"vm\"}";
    let bucket = |samples: &Samples, bound: &str| {
        let labels = format!("{{le=\"{bound}\",group=\"vm\"}}");
        value(samples, "group_epoch_bytes_bucket", &labels)
    };
    let before = read(&scrape(&running));
    let mut shell = Shell::open(&running.uri("vm/root"));
    for command in ["write 0 4k", "flush", "write 0 1M", "write 2M 8k", "flush"] {
        shell.ask(command);
    }
    let after = read(&scrape(&running));
    let grown = |name: &str| value(&after, name, group) - value(&before, name, group);
    let epochs = grown("group_epoch_committed");
    assert!(epochs >= 2.0);
    assert_eq!(grown("group_commit_duration_seconds_count"), epochs);
    assert_eq!(grown("group_epoch_bytes_count"), epochs);
    assert_eq!(grown("group_epoch_bytes_sum"), (MIB + (12 << 10)) as f64);
    let in_bucket = |bound: &str| bucket(&after, bound) - bucket(&before, bound);
    assert_eq!(
        in_bucket("4096.0"),
        epochs - 1.0,
        "a page is in the first bucket"
    );
    assert_eq!(in_bucket("1048576.0"), epochs - 1.0);
    assert_eq!(in_bucket("4194304.0"), epochs);
    assert!(grown("group_commit_duration_seconds_sum") > 0.0);
    shell.end();
}

#[test]
fn a_unix_socket_and_wrong_requests_are_answered_as_they_should() {
    let running = Running::with(&[("disk", MIB)], |config| {
        let socket = config
            .control
            .clone()
            .unwrap()
            .with_file_name("metrics.sock");
        config.metrics = Some(socket.display().to_string());
    });
    let curl = |arguments: &[&str]| {
        let socket = running.dir().join("metrics.sock");
        let output = Command::new("curl")
            .args(["-sS", "-i", "--unix-socket"])
            .arg(socket)
            .args(arguments)
            .output();
        String::from_utf8(output.expect("curl of the package curl").stdout).unwrap()
    };
    let page = curl(&["http://gateway/metrics"]);
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    assert!(
        page.contains("application/openmetrics-text; version=1.0.0"),
        "{page}"
    );
    read(page.split_once("\r\n\r\n").unwrap().1);
    assert!(curl(&["http://gateway/"]).starts_with("HTTP/1.1 404"));
    assert!(curl(&["-X", "POST", "http://gateway/metrics"]).starts_with("HTTP/1.1 405"));
    qemu_io(&running.uri("disk"), &["read 0 4k"]);
    assert!(
        qemu_io_output(&running.uri("disk"), &["read 0 4k"])
            .status
            .success()
    );
}
