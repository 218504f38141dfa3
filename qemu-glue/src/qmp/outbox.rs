//! The way of commands to QEMU: their text, their numbers, and what of them is spelled ahead. Knows no answers.
//!
//! QEMU's monitor takes its input byte by byte, with some seven system calls for each: 3 to 4 µs (`monitor_can_read`, QEMU 7.2
//! and 10.0). A `stop` of forty bytes is read for as long as it is carried out, while the guest still runs or already stands. So
//! a command that is likely to be next is *spelled ahead*: QEMU gets all of its text but the last byte while nothing waits
//! for it. When the command is sent, one byte does it. If another one is sent instead, the spelled one is spoilt first, so
//! that QEMU refuses it: what is spelled ahead is a hint and never carried out by itself.

use qapi::{Command, Execute};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;

use crate::error::{Error, Result};

/// Ends a command that was spelled ahead so that QEMU refuses it: there is no such member.
const SPOILT: &[u8] = b",\"cancelled\":true}\n";

/// A command without its number: `{"execute":"stop"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Text(Vec<u8>);

impl Text {
    pub(super) fn of<C: Command>(command: &C) -> Result<Self> {
        let problem = |e: serde_json::Error| Error::Qmp {
            problem: e.to_string(),
        };
        let mut value =
            serde_json::to_value(Execute::<_, u64>::with_command(command)).map_err(problem)?;
        // Empty arguments may be left out, and each byte counts.
        if let Some(members) = value.as_object_mut() {
            members.retain(|name, value| {
                name != "arguments" || value.as_object().is_none_or(|a| !a.is_empty())
            });
        }
        let mut text = serde_json::to_vec(&value).map_err(problem)?;
        text.pop();
        Ok(Text(text))
    }

    /// All but the closing brace.
    fn spell(&self, id: u64, into: &mut Vec<u8>) {
        into.extend_from_slice(&self.0);
        into.extend_from_slice(format!(",\"id\":{id}").as_bytes());
    }
}

/// What QEMU has of a command.
#[derive(Debug)]
struct Ahead {
    text: Text,
    id: u64,
}

/// The writing half of a connection.
#[derive(Debug)]
pub(super) struct Outbox {
    socket: OwnedWriteHalf,
    next_id: u64,
    /// What QEMU has of a command when all of `unsent` is written.
    ahead: Option<Ahead>,
    /// Not written yet. A send that is dropped leaves its rest here for the next one, so that QEMU never gets half a command.
    unsent: Vec<u8>,
}

impl Outbox {
    pub(super) fn new(socket: OwnedWriteHalf) -> Self {
        Outbox {
            socket,
            next_id: 0,
            ahead: None,
            unsent: Vec::new(),
        }
    }

    /// Adds these commands, one after the other, to what is to be written, and returns their numbers. `then` is spelled ahead behind
    /// them.
    fn prepare(&mut self, commands: &[Text], then: Option<&Text>) -> Vec<u64> {
        let mut ids = Vec::with_capacity(commands.len());
        let mut ahead = self.ahead.take();
        if let Some(other) = ahead.take_if(|ahead| commands.first() != Some(&ahead.text)) {
            tracing::trace!(
                id = other.id,
                "a command that was spelled ahead is not sent"
            );
            self.unsent.extend_from_slice(SPOILT);
        }
        for text in commands {
            let id = match ahead.take() {
                Some(ahead) => ahead.id,
                None => self.spell(text),
            };
            self.unsent.extend_from_slice(b"}\n");
            ids.push(id);
        }
        self.ahead = then.map(|text| Ahead {
            text: text.clone(),
            id: self.spell(text),
        });
        ids
    }

