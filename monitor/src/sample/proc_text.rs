//! Reads the texts of `/proc` (proc(5)). Pure: text in, numbers out; None if a text is not what it should be.

/// What matters of a line of `/proc/PID/stat` or `/proc/PID/task/TID/stat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    /// `R`, `S`, `D`, ...
    pub(crate) state: u8,
    pub(crate) minor_faults: u64,
    pub(crate) major_faults: u64,
    /// Time in the kernel, in ticks of the clock.
    pub(crate) system_ticks: u64,
    /// When it started; together with its number it is this one thread.
    pub(crate) started: u64,
}

pub(crate) fn stat(text: &str) -> Option<Stat> {
    // The name stands in parentheses and may hold anything. The field behind it has the number 3.
    let (_, fields) = text.rsplit_once(") ")?;
    let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse().ok();
    Some(Stat {
        state: *fields.first()?.as_bytes().first()?,
        minor_faults: number(10)?,
        major_faults: number(12)?,
        system_ticks: number(15)?,
        started: number(22)?,
    })
}

/// `schedstat` of a thread: nanoseconds on a core, nanoseconds waiting for one, times that it was put on one.
pub(crate) fn schedstat(text: &str) -> Option<[u64; 3]> {
    let mut numbers = text
        .split_ascii_whitespace()
        .map(|number| number.parse().ok());
    Some([numbers.next()??, numbers.next()??, numbers.next()??])
}

/// The number behind `key` in a text of lines such as `VmSwap:    12 kB`.
pub(crate) fn keyed(text: &str, key: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// `statm`: resident pages, and those of them that are shared or of a file.
pub(crate) fn statm(text: &str) -> Option<(u64, u64)> {
    let mut numbers = text
        .split_ascii_whitespace()
        .skip(1)
        .map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// Of an interface in `/proc/net/dev`: packets, bytes and dropped ones received, then the same sent.
pub(crate) fn interface(text: &str, name: &str) -> Option<[u64; 6]> {
    let line = text
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(':'))?;
    let numbers: Vec<u64> = line
        .split_ascii_whitespace()
        .map_while(|number| number.parse().ok())
        .collect();
    let at = |place: usize| numbers.get(place).copied();
    Some([at(1)?, at(0)?, at(3)?, at(9)?, at(8)?, at(11)?])
}

/// The first line of `/proc/stat`: ticks of all cores that were not idle, and all ticks.
pub(crate) fn cpu(text: &str) -> Option<(u64, u64)> {
    let line = text.lines().next()?.strip_prefix("cpu ")?;
    let ticks: Vec<u64> = line
        .split_ascii_whitespace()
        .map_while(|number| number.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal; guest time is part of user.
    let whole: u64 = ticks.get(..8)?.iter().sum();
    let idle = ticks.get(3)? + ticks.get(4)?;
    Some((whole - idle, whole))
}

/// Microseconds in which something waited, of `/proc/pressure/*`.
pub(crate) fn pressure(text: &str) -> Option<u64> {
    let some = text.lines().find(|line| line.starts_with("some "))?;
    some.split_ascii_whitespace()
        .find_map(|field| field.strip_prefix("total="))?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let text =
            "42 (CPU 0) R (TCG) S 1 2 3 0 -1 4194304 101 0 7 0 30 60 0 0 20 0 1 0 4371726 31 41\n";
        let expected = Stat {
            state: b'S',
            minor_faults: 101,
            major_faults: 7,
            system_ticks: 60,
            started: 4_371_726,
        };
        assert_eq!(stat(text), Some(expected));
        assert_eq!(stat("42 (x) S 1"), None);
        assert_eq!(stat(""), None);
    }

    #[test]
    fn numbers_are_found_where_they_are() {
        assert_eq!(schedstat("5 60460 1\n"), Some([5, 60_460, 1]));
        assert_eq!(schedstat("5"), None);
        assert_eq!(statm("765 444 416 5 0 123 0\n"), Some((444, 416)));
        let status =
            "VmSwap:\t      12 kB\nvoluntary_ctxt_switches:\t77\nnonvoluntary_ctxt_switches:\t3\n";
        assert_eq!(keyed(status, "VmSwap"), Some(12));
        assert_eq!(keyed(status, "voluntary_ctxt_switches"), Some(77));
        assert_eq!(keyed(status, "nonvoluntary_ctxt_switches"), Some(3));
        assert_eq!(keyed(status, "VmRSS"), None);
        let dev = "Inter-|   Receive\n face |bytes\n  tap0: 100 2 0 3 0 0 0 0 400 5 0 6 0 0 0 0\n   tap01: 1 1 1 1 1 1 1 1 1 1 1 1 1\n";
        assert_eq!(interface(dev, "tap0"), Some([2, 100, 3, 5, 400, 6]));
        assert_eq!(interface(dev, "tap"), None);
        assert_eq!(
            cpu("cpu  10 1 5 100 20 0 3 1 9 0\ncpu0 1\n"),
            Some((20, 140))
        );
        assert_eq!(
            pressure("some avg10=0.00 avg60=0.00 avg300=0.00 total=77\nfull x total=1\n"),
            Some(77)
        );
    }
}
