//! Which network interfaces of a VM the output gate stands in front of, read from QEMU's arguments. Starts nothing.

use serde_json::Value;

/// The ids of all `-netdev` backends in `args`, in order.
///
/// # Errors
/// What a gate can't stand in front of, with what to write instead: an interface without a name, or one whose packets
/// don't go through QEMU or not in one queue.
pub(crate) fn gated(args: &[String]) -> Result<Vec<String>, String> {
    let mut ids = Vec::new();
    for (option, value) in args.iter().zip(args.iter().skip(1)) {
        let Some(name) = option.strip_prefix('-').map(|o| o.trim_start_matches('-')) else {
            continue;
        };
        match name {
            "netdev" => ids.push(id(value)?),
            "nic" | "net" if !["none", "nic"].contains(&value.as_str()) => {
                return Err(format!(
                    "extra_args contains \"{option} {value}\", whose packets the output gate can't hold: write it as -netdev with an \
                     id and -device, or set output = \"pass\""
                ));
            }
            _ => {}
        }
    }
    Ok(ids)
}

/// The id of a `-netdev` backend.
pub(crate) fn netdev_id(netdev: &str) -> Option<String> {
    value_of(netdev, "id")
}

fn value_of(netdev: &str, key: &str) -> Option<String> {
    if netdev.trim_start().starts_with('{') {
        let json: Value = serde_json::from_str(netdev).ok()?;
        let value = json.get(key)?;
        return Some(
            value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned),
        );
    }
    let prefix = format!("{key}=");
    netdev
        .split(',')
        .find_map(|part| part.strip_prefix(&prefix))
        .map(str::to_owned)
}

fn id(netdev: &str) -> Result<String, String> {
    let value = |key: &str| value_of(netdev, key);
    let refused = |why: &str| {
        Err(format!(
            "extra_args contains \"-netdev {netdev}\", whose packets the output gate can't hold: {why}, or set output = \"pass\""
        ))
    };
    let on = |key: &str| value(key).is_some_and(|v| v != "off" && v != "false");
    if netdev.starts_with("vhost-") || on("vhost") || on("vhostforce") {
        return refused("the kernel or another process sends them past QEMU; set vhost=off");
    }
    if value("queues").is_some_and(|queues| queues != "1") {
        return refused("it has several queues; remove queues=");
    }
    match value("id") {
        Some(id) if !id.is_empty() => Ok(id),
        _ => refused("it has no id; add id="),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn of(args: &[&str]) -> Result<Vec<String>, String> {
        gated(&args.iter().map(|a| (*a).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn finds_every_backend() {
        assert_eq!(of(&["-serial", "null"]).unwrap(), Vec::<String>::new());
        let args = [
            "-netdev",
            "tap,id=n0,ifname=tap-{role},script=no",
            "-device",
            "virtio-net-pci,netdev=n0",
            "--netdev",
            r#"{"type":"user","id":"n1"}"#,
            "-nic",
            "none",
        ];
        assert_eq!(of(&args).unwrap(), ["n0", "n1"]);
    }

    #[test]
    fn refuses_what_goes_past_the_gate() {
        for (args, word) in [
            (["-nic", "user"], "-device"),
            (["-net", "tap"], "-device"),
            (["-netdev", "tap,id=n0,vhost=on"], "vhost=off"),
            (
                ["-netdev", r#"{"type":"tap","id":"n0","vhost":true}"#],
                "vhost=off",
            ),
            (["-netdev", "vhost-user,id=n0,chardev=c"], "vhost=off"),
            (["-netdev", "tap,id=n0,queues=4"], "queues="),
            (["-netdev", "user"], "id="),
        ] {
            let problem = of(&args).unwrap_err();
            assert!(
                problem.contains(word) && problem.contains("pass"),
                "{problem}"
            );
        }
        assert!(of(&["-netdev", "tap,id=n0,vhost=off,queues=1"]).is_ok());
    }
}