    fn spell(&mut self, text: &Text) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        text.spell(id, &mut self.unsent);
        id
    }

    /// Writes the commands. `expect` learns their numbers before QEMU can answer.
    pub(super) async fn send(
        &mut self,
        commands: &[Text],
        then: Option<&Text>,
        expect: impl FnOnce(Vec<u64>) -> Result<()>,
    ) -> Result<()> {
        let ids = self.prepare(commands, then);
        expect(ids)?;
        while !self.unsent.is_empty() {
            match self.socket.write(&self.unsent).await {
                Ok(0) | Err(_) => return Err(Error::QmpClosed),
                Ok(written) => drop(self.unsent.drain(..written)),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use qapi::qmp;

    use super::*;

    fn outbox() -> Outbox {
        let (socket, _) = tokio::net::UnixStream::pair().unwrap();
        Outbox::new(socket.into_split().1)
    }

    fn prepared(outbox: &mut Outbox, commands: &[Text], then: Option<&Text>) -> (String, Vec<u64>) {
        let ids = outbox.prepare(commands, then);
        let bytes = std::mem::take(&mut outbox.unsent);
        (String::from_utf8(bytes).unwrap(), ids)
    }

    #[tokio::test]
    async fn the_last_byte_sends_what_was_spelled_ahead() {
        let mut outbox = outbox();
        let (stop, cont) = (
            Text::of(&qmp::stop {}).unwrap(),
            Text::of(&qmp::cont {}).unwrap(),
        );
        let (text, ids) = prepared(&mut outbox, &[], Some(&stop));
        assert_eq!(text, r#"{"execute":"stop","id":0"#);
        assert!(ids.is_empty());
        let name = Text::of(&qmp::query_name {}).unwrap();
        let (text, ids) = prepared(&mut outbox, &[stop, name], Some(&cont));
        assert_eq!(
            text,
            "}\n{\"execute\":\"query-name\",\"id\":1}\n{\"execute\":\"cont\",\"id\":2"
        );
        assert_eq!(ids, [0, 1]);
        assert_eq!(
            prepared(&mut outbox, &[cont], None),
            ("}\n".into(), vec![2])
        );
    }

    #[tokio::test]
    async fn what_was_spelled_ahead_is_spoilt_by_any_other_command() {
        let mut outbox = outbox();
        let (stop, cont) = (
            Text::of(&qmp::stop {}).unwrap(),
            Text::of(&qmp::cont {}).unwrap(),
        );
        prepared(&mut outbox, &[], Some(&stop));
        let (text, ids) = prepared(&mut outbox, &[cont.clone(), stop.clone()], None);
        assert_eq!(
            text,
            ",\"cancelled\":true}\n{\"execute\":\"cont\",\"id\":1}\n{\"execute\":\"stop\",\"id\":2}\n"
        );
        assert_eq!(ids, [1, 2]);
        // Nothing is left of it.
        let (text, _) = prepared(&mut outbox, &[stop], None);
        assert_eq!(text, "{\"execute\":\"stop\",\"id\":3}\n");
    }

    #[tokio::test]
    async fn what_a_dropped_send_leaves_goes_first() {
        let (socket, mut qemu) = tokio::net::UnixStream::pair().unwrap();
        let mut outbox = Outbox::new(socket.into_split().1);
        let (stop, cont) = (
            Text::of(&qmp::stop {}).unwrap(),
            Text::of(&qmp::cont {}).unwrap(),
        );
        // As a send that is dropped before it has written anything.
        outbox.prepare(&[], Some(&stop));
        outbox.send(&[stop, cont], None, |_| Ok(())).await.unwrap();
        drop(outbox);
        let mut text = String::new();
        tokio::io::AsyncReadExt::read_to_string(&mut qemu, &mut text)
            .await
            .unwrap();
        assert_eq!(
            text,
            "{\"execute\":\"stop\",\"id\":0}\n{\"execute\":\"cont\",\"id\":1}\n"
        );
    }

    #[test]
    fn arguments_stay() {
        let command = qmp::xen_save_devices_state {
            filename: "/x".into(),
            live: Some(false),
        };
        let mut text = Vec::new();
        Text::of(&command).unwrap().spell(7, &mut text);
        text.push(b'}');
        let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(
            value,
            serde_json::json!({
                "execute": "xen-save-devices-state",
                "arguments": { "filename": "/x", "live": false },
                "id": 7
            })
        );
    }
}
