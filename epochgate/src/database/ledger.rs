//! What one connection was promised. Its transactions are numbered from 1 without a gap: number N counts a counter of its own up to N
//! and sets a row of its own. So the counter alone says how much the database remembers, and each row says so a second time.

use std::io::{Error, ErrorKind};

use super::redis::{Connection, Reply, SILENCE};

/// Names and contents of what one connection writes.
#[derive(Debug, Clone)]
pub(super) struct Names {
    /// Distinguishes the contents of different runs.
    pub seed: u64,
    /// Number of the connection.
    pub connection: usize,
}

impl Names {
    pub(super) fn counter(&self) -> String {
        format!("seq:{}", self.connection)
    }

    pub(super) fn row(&self, number: u64) -> String {
        format!("row:{}:{number}", self.connection)
    }

    /// Content of a row, 64 bytes.
    pub(super) fn content(&self, number: u64) -> String {
        let start = format!("{:016x}.{}.{number}.", self.seed, self.connection);
        format!("{start:=<64}")
    }
}

/// What went wrong with a promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Broken {
    /// The connection was reset, closed or dead.
    Connection(String),
    /// So many acknowledged transactions are gone.
    Lost { transactions: u64, found: String },
    /// An answer that fits nothing that can have happened.
    Wrong(String),
}

impl Broken {
    fn connection(error: Error) -> Self {
        Self::Connection(match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                format!("nothing came or went for {} s", SILENCE.as_secs())
            }
            _ => error.to_string(),
        })
    }
}

/// Carries out transaction `number`. Ok if it is acknowledged, and is what must be.
pub(super) fn transact(to: &mut Connection, names: &Names, number: u64) -> Result<(), Broken> {
    to.send(&[
        &["MULTI"],
        &["INCR", &names.counter()],
        &["SET", &names.row(number), &names.content(number)],
        &["EXEC"],
    ])
    .map_err(Broken::connection)?;
    let mut last = Reply::Bulk(None);
    for _ in 0..4 {
        last = to.reply().map_err(Broken::connection)?;
    }
    let Reply::Array(done) = &last else {
        return Err(Broken::Wrong(format!(
            "the transaction {number} is answered {last:?}"
        )));
    };
    let [Reply::Integer(count), Reply::Simple(set)] = &done[..] else {
        return Err(Broken::Wrong(format!(
            "the transaction {number} is answered {done:?}"
        )));
    };
    let count = u64::try_from(*count).unwrap_or(0);
    if set != "OK" || count > number {
        return Err(Broken::Wrong(format!(
            "the transaction {number} is answered {set}, and is number {count}"
        )));
    }
    if count < number {
        return Err(Broken::Lost {
            transactions: number - count,
            found: format!("after transaction {} comes {count}", number - 1),
        });
    }
    Ok(())
}

/// Writes a row without counting it.
pub(super) fn write_row(to: &mut Connection, names: &Names, number: u64) -> Result<(), Broken> {
    let set = to.ask(&["SET", &names.row(number), &names.content(number)]);
    match set.map_err(Broken::connection)? {
        Reply::Simple(ok) if ok == "OK" => Ok(()),
        other => Err(Broken::Wrong(format!("SET is answered {other:?}"))),
    }
}

/// The counter of a connection.
pub(super) fn remembered(to: &mut Connection, names: &Names) -> Result<u64, Broken> {
    match to
        .ask(&["GET", &names.counter()])
        .map_err(Broken::connection)?
    {
        Reply::Bulk(None) => Ok(0),
        Reply::Bulk(Some(digits)) => String::from_utf8_lossy(&digits)
            .parse()
            .map_err(|_| Broken::Wrong(format!("a counter is {digits:?}"))),
        other => Err(Broken::Wrong(format!("a counter is {other:?}"))),
    }
}

/// Reads rows back that were acknowledged.
pub(super) fn read_back(
    to: &mut Connection,
    names: &Names,
    rows: std::ops::RangeInclusive<u64>,
) -> Result<(), Broken> {
    let keys: Vec<String> = rows.clone().map(|number| names.row(number)).collect();
    let mut request = vec!["MGET"];
    request.extend(keys.iter().map(String::as_str));
    let found = match to.ask(&request).map_err(Broken::connection)? {
        Reply::Array(found) if found.len() == keys.len() => found,
        other => return Err(Broken::Wrong(format!("rows are {other:?}"))),
    };
    let mut gone = Vec::new();
    for (number, row) in rows.zip(found) {
        match row {
            Reply::Bulk(None) => gone.push(number),
            Reply::Bulk(Some(bytes)) if bytes == names.content(number).as_bytes() => {}
            other => {
                return Err(Broken::Wrong(format!(
                    "row {} is {other:?}",
                    names.row(number)
                )));
            }
        }
    }
    match gone.first() {
        None => Ok(()),
        Some(first) => Err(Broken::Lost {
            transactions: gone.len() as u64,
            found: format!("{} is not there", names.row(*first)),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_differ_and_have_one_length() {
        let names = |seed, connection| Names { seed, connection };
        let content = names(u64::MAX, 63).content(u64::MAX);
        assert_eq!(content.len(), 64);
        assert_ne!(names(1, 1).content(11), names(1, 11).content(1));
        assert_ne!(names(1, 1).content(1), names(2, 1).content(1));
        assert_ne!(names(1, 1).row(11), names(1, 11).row(1));
    }
}
