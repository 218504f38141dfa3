//! A plain heartbeat, to compare with: somebody asked the guest a question once a second, and noted whether an answer came.
//!
//! Beside a recording `NAME.egrec` it is in `NAME.probe.tsv`: a line of names, then one for each question: when it was asked (ms since the
//! begin of the recording), how long the answer of a program that only answers took (ms; `-`: none came in time), and that of the
//! application.

use std::fs;
use std::io::Read;
use std::path::Path;

/// A longer file is none.
const MAX_BYTES: u64 = 16 << 20;
/// So long was waited for an answer.
const PATIENCE_MS: f64 = 3_000.0;
/// Questions that are looked at: the last ones of which it is known whether they were answered.
const LOOKED_AT: usize = 5;

/// Questions in the order of time: when it was known whether there was an answer, and whether there was one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Beats {
    guest: Vec<(f64, bool)>,
    application: Vec<(f64, bool)>,
}

/// Reads what is beside a recording of this name. None: there is nothing, or not what it should be.
pub fn load(folder: &Path, name: &str) -> Option<Beats> {
    let mut text = String::new();
    let file = fs::File::open(folder.join(format!("{name}.probe.tsv"))).ok()?;
    file.take(MAX_BYTES).read_to_string(&mut text).ok()?;
    parse(&text)
}

fn parse(text: &str) -> Option<Beats> {
    let mut beats = Beats::default();
    for line in text.lines().skip(1) {
        let mut fields = line.split('\t');
        let at: f64 = fields.next()?.parse().ok()?;
        for list in [&mut beats.guest, &mut beats.application] {
            let answer = match fields.next()? {
                "-" => None,
                text => Some(text.parse::<f64>().ok().filter(|ms| ms.is_finite())?),
            };
            list.push((at + answer.unwrap_or(PATIENCE_MS), answer.is_some()));
        }
    }
    for list in [&mut beats.guest, &mut beats.application] {
        list.sort_by(|a, b| a.0.total_cmp(&b.0));
    }
    Some(beats)
}

impl Beats {
    /// The part of the last questions that were not answered, as far as was known then.
    #[allow(
        clippy::cast_precision_loss,
        reason = "times in a recording; five questions"
    )]
    pub(super) fn missed(&self, application: bool, at_ms: u64) -> f32 {
        let list = if application {
            &self.application
        } else {
            &self.guest
        };
        let known = list.partition_point(|(known, _)| *known <= at_ms as f64);
        let last = &list[known.saturating_sub(LOOKED_AT)..known];
        let missed = last.iter().filter(|(_, answered)| !answered).count();
        missed as f32 / last.len().max(1) as f32
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_answered_is_known_when_patience_is_over() {
        let text = "at_ms\tbeat_ms\tapp_ms\n0\t5.0\t5.0\n1000\t-\t7.5\n2000\t-\t-\n";
        let beats = parse(text).unwrap();
        assert_eq!(beats.missed(false, 3_999), 0.0);
        assert_eq!(beats.missed(false, 4_000), 0.5);
        assert_eq!(beats.missed(true, 4_000), 0.0);
        assert!((beats.missed(false, 9_000) - 2.0 / 3.0).abs() < 1e-6);
        assert_eq!(parse("at_ms\n0\tx\n"), None);
    }
}
