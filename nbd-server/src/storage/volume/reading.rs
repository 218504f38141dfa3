//! Reads of a volume: what the server has, under what was written and is not flushed.

use std::collections::VecDeque;
use std::io;

use super::super::kept::Content;
use super::super::link::Ticket;
use super::super::remote::{self, Op, Remote};
use super::{PIECE, Volume, WINDOW};

impl<R: Remote> Volume<R> {
    /// Reads; returns how much, less than asked for only at the end of the object.
    ///
    /// # Errors
    /// What the server says.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let range = offset..offset + buf.len() as u64;
        // Before the server is asked: what is flushed and forgotten meanwhile is on its disk before it answers.
        let kept = self.lock().kept.find(&range);
        let covered: u64 = kept.iter().map(|(_, content)| content.len()).sum();
        let mut got = 0;
        if covered < buf.len() as u64 {
            got = self.read_remote(offset, buf)?;
            buf.get_mut(got..).unwrap_or_default().fill(0);
        }
        for (at, content) in kept {
            let start = usize::try_from(at - offset).unwrap_or(usize::MAX);
            let len = usize::try_from(content.len()).unwrap_or(usize::MAX);
            let end = start.saturating_add(len);
            if let Some(part) = buf.get_mut(start..end) {
                match content {
                    Content::Data(data) => part.copy_from_slice(&data),
                    Content::Zeros(_) => part.fill(0),
                }
                got = got.max(end);
            }
        }
        Ok(got)
    }

    fn read_remote(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let step = self.remote.limits().read.clamp(1, PIECE);
        let window = (WINDOW.0 / step).max(1);
        let mut begun: VecDeque<(Op, Ticket)> = VecDeque::new();
        let (mut sent, mut done) = (0, 0);
        while done < buf.len() {
            while sent < buf.len() && begun.len() < window {
                let len = step.min(buf.len() - sent);
                let op = Op::Read {
                    offset: offset + sent as u64,
                    len,
                };
                let ticket = remote::begin(&self.remote, &op);
                self.remote.link().send(&ticket);
                begun.push_back((op, ticket));
                sent += len;
            }
            let Some((op, ticket)) = begun.pop_front() else {
                break;
            };
            let data = remote::finish(&self.remote, &op, &ticket)?.data;
            let Some(part) = buf.get_mut(done..done + data.len()) else {
                return Err(io::Error::other("the server sent more than was asked for"));
            };
            part.copy_from_slice(&data);
            done += data.len();
            if matches!(op, Op::Read { len, .. } if data.len() < len) {
                // The end of the object; what was asked for behind it is answered to nobody.
                break;
            }
        }
        Ok(done)
    }
}
