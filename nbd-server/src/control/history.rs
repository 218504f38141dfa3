//! The gateway's side of the control API for the past of groups: HTTP in, requests to the catalog out.

use axum::body::Bytes;
use axum::extract::{Path, RawQuery, State};
use epoch_log::history::{Frozen, Pin};

use super::api::{FreezeRequest, HistoryReply, PinRequest, RewindRequest, ThawReply};
use super::server::{Failure, Gatekeeper, Handled, read};
use crate::group::history::{Point, Rewound};

/// Most points in one reply, and how many there are unless the caller says.
const MOST_POINTS: usize = 50_000;

pub(super) async fn points(
    State(gate): State<Gatekeeper>,
    Path(group): Path<String>,
    RawQuery(query): RawQuery,
) -> Handled<HistoryReply> {
    let (since, most) = parse(query.as_deref().unwrap_or_default())?;
    gate.change(move |catalog| {
        let points = catalog.points(&group, since.as_ref(), most)?;
        Ok(HistoryReply {
            status: points.status,
            points: points.points,
            more: points.more,
        })
    })
    .await
}

/// `since=POINT&limit=N`, both if wanted.
fn parse(query: &str) -> Result<(Option<Point>, usize), Failure> {
    let (mut since, mut most) = (None, MOST_POINTS);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("since", point)) => {
                let point = decode(point);
                since = Some(point.parse().map_err(Failure::bad_request)?);
            }
            Some(("limit", number)) => {
                let number: usize = number.parse().map_err(|_| {
                    Failure::bad_request(format!("'{number}' is no number of points"))
                })?;
                most = number.min(MOST_POINTS);
            }
            _ => {
                return Err(Failure::bad_request(format!(
                    "'{pair}' is not understood; the history takes since=POINT and limit=N"
                )));
            }
        }
    }
    Ok((since, most))
}

/// Takes back what [`super::client`] does to characters that have a meaning in an address.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let hex = (*byte == b'%')
            .then(|| after.get(..2))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        match hex {
            Some(value) => {
                bytes.push(value);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(*byte);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

pub(super) async fn pin(
    State(gate): State<Gatekeeper>,
    Path(group): Path<String>,
    body: Bytes,
) -> Handled<Pin> {
    let PinRequest { name, at } = read(&body)?;
    gate.change(move |catalog| catalog.pin(&group, &name, at.as_ref()))
        .await
}

pub(super) async fn unpin(
    State(gate): State<Gatekeeper>,
    Path((group, name)): Path<(String, String)>,
) -> Handled<Pin> {
    gate.change(move |catalog| catalog.unpin(&group, &name))
        .await
}

pub(super) async fn freeze(
    State(gate): State<Gatekeeper>,
    Path(group): Path<String>,
    body: Bytes,
) -> Handled<Frozen> {
    let FreezeRequest { for_ms } = read(&body)?;
    gate.change(move |catalog| catalog.freeze(&group, for_ms))
        .await
}

pub(super) async fn thaw(
    State(gate): State<Gatekeeper>,
    Path(group): Path<String>,
) -> Handled<ThawReply> {
    gate.change(move |catalog| catalog.thaw(&group).map(|was| ThawReply { was }))
        .await
}

pub(super) async fn rewind(
    State(gate): State<Gatekeeper>,
    Path(group): Path<String>,
    body: Bytes,
) -> Handled<Rewound> {
    let RewindRequest { to, force } = read(&body)?;
    gate.change(move |catalog| catalog.rewind(&group, &to, force))
        .await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_query_names_where_to_begin_and_how_much() {
        let time = "time=2026-11-22T10:15:00+02:00".parse::<Point>().unwrap();
        let (since, most) =
            parse("since=time%3D2026-11-22T10%3A15%3A00%2B02%3A00&limit=7").unwrap();
        assert_eq!((since, most), (Some(time), 7));
        assert_eq!(parse("").unwrap(), (None, MOST_POINTS));
        assert_eq!(parse("limit=99999999").unwrap().1, MOST_POINTS);
        for wrong in ["since=now", "limit=x", "from=1", "since=epoch%3"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
